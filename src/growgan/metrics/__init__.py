"""Measures of how close generated images are to real ones.

Beside ``growgan.data``; imports no other part of growgan but its errors, its registry and how
``data.files`` writes the cache. ``score`` is what the search uses. ``distances``, ``kernel``,
``classes`` and ``neighbours`` are pure functions of features, which ``features`` and ``networks``
take from images; ``sliced`` and ``similarity`` are functions of images alone; ``paths`` walks G's
latents, ``accuracy`` trains on its images. ``protocol`` says what a figure was measured with.
"""

from __future__ import annotations

from growgan.metrics.accuracy import ClassificationAccuracy, classification_accuracy_score
from growgan.metrics.classes import ByClass, frechet_by_class, inception_score
from growgan.metrics.distances import (
    Estimate,
    Extrapolation,
    Moments,
    frechet,
    frechet_at_infinity,
    frechet_distance,
    frechet_of_samples,
    frechet_with_error,
)
from growgan.metrics.evaluate import Evaluation, evaluate
from growgan.metrics.features import (
    DomainExtractor,
    Extractor,
    PixelExtractor,
    domain_extractor,
)
from growgan.metrics.kernel import kid
from growgan.metrics.neighbours import (
    Memorisation,
    Neighbourhoods,
    memorisation,
    neighbourhoods,
)
from growgan.metrics.networks import FEATURES, load_extractor
from growgan.metrics.paths import perceptual_path_length
from growgan.metrics.protocol import Figure, Protocol, compare
from growgan.metrics.score import Score, Scorer
from growgan.metrics.similarity import mean_ms_ssim, ms_ssim
from growgan.metrics.sliced import SlicedWasserstein, laplacian_pyramid, sliced_wasserstein
from growgan.metrics.streaming import Metric
from growgan.metrics.suite import METRICS

__all__ = [
    "FEATURES",
    "METRICS",
    "ByClass",
    "ClassificationAccuracy",
    "DomainExtractor",
    "Estimate",
    "Evaluation",
    "Extractor",
    "Extrapolation",
    "Figure",
    "Memorisation",
    "Metric",
    "Moments",
    "Neighbourhoods",
    "PixelExtractor",
    "Protocol",
    "Score",
    "Scorer",
    "SlicedWasserstein",
    "classification_accuracy_score",
    "compare",
    "domain_extractor",
    "evaluate",
    "frechet",
    "frechet_at_infinity",
    "frechet_by_class",
    "frechet_distance",
    "frechet_of_samples",
    "frechet_with_error",
    "inception_score",
    "kid",
    "laplacian_pyramid",
    "load_extractor",
    "mean_ms_ssim",
    "memorisation",
    "ms_ssim",
    "neighbourhoods",
    "perceptual_path_length",
    "sliced_wasserstein",
]
