"""The registry of metrics: what each one needs, and how it is computed.

:mod:`growgan.metrics.definitions` registers the metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from torch import Tensor

from growgan.metrics.functional.prdc import PRDC, compute_prdc
from growgan.metrics.image_statistics import ImageStatistics
from growgan.metrics.progress import StageProgressFn, no_progress
from growgan.metrics.result import MeasurementProtocol, MetricResult
from growgan.registry import Registry

MetricRequirement = Literal[
    "features", "probabilities", "images", "real", "labels", "held_out", "generator"
]

NUM_NEIGHBORS = 3  # for precision and recall, as published
NUM_NEIGHBORS_DENSITY_COVERAGE = 5  # for density and coverage, as published


class LatentToImage(Protocol):
    """A generator as a function from latents float32 [n, latent_dim] to float images in [-1, 1]."""

    @property
    def latent_dim(self) -> int: ...

    def __call__(self, z: Tensor) -> Tensor: ...


@dataclass
class MetricInputs:
    """The two sets that a metric compares, and what else it may need.

    Attributes:
        fake: Generated images.
        real: Real images.
        held_out: Real images that are not in ``real`` and were not trained on.
        generator: The generator of the fake images.
        seed: Random seed of all draws.
        preprocessing: How the images were brought to their resolution, for the protocol.
        progress: Called with a stage, the number of finished items and the total.
    """

    fake: ImageStatistics
    real: ImageStatistics
    held_out: ImageStatistics | None = None
    generator: LatentToImage | None = None
    seed: int = 0
    preprocessing: str = "none"
    progress: StageProgressFn = no_progress

    @cached_property
    def prdc(self) -> PRDC:
        """Precision, recall, density and coverage, computed together once."""
        return compute_prdc(
            self.fake.features,
            self.real.features,
            k=NUM_NEIGHBORS,
            k_density_coverage=NUM_NEIGHBORS_DENSITY_COVERAGE,
        )

    def protocol(
        self,
        metric: str,
        estimator: str,
        *,
        num_images: tuple[int, int] | None = None,
        unused: tuple[MetricRequirement, ...] = (),
    ) -> MeasurementProtocol:
        """Return the protocol of a metric.

        Args:
            metric: Name of the metric.
            estimator: How the value is computed, with all constants.
            num_images: Number of generated and real images used; all of them by default.
            unused: "features" or "real", or both, if the metric does not use them.
        """
        uses_real = "real" not in unused
        return MeasurementProtocol(
            metric=metric,
            estimator=estimator,
            features="none" if "features" in unused else self.fake.extractor.fingerprint,
            reference=self.real.fingerprint[:32] if uses_real else "none",
            resolution=self.fake.resolution,
            num_images=num_images or (len(self.fake), len(self.real) if uses_real else 0),
            seed=self.seed,
            preprocessing=self.preprocessing,
        )


MetricFn = Callable[[MetricInputs], MetricResult]


@dataclass(frozen=True)
class MetricDefinition:
    """How a metric is computed, and what it needs."""

    compute: MetricFn
    requirements: frozenset[MetricRequirement]


METRICS: Registry[MetricDefinition] = Registry("metric")


def register_metric(
    name: str, summary: str, paper: str, requirements: set[MetricRequirement]
) -> Callable[[MetricFn], MetricFn]:
    """Return a decorator that registers a function as the metric ``name``."""

    def register(compute: MetricFn) -> MetricFn:
        definition = MetricDefinition(compute, frozenset(requirements))
        METRICS.register(name, summary, paper)(definition)
        return compute

    return register
