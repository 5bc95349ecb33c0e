"""How good is a generator right now? One number, comparable across resolutions, with its error."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from growgan.errors import UserError, unknown
from growgan.metrics.distances import Moments, frechet_with_error
from growgan.metrics.domain import shrink
from growgan.metrics.features import Extractor
from growgan.metrics.protocol import Protocol
from growgan.metrics.sliced import sliced_wasserstein

KINDS = ("fd", "swd", "intra-fd", "pairs")
MOST_REALS = 10_000
GROUPS = 8  # of the jackknife: every 8th sample is of one group

_CHUNK = 1024  # reals resized at once
_SHARES = 4  # into which the samples are split for the error of "swd"
_PATCHES = 64  # an image and level; the published protocol takes 128


@dataclass(frozen=True)
class Score:
    """``value`` (0 is perfect, 1 is total collapse) and its standard error ``stderr``.

    ``parts`` holds the distances before division: that of its kind, and "swd" (x 10³) where it was
    asked for.
    ``resolution`` is (h, w).
    """

    value: float
    stderr: float
    parts: dict[str, float]
    resolution: tuple[int, int]


@dataclass(frozen=True)
class _Reals:
    """What is needed of the reals at one resolution.

    ``moments`` of their features, by class, or of all as class -1 (none for "swd" and "pairs"), the
    first of their ``images`` uint8 [n, C, h, w] (None without SWD), and the distance of total
    collapse to them as ``reference``.
    """

    moments: dict[int, Moments]
    images: Tensor | None
    reference: float


def energy(fakes: Float[Tensor, "m d"], truth: Float[Tensor, "n d"]) -> tuple[float, float]:
    """Return the energy score of features, two of which are for each truth, and its standard error.

    Gneiting & Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", equation
    21. Rows i and n + i of the fakes are for truth i.
    """
    one, other = fakes.double().split(len(truth))
    away = ((one - truth).norm(dim=1) + (other - truth).norm(dim=1)) / 2
    each = away - (one - other).norm(dim=1) / 2
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


class Scorer:
    """Scores generators at any resolution against the same reals.

    The value is the distance of samples to the reals, both at the generator's own resolution (the
    reals area-averaged down to it, both resized by the extractor), divided by the distance of
    total collapse at that resolution. For the Fréchet distance that is the trace of the reals'
    feature covariance: the distance of a single point at the reals' mean. For SWD it is the
    distance of flat images. So 1 is "no better than one average image" in any dataset, and worse
    than 1 is possible. Kind "intra-fd" is the mean over classes of the distance within each, over
    the mean trace: 1 is "no better than one average image of each class".

    Kind "pairs" is of images that are made from images, and each held against the truth x of its
    own c: the energy score E|φ(G(c, z)) - φ(x)| - ½ E|φ(G(c, z)) - φ(G(c, z'))| of features φ
    (Gneiting & Raftery 2007, section 4.2), over that of the reals' mean, E|φ(x) - mean φ|. No
    distribution but that of x given c has a lower one, which is 0 where c leaves nothing open.
    Sets of images are as near to each other where each image has the wrong partner: of a film whose
    last frame is copied the Fréchet distance is 0.

    What a reference must do is to give one fault one score at every resolution. On Fashion-MNIST at
    4, 8, 16 and 32 pixels, reals without two classes scored 0.069, 0.078, 0.088, 0.088 by the trace
    (features learnt from labels; 0.067, 0.079, 0.075, 0.071 without). Divided by the distance of
    uniform noise it was 0.051, 0.076, 0.075, 0.072 (and 0.025, 0.046, 0.039, 0.030); by that of
    noise with each pixel's own mean and variance 0.19, 0.14, 0.11, 0.09 (and 0.19, 0.14, 0.07,
    0.05), since few pixels leave such noise little room to be wrong in. The trace also needs no
    random draw and no further pass.
    """

    def __init__(
        self,
        reals: NDArray[np.uint8],
        extractor: Extractor | None,
        *,
        samples: int = 2000,
        seed: int = 0,
        kind: str = "fd",
        swd: bool = False,
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        """Prepare to score against ``reals`` [N, C, H, W]; a subset of at most 10,000 is used.

        ``extractor`` is needed for all kinds but "swd", ``labels`` of the reals, int64 [N], -1 for
        none, for kind "intra-fd"; ``samples`` of "pairs" are two for each truth, at most; ``swd``
        adds the sliced Wasserstein distance to the parts (kind "swd" always does). Raises
        UserError for an unknown kind, fewer than 16 samples (of each class), fewer than 16 reals,
        or a class with fewer than 2.
        """
        if kind not in KINDS:
            raise unknown("score kind", kind, KINDS)
        if kind != "swd" and extractor is None:
            raise ValueError(f"extractor must be given for kind '{kind}', but is None")
        for name, count in (("samples", samples), ("the number of reals", len(reals))):
            if count < 2 * GROUPS:
                raise UserError(f"{name} must be at least {2 * GROUPS} to score, but is {count}")
        self.extractor, self.kind, self.swd = extractor, kind, swd or kind == "swd"
        self.samples, self.seed = samples, seed
        generator = torch.Generator().manual_seed(seed)
        self._images = reals
        self._chosen = torch.randperm(len(reals), generator=generator)[:MOST_REALS].numpy()
        self._known: dict[tuple[int, int], _Reals] = {}
        self._labels = self._checked(labels) if kind == "intra-fd" else None
        self.classes = 0 if self._labels is None else int(self._labels[self._chosen].max()) + 1

    def _checked(self, labels: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return the labels of all reals; raise a UserError where they do not suffice."""
        whole = np.full(len(self._images), -1) if labels is None else labels
        known = whole[self._chosen]
        counts = np.bincount(known[known >= 0], minlength=1)
        if counts.min() < 2:
            few = int(counts.argmin())
            raise UserError(f"class {few} has {counts[few]} images, too few to score within it")
        if self.samples < 2 * GROUPS * len(counts):
            least = 2 * GROUPS * len(counts)
            raise UserError(f"samples must be at least {least} to score within each class")
        return whole

    @property
    def draws(self) -> int:
        """How many images are made from each that is given."""
        return 2 if self.kind == "pairs" else 1

    def labels(self) -> NDArray[np.int64] | None:
        """Return the label of each sample, int64 [samples], None where classes do not matter.

        They take turns so that each group of the jackknife has as many of each.
        """
        return np.arange(self.samples) // GROUPS % self.classes if self.classes else None

    @property
    def protocol(self) -> Protocol:
        """What every score of this scorer was measured with."""
        reals = hashlib.sha256(np.ascontiguousarray(self._images[self._chosen[:64]]).data)
        if self._labels is not None:
            reals.update(self._labels[self._chosen].tobytes())
        height, width = self._images.shape[2:]
        return Protocol(
            metric="score",
            estimator=f"{self.kind} over the distance of total collapse; {_PATCHES} patches of SWD",
            features=self.extractor.fingerprint if self.extractor else "none",
            reals=reals.hexdigest()[:32],
            resolution=(height, width),
            counts=(self.samples, len(self._chosen)),
            seed=self.seed,
        )

    def score(
        self,
        generate: Callable[[int], Tensor],
        resolution: tuple[int, int],
        *,
        labels: Sequence[int] | None = None,
        truth: Tensor | None = None,
    ) -> Score:
        """Score ``generate(n)``, which returns the same n uint8 images [n, C, h, w] at each call.

        Args:
            labels: of the images, in turn, where they are not those of :meth:`labels`.
            truth: for kind "pairs", images uint8 [k, C, H, W] as the reals: image i of 2k is made
                from what truth i mod k belongs to.

        Raises ValueError where it returns anything else, or ``resolution`` exceeds the reals'.
        """
        if (truth is None) == (self.kind == "pairs"):
            raise ValueError("truth must be given for kind 'pairs', and for no other")
        count = self.samples if truth is None else self.draws * len(truth)
        fakes, expected = generate(count), (count, self._images.shape[1], *resolution)
        if fakes.dtype != torch.uint8 or tuple(fakes.shape) != expected:
            got = f"{fakes.dtype} {list(fakes.shape)}"
            raise ValueError(f"generate must return torch.uint8 {list(expected)}, but gave {got}")
        reals = self._reals(resolution)
        parts: dict[str, float] = {}
        value = stderr = 0.0
        if self.extractor is not None and truth is not None:
            wanted = self.extractor(shrink(truth, resolution))
            value, stderr = energy(self.extractor(fakes), wanted)
            parts[self.kind] = value
        elif self.extractor is not None and reals.moments:
            features, known = self.extractor(fakes), self.labels()
            if known is not None and labels is not None:
                known = np.resize(labels, count)
            found = [
                frechet_with_error(features if known is None else features[known == c], m, GROUPS)
                for c, m in reals.moments.items()
            ]
            value = sum(each[0] for each in found) / len(found)
            stderr = sum(each[1] ** 2 for each in found) ** 0.5 / len(found)
            parts[self.kind] = value
        if reals.images is not None:
            parts["swd"] = self._sliced(fakes, reals.images)
            if self.kind == "swd":
                value, stderr = parts["swd"], self._sliced_error(fakes, reals.images)
        return Score(value / reals.reference, stderr / reals.reference, parts, resolution)

    def _reals(self, resolution: tuple[int, int]) -> _Reals:
        """Return what is needed of the reals at ``resolution``, made at the first call."""
        if resolution not in self._known:
            h, w = self._images.shape[2:]
            if not (1 <= resolution[0] <= h and 1 <= resolution[1] <= w):
                raise ValueError(f"resolution must be at most {(h, w)}, but is {resolution}")
            images, collapse, moments = None, 0.0, dict[int, Moments]()
            if self.kind == "pairs" and self.extractor is not None:
                features = torch.cat([*map(self.extractor, self._chunks(resolution))]).double()
                collapse = float((features - features.mean(0)).norm(dim=1).mean())
            elif self.kind != "swd" and self.extractor is not None:
                moments = self._moments(self.extractor, resolution)
                traces = [float(each.covariance.trace()) for each in moments.values()]
                collapse = sum(traces) / len(traces)
            if self.swd:
                images = torch.cat(list(self._chunks(resolution, self.samples)))
                if self.kind == "swd":
                    collapse = self._sliced(torch.zeros_like(images), images)
            # Reals that do not vary leave distances as they are.
            self._known[resolution] = _Reals(moments, images, collapse or 1.0)
        return self._known[resolution]

    def _moments(self, extractor: Extractor, resolution: tuple[int, int]) -> dict[int, Moments]:
        features = map(extractor, self._chunks(resolution))
        if self._labels is None:
            return {-1: Moments.of_chunks(features)}
        whole, labels = torch.cat(list(features)), self._labels[np.concatenate(list(self._rows()))]
        return {c: Moments.of(whole[labels == c]) for c in range(self.classes)}

    def _rows(self, most: int = MOST_REALS) -> Iterator[NDArray[np.int64]]:
        """Yield which are the first ``most`` of the chosen reals, in chunks."""
        chosen = self._chosen[:most]
        for start in range(0, len(chosen), _CHUNK):
            yield np.sort(chosen[start : start + _CHUNK])  # a memory map reads faster in order

    def _chunks(self, resolution: tuple[int, int], most: int = MOST_REALS) -> Iterator[Tensor]:
        """Yield the first ``most`` of the chosen reals, uint8 [n, C, h, w] at ``resolution``."""
        for rows in self._rows(most):
            yield shrink(torch.from_numpy(self._images[rows]), resolution)

    def _sliced(self, fakes: Tensor, reals: Tensor) -> float:
        """Return the sliced Wasserstein distance of equally many fakes and reals."""
        count = min(len(fakes), len(reals))
        return sliced_wasserstein(
            fakes[:count], reals[:count], patches=_PATCHES, repeats=1, seed=self.seed
        ).average

    def _sliced_error(self, fakes: Tensor, reals: Tensor) -> float:
        """Return the standard error from the spread over disjoint shares of the fakes."""
        shares = torch.tensor([self._sliced(fakes[i::_SHARES], reals) for i in range(_SHARES)])
        return float(shares.std() / _SHARES**0.5)
