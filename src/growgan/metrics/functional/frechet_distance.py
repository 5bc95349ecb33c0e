"""Squared Fréchet distance between two Gaussians fitted to features, with its standard error.

On Inception features this is the FID; on other features it is a Fréchet distance on those features
and does not compare with published FIDs. All sums are float64, on the device of the features where
it supports float64.

This implementation is our own because torchmetrics offers the distance only together with its
own Inception weights, without a standard error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growgan.metrics.functional.moments import Moments
from growgan.metrics.validation import check_matrix, check_same_width, to_finite_float64

NUM_JACKKNIFE_GROUPS = 8  # groups of samples for the standard error: i, i + 8, i + 16, ...

_MAX_CONDITION_NUMBER = 1e8  # ratio of pivots beyond which Cholesky loses small directions
_MAX_RELATIVE_ROUNDING_ERROR = 1e-9  # beyond it, singular values replace roots of eigenvalues
_COLUMN_BLOCK_SIZE = 256  # columns of a triangular product computed at once


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Return |μa - μb|² + tr(A + B - 2 (A B)^½), at least 0, in float64.

    Dowson & Landau 1982; as FID: Heusel et al. 2017, arXiv 1706.08500, eq. 6. With A = L Lᵀ, the
    eigenvalues of A B are those of the symmetric Lᵀ B L.

    Args:
        mean_a: Mean of the first Gaussian, [d].
        cov_a: Its covariance, symmetric positive semidefinite [d, d]; it may be singular.
        mean_b: Mean of the second Gaussian, [d].
        cov_b: Its covariance, as ``cov_a``.

    Raises:
        ValueError: Shapes that do not match, NaN or infinity.
    """
    mean_a, mean_b = to_finite_float64("mean_a", mean_a), to_finite_float64("mean_b", mean_b)
    cov_a, cov_b = to_finite_float64("cov_a", cov_a), to_finite_float64("cov_b", cov_b)
    d = mean_a.numel()
    if mean_a.shape != (d,) or mean_b.shape != (d,):
        shapes = f"{list(mean_a.shape)} and {list(mean_b.shape)}"
        raise ValueError(f"mean_a and mean_b must be vectors of one length, but got {shapes}")
    for name, cov in (("cov_a", cov_a), ("cov_b", cov_b)):
        if cov.shape != (d, d):
            raise ValueError(f"{name} must be [{d}, {d}], but got {list(cov.shape)}")
    trace_sqrt = CovarianceFactor(cov_a).trace_sqrt_product(cov_b)
    return combine_terms(mean_a - mean_b, cov_a, cov_b, trace_sqrt)


def frechet_distance_of_moments(a: Moments, b: Moments) -> float:
    """Return the squared Fréchet distance between the Gaussians with moments ``a`` and ``b``.

    Raises:
        ValueError: One of them has fewer than 2 vectors.
    """
    for name, moments in (("a", a), ("b", b)):
        if moments.count < 2:
            raise ValueError(f"{name} must hold at least 2 feature vectors, but has 1")
    # Factorize the covariance of fewer vectors: Cholesky fails early if it is singular.
    if b.count < a.count:
        a, b = b, a
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def frechet_distance_of_features(fake: Tensor, real: Tensor) -> float:
    """Return the squared Fréchet distance between the features ``fake`` [n, d] and ``real`` [m, d].

    The result equals :func:`frechet_distance` of their moments. A set with at most d vectors needs
    no covariance: for centered X and Y, tr (A B)^½ is the nuclear norm of
    X Yᵀ / √((n - 1)(m - 1)).

    Raises:
        ValueError: Fewer than 2 rows, different d, NaN or infinity.
    """
    check_same_width(fake=fake, real=real, min_rows=2)
    x, y = to_finite_float64("fake", fake), to_finite_float64("real", real)
    mean_difference = x.mean(0) - y.mean(0)
    a, b = _covariance_factor_of_features(x), _covariance_factor_of_features(y)
    trace = float(a.square().sum() + b.square().sum())
    squared_shift = float(mean_difference @ mean_difference)
    return max(squared_shift + trace - 2 * _nuclear_norm(a.T @ b), 0.0)


