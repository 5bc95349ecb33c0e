"""Fréchet distance extrapolated to infinitely many generated images (FID∞)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from growgan.metrics.functional.frechet_distance import CovarianceFactor, combine_terms
from growgan.metrics.functional.moments import Moments
from growgan.metrics.validation import check_finite, check_matrix


@dataclass(frozen=True)
class FrechetExtrapolation:
    """A distance extrapolated to infinitely many samples.

    ``value`` is the intercept of the line fitted to ``distances`` over 1 / ``sizes``.
    """

    value: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_distance_at_infinity(
    fake: Tensor,
    real: Moments,
    *,
    num_points: int = 15,
    min_samples: int | None = None,
    seed: int = 0,
) -> FrechetExtrapolation:
    """Return the distance of ``fake`` [N, d] to ``real``, extrapolated to infinitely many rows.

    FID∞ of Chong & Forsyth 2020, arXiv 1911.07023. The bias of the distance is nearly linear in
    1 / n, so a line is fitted to the distances of random subsets of size n and evaluated at
    1 / n = 0. The value can be negative. The bias from the number of real images remains.

    Args:
        fake: Features of generated images.
        real: Moments of the features of real images.
        num_points: Number of subsets. Their sizes are evenly spaced from ``min_samples`` to N.
        min_samples: Size of the smallest subset. The default is the larger of N / 10, as published,
            and 2 d (but at most N / 2): with fewer samples than dimensions the line bends.
        seed: Random seed of the subsets.

    Raises:
        ValueError: ``min_samples`` is below 2 or not below N, fewer than 2 points, different d, NaN
            or infinity.
    """
    check_matrix("fake", fake)
    n, d = fake.shape
    if min_samples is None:
        min_samples = max(n // 10, min(2 * d, n // 2), 2)
    if not 2 <= min_samples < n or num_points < 2 or real.count < 2:
        raise ValueError(
            "min_samples must be at least 2 and less than the number of rows of fake, and"
            " num_points and the rows of real must be at least 2, but got"
            f" min_samples={min_samples}, num_points={num_points} for {n} rows of fake and"
            f" {real.count} of real"
        )
    if real.mean.shape != (d,):
        raise ValueError(f"fake must be [N, {real.mean.numel()}] like real, but got {[n, d]}")
    check_finite("fake", fake)
    generator = torch.Generator().manual_seed(seed)
    factor = CovarianceFactor(real.covariance)
    sizes = torch.linspace(min_samples, n, num_points, dtype=torch.float64).round().long()
    distances = torch.empty(num_points, dtype=torch.float64)
    for index, size in enumerate(sizes.tolist()):
        subset = Moments.from_features(fake[torch.randperm(n, generator=generator)[:size]])
        trace_sqrt = factor.trace_sqrt_product(subset.covariance, singular=size <= d)
        distances[index] = combine_terms(
            subset.mean - real.mean, subset.covariance, real.covariance, trace_sqrt
        )
    x = 1 / sizes.double()
    slope = (x - x.mean()) @ distances / (x - x.mean()).square().sum()
    intercept = float(distances.mean() - slope * x.mean())
    return FrechetExtrapolation(intercept, tuple(sizes.tolist()), tuple(distances.tolist()))
