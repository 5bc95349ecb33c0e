"""Every metric by name: what it needs of the two sides, and its figure with its protocol.

A new metric is one function here: it is then listed, evaluated, fed and written down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growgan.metrics import domain
from growgan.metrics.accuracy import Labelled, classification_accuracy_score
from growgan.metrics.classes import frechet_by_class, inception_score
from growgan.metrics.distances import frechet, frechet_at_infinity, frechet_with_error
from growgan.metrics.kernel import kid
from growgan.metrics.neighbours import Neighbourhoods, memorisation, neighbourhoods
from growgan.metrics.paths import perceptual_path_length
from growgan.metrics.protocol import Figure
from growgan.metrics.protocol import Protocol as Measured
from growgan.metrics.side import Side
from growgan.metrics.similarity import mean_ms_ssim
from growgan.metrics.sliced import sliced_wasserstein
from growgan.metrics.watch import Watch, unwatched
from growgan.registry import Registry

Need = Literal["features", "probabilities", "images", "reals", "labels", "held out", "generator"]

K, K_DENSITY = 3, 5  # neighbours
_GROUPS = 8  # of the jackknife
_SLICED = 16_384  # images of SWD, as published
_PAIRS = 10_000  # of MS-SSIM
_PATHS = 50_000  # of the perceptual path length
_LEVEL = 0.01  # share of held-out reals that are as near to a real as what counts as a copy


class Walk(Protocol):
    """A generator whose latents can be walked: float32 [n, latent] to float images in [-1, 1]."""

    @property
    def latent(self) -> int: ...

    def __call__(self, z: Tensor) -> Tensor: ...


@dataclass
class Comparison:
    """What a metric may look at. ``held_out`` are reals that nothing was trained on."""

    fake: Side
    real: Side
    held_out: Side | None = None
    generator: Walk | None = None
    seed: int = 0
    preparation: str = "none"
    watch: Watch = unwatched

    @cached_property
    def neighbourhoods(self) -> Neighbourhoods:
        """Precision, recall, density and coverage, which share their work."""
        return neighbourhoods(self.fake.features, self.real.features, k=K, k_density=K_DENSITY)

    def protocol(
        self,
        metric: str,
        estimator: str,
        *,
        counts: tuple[int, int] | None = None,
        without: tuple[Need, ...] = (),
    ) -> Measured:
        """Return the protocol of a figure, ``without`` features or reals where it needs none."""
        reals = "reals" not in without
        return Measured(
            metric=metric,
            estimator=estimator,
            features="none" if "features" in without else self.fake.extractor.fingerprint,
            reals=self.real.fingerprint[:32] if reals else "none",
            resolution=self.fake.resolution,
            counts=counts or (len(self.fake), len(self.real) if reals else 0),
            seed=self.seed,
            preparation=self.preparation,
        )


@dataclass(frozen=True)
class Measure:
    """A metric: how it is taken, and what it needs."""

    take: Callable[[Comparison], Figure]
    needs: frozenset[Need]


METRICS: Registry[Measure] = Registry("metric")
Take = Callable[[Comparison], Figure]


def metric(name: str, summary: str, paper: str, *needs: Need) -> Callable[[Take], Take]:
    """Return a decorator that enters a function as the metric ``name``."""

    def enter(take: Take) -> Take:
        METRICS.register(name, summary, paper)(Measure(take, frozenset(needs)))
        return take

    return enter


@metric(
    "fid",
    "Frechet distance of feature Gaussians",
    "Heusel et al. 2017, 1706.08500",
    "features",
    "reals",
)
def fid(c: Comparison) -> Figure:
    """Return the squared Fréchet distance, with the jackknife's error where there are enough."""
    protocol = c.protocol("fid", f"covariance over N - 1; error: jackknife of {_GROUPS}")
    if len(c.fake) < 2 * _GROUPS:
        return Figure(frechet(c.fake.moments, c.real.moments), protocol)
    value, error = frechet_with_error(c.fake.features, c.real.moments, _GROUPS)
    return Figure(value, protocol, error)