def frechet_distance_with_stderr(
    fake: Tensor, real: Moments, num_groups: int = NUM_JACKKNIFE_GROUPS
) -> tuple[float, float]:
    """Return the squared Fréchet distance of ``fake`` [N, d] to ``real``, and its standard error.

    The standard error is the delete-a-group jackknife. Group g holds every ``num_groups``-th row
    from row g on, so that rows sorted by class do not bias it. It covers the sampling of the fake
    images, not that of the real ones. The moments of a group are subtracted from those of all rows,
    so a group costs one [d, d] eigenvalue problem.

    Raises:
        ValueError: ``num_groups`` is out of range, or fewer than 2 rows remain without a group.
    """
    check_matrix("fake", fake)
    x = to_finite_float64("fake", fake)
    n, d = x.shape
    if not 2 <= num_groups <= n or n - -(-n // num_groups) < 2 or real.count < 2:
        raise ValueError(
            "num_groups must be at least 2 and leave at least 2 rows of fake without any group, and"
            f" real must hold at least 2 rows, but got num_groups={num_groups} for {n} rows of fake"
            f" and {real.count} of real"
        )
    center = x.mean(0)
    x = x - center
    factor, mean_difference = CovarianceFactor(real.covariance), center - real.mean
    scatter = x.T @ x
    covariance = scatter / (n - 1)
    trace_sqrt = factor.trace_sqrt_product(covariance, singular=n <= d)
    value = combine_terms(mean_difference, covariance, real.covariance, trace_sqrt)
    values_without_group = torch.empty(num_groups, dtype=torch.float64)
    for index in range(num_groups):
        group = x[index::num_groups]
        num_left = n - len(group)
        shift = -group.sum(0) / num_left
        covariance = scatter - group.T @ group - num_left * torch.outer(shift, shift)
        covariance = covariance / (num_left - 1)
        trace_sqrt = factor.trace_sqrt_product(covariance, singular=num_left <= d)
        values_without_group[index] = combine_terms(
            mean_difference + shift, covariance, real.covariance, trace_sqrt
        )
    squares = (values_without_group - values_without_group.mean()).square().sum()
    return value, float((squares * (num_groups - 1) / num_groups).sqrt())


class CovarianceFactor:
    """A factor L of a covariance A = L Lᵀ, computed once and used with many other covariances."""

    def __init__(self, covariance: Tensor) -> None:
        self.factor, self.well_conditioned = _factorize_covariance(covariance)

    def trace_sqrt_product(self, other: Tensor, *, singular: bool = False) -> float:
        """Return tr (A B)^½ for B = ``other`` [d, d].

        Args:
            other: The covariance B.
            singular: Whether B is known to be singular, which avoids a failing attempt.
        """

        if self.well_conditioned and not singular:
            trace = _sum_sqrt_eigenvalues(_lower_congruence(self.factor, other))
            if trace is not None:
                return trace
        return _nuclear_norm(self.factor.T @ _factorize_covariance(other)[0])


def combine_terms(
    mean_difference: Tensor, cov_a: Tensor, cov_b: Tensor, trace_sqrt_product: float
) -> float:
    """Return the squared distance from its terms; a rounding error below zero becomes 0."""
    trace = float(cov_a.diagonal().sum() + cov_b.diagonal().sum())
    return max(float(mean_difference @ mean_difference) + trace - 2 * trace_sqrt_product, 0.0)


def _factorize_covariance(covariance: Tensor) -> tuple[Tensor, bool]:
    """Return L [d, r] with L Lᵀ = ``covariance``, and whether it is a well-conditioned triangle."""
    lower, info = torch.linalg.cholesky_ex(covariance)
    if int(info) == 0:
        pivots = lower.diagonal().square()
        if float(pivots.max()) < _MAX_CONDITION_NUMBER * float(pivots.min()):
            return lower, True
    values, vectors = torch.linalg.eigh(covariance)
    floor = float(values[-1].clamp(min=0)) * len(values) * torch.finfo(torch.float64).eps
    nonzero = values > floor
    return vectors[:, nonzero] * values[nonzero].sqrt(), False


def _covariance_factor_of_features(features: Tensor) -> Tensor:
    """Return L [d, r] with L Lᵀ the covariance of ``features`` [n, d], r < n.

    A reflection that maps the vector of ones to a coordinate axis removes the mean from the other
    n - 1 rows. Subtracting the mean alone would leave a null direction.
    """
    n, d = features.shape
    if n > d:
        return _factorize_covariance(Moments.from_features(features).covariance)[0]
    centered = features - features.mean(0)
    return (centered[1:] - centered[0] / (1 + n**0.5)).T / (n - 1) ** 0.5


def _nuclear_norm(matrix: Tensor) -> float:
    """Return the sum of the singular values of ``matrix`` [n, m]."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = wide.new_zeros(len(wide), len(wide))
    for start in range(0, len(wide), _COLUMN_BLOCK_SIZE):
        block = slice(start, start + _COLUMN_BLOCK_SIZE)
        gram[start:, block] = wide[start:] @ wide[block].T
    norm = _sum_sqrt_eigenvalues(gram)
    return float(torch.linalg.svdvals(wide).sum()) if norm is None else norm


def _lower_congruence(lower: Tensor, b: Tensor) -> Tensor:
    """Return the lower triangle of Lᵀ B L for triangular L = ``lower`` [d, d], skipping zeros."""
    result = torch.zeros_like(b)
    for start in range(0, len(b), _COLUMN_BLOCK_SIZE):
        block = slice(start, start + _COLUMN_BLOCK_SIZE)
        columns = b[start:, start:] @ lower[start:, block]
        result[start:, block] = lower[start:, start:].T @ columns
    return result


def _sum_sqrt_eigenvalues(gram: Tensor) -> float | None:
    """Return the sum of the square roots of the eigenvalues of ``gram`` [d, d].

    Only the lower triangle is read. The result is None if rounding could matter: a null eigenvalue
    computed as ε has the root √ε, which is about 1e-8.
    """
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    if len(values) == 0:
        return 0.0
    roots = values.sqrt()
    noise = 4 * torch.finfo(values.dtype).eps * values[-1]
    # The root of λ ± noise is off by noise / (2 √λ), and that of 0 ± noise by at most √noise.
    rounding_error = float((noise / (roots + noise.sqrt())).sum())
    total = float(roots.sum())
    return total if rounding_error <= _MAX_RELATIVE_ROUNDING_ERROR * total else None
