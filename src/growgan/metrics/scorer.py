"""The score of a generator: one number, comparable across resolutions, with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growgan.errors import UserError, unknown_name_error
from growgan.files import hash_json
from growgan.metrics.features.base import FeatureExtractor
from growgan.metrics.functional.energy_score import energy_score
from growgan.metrics.functional.frechet_distance import (
    NUM_JACKKNIFE_GROUPS,
    frechet_distance_with_stderr,
)
from growgan.metrics.functional.moments import Moments
from growgan.metrics.functional.sliced_wasserstein import sliced_wasserstein
from growgan.metrics.image_hash import ImageSetHash
from growgan.metrics.image_resize import downscale_uint8
from growgan.metrics.result import MeasurementProtocol

SCORE_KINDS = ("fd", "swd", "intra-fd", "energy-score")
MAX_REAL_IMAGES = 10_000
MIN_IMAGES = 2 * NUM_JACKKNIFE_GROUPS  # samples, or real images

_BATCH_SIZE = 1024  # real images downscaled at once
_NUM_HASHED_IMAGES = 64  # real images that identify the reference in the protocol
_NUM_SWD_SUBSETS = 4  # subsets of the samples for the standard error of "swd"
_SWD_PATCHES_PER_LEVEL = 64  # patches per image and level; half of the published 128


@dataclass(frozen=True)
class Score:
    """A score: 0 is perfect, 1 is total collapse, and larger values are possible.

    Attributes:
        value: The distance to the real images, divided by that of total collapse.
        stderr: Its standard error.
        components: Distances before the division, by name: that of the scorer's kind, and "swd"
            (x 10³) if requested.
        resolution: (h, w) at which the images were compared.
    """

    value: float
    stderr: float
    components: dict[str, float]
    resolution: tuple[int, int]


@dataclass(frozen=True)
class _RealStatistics:
    """Statistics of the real images at one resolution.

    Attributes:
        moments: Moments of the features by class, or of all images as class -1; empty for the kinds
            "swd" and "energy-score".
        images: Some of the images, uint8 [n, C, h, w], for SWD; None without it.
        collapse_distance: Distance of total collapse, 1 if the real images do not vary.
    """

    moments: dict[int, Moments]
    images: Tensor | None
    collapse_distance: float


class Scorer:
    """Score generators of any resolution against the same real images.

    The score is the distance of samples to the real images, divided by the distance of total
    collapse, both at the resolution of the generator. The real images are area-averaged down to it.
    A score of 1 means "no better than one average image" for any dataset; worse is possible.

    ============  =====================================================  =========================
    kind          distance                                               total collapse
    ============  =====================================================  =========================
    fd            Fréchet distance of features                           all samples have the
                                                                         features' mean: the trace
                                                                         of their covariance
    intra-fd      mean of the Fréchet distances within classes           the mean of the traces
                                                                         within classes
    swd           sliced Wasserstein distance                            flat images
    energy-score  energy score of features, against the target of        the mean distance of the
                  each source image                                      features to their mean
    ============  =====================================================  =========================

    The energy score (Gneiting & Raftery 2007, section 4.2) is
    E|φ(G(c, z)) - φ(x)| - ½ E|φ(G(c, z)) - φ(G(c, z'))| for features φ and a target x of the source
    c. The true distribution of x given c has the lowest value, which is 0 if c determines x. It is
    for image-to-image tasks: distances between sets do not detect whether each source image has the
    right result.

    The trace is the reference because it gives one fault about the same score at each resolution.
    On Fashion-MNIST at 4, 8, 16 and 32 pixels, real images without two classes score 0.069, 0.078,
    0.088 and 0.088 (own features trained with labels) or 0.067, 0.079, 0.075 and 0.071 (trained
    without). Relative to uniform noise they would score 0.051, 0.076, 0.075 and 0.072 (or 0.025,
    0.046, 0.039 and 0.030); relative to noise with the mean and variance of each pixel, 0.19, 0.14,
    0.11 and 0.09 (or 0.19, 0.14, 0.07 and 0.05). The trace also needs no random draw and no further
    pass through the network.

    Args:
        real_images: uint8 [N, C, H, W], N >= 16; a random subset of at most 10,000 is used.
        extractor: Feature extractor, for all kinds but "swd".
        num_samples: Number of samples to score. The kind "energy-score" uses two samples for each
            target, at most this number in all.
        seed: Random seed of the subset, and of the patches and directions of SWD.
        kind: One of :data:`SCORE_KINDS`.
        with_swd: Whether to add the sliced Wasserstein distance to the components. The kind "swd"
            always does.
        labels: Class numbers of the real images, int64 [N], -1 where missing, for "intra-fd".

    Raises:
        UserError: An unknown kind, fewer than 16 samples (of each class for "intra-fd") or real
            images, or a class with fewer than 2 real images.
    """

    def __init__(
        self,
        real_images: NDArray[np.uint8],
        extractor: FeatureExtractor | None,
        *,
        num_samples: int = 2000,
        seed: int = 0,
        kind: str = "fd",
        with_swd: bool = False,
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        if kind not in SCORE_KINDS:
            raise unknown_name_error("score kind", kind, SCORE_KINDS)
        if kind != "swd" and extractor is None:
            raise ValueError(f"extractor must be given for kind '{kind}', but is None")
        for name, count in (
            ("num_samples", num_samples),
            ("the number of real images", len(real_images)),
        ):
            if count < MIN_IMAGES:
                raise UserError(f"{name} must be at least {MIN_IMAGES} to score, but is {count}")
        self.extractor, self.kind, self.with_swd = extractor, kind, with_swd or kind == "swd"
        self.num_samples, self.seed = num_samples, seed
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(real_images), generator=generator)
        self._real_images = real_images
        self._subset_indices: NDArray[np.int64] = order[:MAX_REAL_IMAGES].numpy()
        self._statistics_by_resolution: dict[tuple[int, int], _RealStatistics] = {}
        self._labels: NDArray[np.int64] | None = None
        self.num_classes = 0
        if kind == "intra-fd":
            self._labels = np.full(len(real_images), -1) if labels is None else labels
            self.num_classes = self._count_classes(self._labels)

    def _count_classes(self, labels: NDArray[np.int64]) -> int:
        """Return the number of classes in the subset; raise UserError if one has too few images."""
        subset_labels = labels[self._subset_indices]
        counts = np.bincount(subset_labels[subset_labels >= 0], minlength=1)
        if counts.min() < 2:
            rarest = int(counts.argmin())
            raise UserError(
                "score.kind 'intra-fd' needs at least 2 images of each class, but class"
                f" {rarest} has {counts[rarest]}"
            )
        if self.num_samples < MIN_IMAGES * len(counts):
            raise UserError(
                f"num_samples must be at least {MIN_IMAGES * len(counts)} to score within"
                f" {len(counts)} classes, but is {self.num_samples}"
            )
        return len(counts)

    @property
    def samples_per_source(self) -> int:
        """Number of samples that are generated from each source image."""
        return 2 if self.kind == "energy-score" else 1

    def sample_labels(self) -> NDArray[np.int64] | None:
        """Return the label of each sample, int64 [num_samples]; None if classes do not matter.

        The labels take turns so that each jackknife group has equally many of each class.
        """
        if not self.num_classes:
            return None
        return np.arange(self.num_samples) // NUM_JACKKNIFE_GROUPS % self.num_classes

    @property
    def protocol(self) -> MeasurementProtocol:
        """The protocol of all scores of this scorer."""
        rows = self._subset_indices
        reference = ImageSetHash.hash_images(self._real_images[rows[:_NUM_HASHED_IMAGES]])
        if self._labels is not None:
            reference = hash_json(reference, self._labels[rows].tolist())
        height, width = self._real_images.shape[2:]
        return MeasurementProtocol(
            metric="score",
            estimator=(
                f"{self.kind} over the distance of total collapse; SWD with"
                f" {_SWD_PATCHES_PER_LEVEL} patches per image and level"
            ),
            features=self.extractor.fingerprint if self.extractor else "none",
            reference=reference[:32],
            resolution=(height, width),
            num_images=(self.num_samples, len(rows)),
            seed=self.seed,
        )

    def score(
        self,
        generate: Callable[[int], Tensor],
        resolution: tuple[int, int],
        *,
        labels: Sequence[int] | None = None,
        target: Tensor | None = None,
    ) -> Score:
        """Score a generator.

        Args:
            generate: Returns n images uint8 [n, C, h, w], the same ones at each call.
            resolution: (h, w) of the images, at most that of the real images.
            labels: Labels of the samples, repeated as needed, if they are not those of
                :meth:`sample_labels`.
            target: For the kind "energy-score", target images uint8 [k, C, H, W] of the real
                images' resolution. Samples i and k + i belong to target i.

        Raises:
            ValueError: ``generate`` returns other shapes or dtypes, ``resolution`` is too large, or
                ``target`` is missing for "energy-score" or given for another kind.
        """
        if (target is None) == (self.kind == "energy-score"):
            raise ValueError("target must be given for kind 'energy-score', and for no other kind")
        count = self.num_samples if target is None else self.samples_per_source * len(target)
        samples = generate(count)
        expected_shape = (count, self._real_images.shape[1], *resolution)
        if samples.dtype != torch.uint8 or tuple(samples.shape) != expected_shape:
            raise ValueError(
                f"generate must return torch.uint8 {list(expected_shape)}, but returned"
                f" {samples.dtype} {list(samples.shape)}"
            )
        real = self._real_statistics(resolution)
        components: dict[str, float] = {}
        value = stderr = 0.0
        if self.kind == "energy-score":
            assert self.extractor is not None and target is not None
            target_features = self.extractor(downscale_uint8(target, resolution))
            value, stderr = energy_score(self.extractor(samples), target_features)
            components[self.kind] = value
        elif self.kind != "swd":
            value, stderr = self._frechet_distance(samples, real.moments, labels)
            components[self.kind] = value
        if real.images is not None:
            components["swd"] = self._swd(samples, real.images)
            if self.kind == "swd":
                value, stderr = components["swd"], self._swd_stderr(samples, real.images)
        return Score(
            value=value / real.collapse_distance,
            stderr=stderr / real.collapse_distance,
            components=components,
            resolution=resolution,
        )

    def _frechet_distance(
        self, samples: Tensor, moments: dict[int, Moments], labels: Sequence[int] | None
    ) -> tuple[float, float]:
        """Return the Fréchet distance, or its mean over classes, and its standard error."""
        assert self.extractor is not None
        features, sample_labels = self.extractor(samples), self.sample_labels()
        if sample_labels is not None and labels is not None:
            sample_labels = np.resize(labels, len(samples))
        distances, stderrs = [], []
        for label, class_moments in moments.items():
            rows = features if sample_labels is None else features[sample_labels == label]
            distance, stderr = frechet_distance_with_stderr(rows, class_moments)
            distances.append(distance)
            stderrs.append(stderr)
        mean = sum(distances) / len(distances)
        return mean, sum(stderr**2 for stderr in stderrs) ** 0.5 / len(stderrs)

    def _real_statistics(self, resolution: tuple[int, int]) -> _RealStatistics:
        """Return the statistics of the real images at ``resolution``, computed once."""
        if resolution not in self._statistics_by_resolution:
            height, width = self._real_images.shape[2:]
            if not (1 <= resolution[0] <= height and 1 <= resolution[1] <= width):
                raise ValueError(
                    f"resolution must be at most {(height, width)}, but is {resolution}"
                )
            self._statistics_by_resolution[resolution] = self._compute_statistics(resolution)
        return self._statistics_by_resolution[resolution]

    def _compute_statistics(self, resolution: tuple[int, int]) -> _RealStatistics:
        images: Tensor | None = None
        moments: dict[int, Moments] = {}
        collapse_distance = 0.0
        if self.with_swd:
            images = torch.cat(list(self._real_batches(resolution, self.num_samples)))
        if self.kind == "swd" and images is not None:
            collapse_distance = self._swd(torch.zeros_like(images), images)
        elif self.kind == "energy-score" and self.extractor is not None:
            batches = [self.extractor(batch) for batch in self._real_batches(resolution)]
            features = torch.cat(batches).double()
            collapse_distance = float((features - features.mean(0)).norm(dim=1).mean())
        elif self.extractor is not None:
            moments = self._moments_by_class(self.extractor, resolution)
            traces = [float(class_moments.covariance.trace()) for class_moments in moments.values()]
            collapse_distance = sum(traces) / len(traces)
        # If the real images do not vary, leave the distances unscaled.
        return _RealStatistics(moments, images, collapse_distance or 1.0)

    def _moments_by_class(
        self, extractor: FeatureExtractor, resolution: tuple[int, int]
    ) -> dict[int, Moments]:
        feature_batches = map(extractor, self._real_batches(resolution))
        if self._labels is None:
            return {-1: Moments.from_chunks(feature_batches)}
        features = torch.cat(list(feature_batches))
        labels = self._labels[np.concatenate(list(self._row_batches()))]
        return {
            label: Moments.from_features(features[labels == label])
            for label in range(self.num_classes)
        }

    def _row_batches(self, max_images: int = MAX_REAL_IMAGES) -> Iterator[NDArray[np.int64]]:
        """Yield the row numbers of the first ``max_images`` images of the subset, in batches."""
        rows = self._subset_indices[:max_images]
        for start in range(0, len(rows), _BATCH_SIZE):
            # A memory map is faster to read in order.
            yield np.sort(rows[start : start + _BATCH_SIZE])

    def _real_batches(
        self, resolution: tuple[int, int], max_images: int = MAX_REAL_IMAGES
    ) -> Iterator[Tensor]:
        """Yield up to ``max_images`` real images, uint8 [n, C, h, w] at ``resolution``."""
        for rows in self._row_batches(max_images):
            yield downscale_uint8(torch.from_numpy(self._real_images[rows]), resolution)

    def _swd(self, samples: Tensor, real: Tensor) -> float:
        """Return the sliced Wasserstein distance x 10³ of equally many samples and real images."""
        count = min(len(samples), len(real))
        return sliced_wasserstein(
            samples[:count],
            real[:count],
            patches_per_image=_SWD_PATCHES_PER_LEVEL,
            num_repeats=1,
            seed=self.seed,
        ).mean

    def _swd_stderr(self, samples: Tensor, real: Tensor) -> float:
        """Return the standard error, from disjoint subsets of the samples."""
        distances = torch.tensor(
            [self._swd(samples[i::_NUM_SWD_SUBSETS], real) for i in range(_NUM_SWD_SUBSETS)]
        )
        return float(distances.std() / _NUM_SWD_SUBSETS**0.5)
