"""Metrics of how close generated images are to real ones.

* ``functional/``: one metric per file, as pure functions of features or images.
* ``features/``: extractors of features from images.
* ``registry`` and ``definitions``: every metric by name, and what it needs.
* ``evaluate``: all metrics of two sets; ``metric``: streaming metrics for your own training loop.
* ``scorer``: the score that the search uses.
* ``result``: values with their protocols.

This package imports no other part of growgan than ``data`` and the modules at its root.
"""

from __future__ import annotations

from growgan.metrics.evaluate import Evaluation, evaluate
from growgan.metrics.features.base import FeatureExtractor
from growgan.metrics.features.own import OwnExtractor, load_or_train_own_extractor
from growgan.metrics.features.pixels import PixelExtractor
from growgan.metrics.features.pretrained import FEATURES, load_extractor
from growgan.metrics.functional.classification_accuracy_score import (
    ClassificationAccuracy,
    classification_accuracy_score,
)
from growgan.metrics.functional.energy_score import energy_score
from growgan.metrics.functional.frechet_distance import (
    frechet_distance,
    frechet_distance_of_features,
    frechet_distance_of_moments,
    frechet_distance_with_stderr,
)
from growgan.metrics.functional.frechet_distance_at_infinity import (
    FrechetExtrapolation,
    frechet_distance_at_infinity,
)
from growgan.metrics.functional.inception_score import inception_score
from growgan.metrics.functional.intra_class_frechet_distance import (
    IntraClassFrechet,
    intra_class_frechet_distance,
)
from growgan.metrics.functional.kid import kid
from growgan.metrics.functional.memorization import Memorization, compute_memorization
from growgan.metrics.functional.moments import Moments
from growgan.metrics.functional.ms_ssim import mean_ms_ssim, ms_ssim
from growgan.metrics.functional.perceptual_path_length import perceptual_path_length
from growgan.metrics.functional.prdc import PRDC, compute_prdc
from growgan.metrics.functional.sliced_wasserstein import (
    SlicedWassersteinResult,
    laplacian_pyramid,
    sliced_wasserstein,
)
from growgan.metrics.functional.ssim import ssim
from growgan.metrics.functional.subset_estimate import SubsetEstimate
from growgan.metrics.metric import Metric
from growgan.metrics.registry import METRICS
from growgan.metrics.result import MeasurementProtocol, MetricResult, result_difference
from growgan.metrics.scorer import Score, Scorer

__all__ = [
    "FEATURES",
    "METRICS",
    "PRDC",
    "ClassificationAccuracy",
    "Evaluation",
    "FeatureExtractor",
    "FrechetExtrapolation",
    "IntraClassFrechet",
    "MeasurementProtocol",
    "Memorization",
    "Metric",
    "MetricResult",
    "Moments",
    "OwnExtractor",
    "PixelExtractor",
    "Score",
    "Scorer",
    "SlicedWassersteinResult",
    "SubsetEstimate",
    "classification_accuracy_score",
    "compute_memorization",
    "compute_prdc",
    "energy_score",
    "evaluate",
    "frechet_distance",
    "frechet_distance_at_infinity",
    "frechet_distance_of_features",
    "frechet_distance_of_moments",
    "frechet_distance_with_stderr",
    "inception_score",
    "intra_class_frechet_distance",
    "kid",
    "laplacian_pyramid",
    "load_extractor",
    "load_or_train_own_extractor",
    "mean_ms_ssim",
    "ms_ssim",
    "perceptual_path_length",
    "result_difference",
    "sliced_wasserstein",
    "ssim",
]
