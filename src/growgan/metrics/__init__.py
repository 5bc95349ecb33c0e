"""Measures of how close generated images are to real ones.

Beside ``growgan.data``; imports no other part of growgan but its errors. ``score`` is what the
search uses; ``distances`` and ``sliced`` are pure functions, ``features`` what they may rest on.
"""

from __future__ import annotations

from growgan.metrics.distances import Moments, frechet, frechet_distance, frechet_with_error
from growgan.metrics.features import (
    DomainExtractor,
    Extractor,
    PixelExtractor,
    domain_extractor,
)
from growgan.metrics.score import Score, Scorer
from growgan.metrics.sliced import SlicedWasserstein, laplacian_pyramid, sliced_wasserstein

__all__ = [
    "DomainExtractor",
    "Extractor",
    "Moments",
    "PixelExtractor",
    "Score",
    "Scorer",
    "SlicedWasserstein",
    "domain_extractor",
    "frechet",
    "frechet_distance",
    "frechet_with_error",
    "laplacian_pyramid",
    "sliced_wasserstein",
]