@metric(
    "kid", "kernel distance, unbiased", "Binkowski et al. 2018, 1801.01401", "features", "reals"
)
def kernel_distance(c: Comparison) -> Figure:
    """Return the squared MMD's mean over subsets, and its deviation over them."""
    least = min(len(c.fake), len(c.real))
    subsets, size = 100, 1000 if least > 1000 else max(2, least // 2)
    found = kid(c.fake.features, c.real.features, subsets=subsets, size=size, seed=c.seed)
    estimator = f"(x y / d + 1)^3, unbiased; {subsets} subsets of {size}"
    return Figure(found.value, c.protocol("kid", estimator), deviation=found.deviation)


@metric(
    "is",
    "Inception score: each sure, all varied",
    "Salimans et al. 2016, 1606.03498",
    "probabilities",
)
def inception(c: Comparison) -> Figure:
    """Return the Inception score's mean and deviation over ten parts."""
    splits = min(10, len(c.fake))
    found = inception_score(c.fake.probabilities, probabilities=True, splits=splits, seed=c.seed)
    estimator = f"{splits} shuffled splits, logits without bias"
    protocol = c.protocol("is", estimator, without=("reals",))
    return Figure(found.value, protocol, deviation=found.deviation)


def _neighbourhood(name: str, summary: str, paper: str, k: int) -> None:
    @metric(name, summary, paper, "features", "reals")
    def take(c: Comparison) -> Figure:
        value = getattr(c.neighbourhoods, name)
        return Figure(value, c.protocol(name, f"closed balls, k={k}"))


_neighbourhood("precision", "share of fakes near reals", "Kynkaanniemi et al. 2019, 1904.06991", K)
_neighbourhood("recall", "share of reals near fakes", "Kynkaanniemi et al. 2019, 1904.06991", K)
_neighbourhood(
    "density", "reals near a fake, of those expected", "Naeem et al. 2020, 2002.09797", K_DENSITY
)
_neighbourhood(
    "coverage", "share of reals with a fake near", "Naeem et al. 2020, 2002.09797", K_DENSITY
)


@metric(
    "fid-infinity", "fid of endless fakes", "Chong & Forsyth 2020, 1911.07023", "features", "reals"
)
def fid_infinity(c: Comparison) -> Figure:
    """Return the distance extrapolated over sample size; ``details`` holds the points."""
    found = frechet_at_infinity(c.fake.features, c.real.moments, seed=c.seed)
    pairs = zip(found.sizes, found.distances, strict=True)
    estimator = f"line over 1/n through {len(found.sizes)} sizes from {found.sizes[0]}"
    protocol = c.protocol("fid-infinity", estimator)
    return Figure(found.value, protocol, details={str(n): value for n, value in pairs})


@metric(
    "intra-fid",
    "mean fid within classes",
    "Miyato & Koyama 2018, 1802.05637",
    "features",
    "reals",
    "labels",
)
def intra_fid(c: Comparison) -> Figure:
    """Return the mean over classes; ``details`` holds each class's distance."""
    sides = []
    for side in (c.fake, c.real):
        labels = torch.from_numpy(np.array(side.labels))
        sides += [side.features[labels >= 0], labels[labels >= 0]]
    found = frechet_by_class(*sides)
    details = {str(name): value for name, value in found.classes.items()}
    estimator = f"covariance over N - 1, mean over classes, labels {c.real.labelling[:16]}"
    protocol = c.protocol("intra-fid", estimator, counts=(len(sides[0]), len(sides[2])))
    return Figure(found.value, protocol, details=details)


@metric(
    "swd", "sliced Wasserstein distance x 1000", "Karras et al. 2018, 1710.10196", "images", "reals"
)
def swd(c: Comparison) -> Figure:
    """Return the average over levels of the pyramid; ``details`` holds each level."""
    count = min(len(c.fake), len(c.real), _SLICED)
    sets = [_some(side, count, c.seed) for side in (c.fake, c.real)]
    progress = partial(c.watch, "patches")
    found = sliced_wasserstein(*sets, seed=c.seed, progress=progress)
    estimator = "128 patches of 7x7 an image, 4 x 128 directions"
    protocol = c.protocol("swd", estimator, counts=(count, count), without=("features",))
    return Figure(found.average, protocol, found.stderr, found.levels)


@metric(
    "ms-ssim",
    "likeness of pairs of fakes: 1 is collapse",
    "Odena et al. 2017, 1610.09585",
    "images",
)
def likeness(c: Comparison) -> Figure:
    """Return the mean over pairs of fakes; ``details`` holds that of reals, if there are any."""
    sets = [_some(side, 2 * _PAIRS, c.seed) for side in (c.fake, c.real) if len(side)]
    value, *yardstick = (mean_ms_ssim(each, pairs=_PAIRS, seed=c.seed) for each in sets)
    counts = (len(sets[0]), 0)
    estimator = f"{_PAIRS} pairs, five scales"
    protocol = c.protocol("ms-ssim", estimator, counts=counts, without=("features", "reals"))
    return Figure(value, protocol, details=dict(zip(["reals"], yardstick, strict=False)))


@metric(
    "ppl",
    "how unevenly latents become images",
    "Karras et al. 2019, 1812.04948",
    "features",
    "generator",
)
def path_length(c: Comparison) -> Figure:
    """Return the perceptual path length of the generator, in the extractor's features."""
    extractor, generator = c.fake.extractor, c.generator
    if generator is None:
        raise ValueError("generator must be given for ppl")
    value = perceptual_path_length(
        generator,
        lambda images: extractor.continuous((images * 127.5 + 128).clamp(0, 255)),
        generator.latent,
        pairs=_PATHS,
        seed=c.seed,
        progress=partial(c.watch, "paths"),
    )
    estimator = f"{_PATHS} full paths in z, step 1e-4, less 1 % at each end"
    protocol = c.protocol("ppl", estimator, counts=(_PATHS, 0), without=("reals",))
    return Figure(value, replace(protocol, quantisation="none"))


@metric(
    "cas",
    "accuracy on reals of what learnt from fakes",
    "Ravuri & Vinyals 2019, 1905.10887",
    "images",
    "reals",
    "labels",
    "held out",
)
def accuracy(c: Comparison) -> Figure:
    """Return the accuracy on held-out reals; ``details`` holds that of learning from reals."""
    sides = [side for side in (c.fake, c.real, c.held_out) if side is not None]
    progress = partial(c.watch, "training of two classifiers")
    found = classification_accuracy_score(*map(_labelled, sides), seed=c.seed, progress=progress)
    tested = f"{sides[2].fingerprint[:16]}, labels {sides[2].labelling[:16]}"
    estimator = (
        f"domain network {domain.VERSION}, labels {c.real.labelling[:16]}, tested on {tested}"
    )
    counts = (found.count, found.count)
    protocol = c.protocol("cas", estimator, counts=counts, without=("features",))
    return Figure(found.score, protocol, details={"reals": found.yardstick})


@metric("memorisation", "share of fakes that are copies", "", "features", "reals", "held out")
def copies(c: Comparison) -> Figure:
    """Return the share of near copies; ``details`` holds the share that new draws would show."""
    if c.held_out is None:
        raise ValueError("held_out must be given for memorisation")
    sets = (side.features for side in (c.fake, c.real, c.held_out))
    found = memorisation(*sets, level=_LEVEL)
    estimator = f"nearest of all, level {_LEVEL}, held out {c.held_out.fingerprint[:16]}"
    details = {"expected": found.expected, "threshold": found.threshold}
    return Figure(found.share, c.protocol("memorisation", estimator), details=details)


def _some(side: Side, count: int, seed: int) -> Tensor:
    """Return ``count`` images at random, in their order: sets are often ordered by class."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(side))[:count])
    return torch.from_numpy(np.ascontiguousarray(side.images[rows]))


def _labelled(side: Side) -> Labelled:
    labels: NDArray[np.int64] = np.array(side.labels)
    images: Any = side.images if (labels >= 0).all() else side.images[labels >= 0]
    return images, labels[labels >= 0]
