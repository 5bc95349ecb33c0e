"""The Fréchet distance of two Gaussians, their streaming moments, and its sampling error.

All sums are float64, on the features' device where it can; a covariance divides by N - 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from growgan.metrics.checks import check_finite, checked, finite, matrix, pair

_CONDITION = 1e8  # beyond this ratio of pivots a Cholesky factor has lost its small directions
_ROUNDING = 1e-9  # of a sum of roots: where more might be lost, singular values are taken instead
_BLOCK = 256  # columns of a triangle computed at once


@dataclass(frozen=True)
class Estimate:
    """A metric's mean over subsets, ``value``, and its ``deviation`` over them.

    The deviation divides by the number of subsets, as in published figures; it is 0 for one.
    """

    value: float
    deviation: float

    @classmethod
    def over(cls, values: Tensor) -> Estimate:
        """Return the mean and deviation of ``values`` [subsets]."""
        return cls(float(values.mean()), float(values.std(correction=0)))


@dataclass(frozen=True)
class Extrapolation:
    """A distance extrapolated to infinitely many samples.

    ``value`` is the intercept of the line through ``distances`` over 1 / ``sizes``.
    """

    value: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of feature vectors.

    ``count`` is N, ``mean`` float64 [d], ``covariance`` float64 [d, d] divided by N - 1 (zeros for
    a single vector, so that chunks of one can be merged).
    """

    count: int
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Return the moments of ``features`` [N, d], N >= 1.

        Raises ValueError for another shape, no rows, or a value that is NaN or infinite.
        """
        x = checked(features)
        mean = x.mean(0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred / max(len(x) - 1, 1))

    @classmethod
    def of_chunks(cls, chunks: Iterable[Tensor]) -> Moments:
        """Return the moments of all rows of ``chunks``, each [n, d], one chunk in memory at a time.

        Equals :meth:`of` on their concatenation, up to rounding in float64.
        """
        total: Moments | None = None
        for chunk in chunks:
            part = cls.of(chunk)
            total = part if total is None else total.merge(part)
        if total is None:
            raise ValueError("chunks must hold at least one tensor of features, but was empty")
        return total

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets together (Chan et al. 1979, exact)."""
        n, m = self.count, other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (m / (n + m))
        scatter = self.covariance * (n - 1) + other.covariance * (m - 1)
        scatter = scatter + torch.outer(delta, delta) * (n * m / (n + m))
        return Moments(n + m, mean, scatter / (n + m - 1))


def frechet(a: Moments, b: Moments) -> float:
    """Return the squared Fréchet distance of the Gaussians with moments ``a`` and ``b``.

    Raises ValueError where either has fewer than 2 vectors.
    """
    for name, moments in (("a", a), ("b", b)):
        if moments.count < 2:
            raise ValueError(f"{name} must hold at least 2 feature vectors, but has 1")
    if b.count < a.count:  # the first is factored, and shows at once if it has too few vectors
        a, b = b, a
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Return |μa - μb|² + tr(A + B - 2 (A B)^½), at least 0, in float64.

    ``mean_*`` are [d], ``cov_*`` symmetric positive semi-definite [d, d], singular or not. Dowson &
    Landau 1982; as FID: Heusel et al. 2017, arXiv 1706.08500, eq. 6. With A = L Lᵀ the eigenvalues
    of A B are those of Lᵀ B L, which is symmetric. Raises ValueError on unequal shapes and NaN.
    """
    mean_a, mean_b = finite("mean_a", mean_a), finite("mean_b", mean_b)
    cov_a, cov_b = finite("cov_a", cov_a), finite("cov_b", cov_b)
    d = mean_a.numel()
    if mean_a.shape != (d,) or mean_b.shape != (d,):
        shapes = f"{tuple(mean_a.shape)} and {tuple(mean_b.shape)}"
        raise ValueError(f"mean_a and mean_b must be vectors of one length, but have {shapes}")
    for name, cov in (("cov_a", cov_a), ("cov_b", cov_b)):
        if cov.shape != (d, d):
            raise ValueError(f"{name} must be [{d}, {d}], but is {list(cov.shape)}")
    cross = _Root(cov_a).trace_with(cov_b)
    return _assemble(mean_a - mean_b, cov_a, cov_b, cross)


def frechet_of_samples(fake: Tensor, real: Tensor) -> float:
    """Return the squared Fréchet distance of the features ``fake`` [n, d] and ``real`` [m, d].

    Equals :func:`frechet` of their moments. A set of at most d vectors needs no covariance: with
    X and Y centred, tr (A B)^½ is the nuclear norm of X Yᵀ / √((n - 1)(m - 1)). Raises ValueError
    for fewer than 2 rows, different d, and values that are NaN or infinite.
    """
    x, y = pair(fake, real, least=2)
    x, y = finite("fake", x), finite("real", y)
    offset = x.mean(0) - y.mean(0)
    a, b = _sample_factor(x), _sample_factor(y)
    trace = float(a.square().sum() + b.square().sum())
    return max(float(offset @ offset) + trace - 2 * _nuclear(a.T @ b), 0.0)


def frechet_at_infinity(
    fake: Tensor, real: Moments, *, points: int = 15, smallest: int | None = None, seed: int = 0
) -> Extrapolation:
    """Return the distance of ``fake`` [N, d] to ``real``, extrapolated to infinitely many fakes.

    FID∞ of Chong & Forsyth 2020, arXiv 1911.07023: the distance's bias is nearly linear in 1 / n,
    so a line through the distances of ``points`` random subsets, their sizes n evenly spaced from
    ``smallest`` to N, is taken at 1 / n = 0; it can fall below zero. The bias of the reals stays.
    ``smallest`` is N / 10 as published, or 2 d (N / 2 if that is less) where it is larger: with
    fewer fakes than dimensions the line bends. Raises ValueError unless 2 <= ``smallest`` < N.
    """
    n, d = matrix("fake", fake).shape
    if smallest is None:
        smallest = max(n // 10, min(2 * d, n // 2), 2)
    if not 2 <= smallest < n or points < 2 or real.count < 2:
        raise ValueError(
            f"smallest must be from 2 to less than the number of fakes, and 2 or more points and "
            f"reals are needed, but got smallest={smallest}, points={points} for {n} fakes and "
            f"{real.count} reals"
        )
    if real.mean.shape != (d,):
        raise ValueError(f"fake must be [N, {real.mean.numel()}] as real is, but is {[n, d]}")
    check_finite("fake", fake)
    generator = torch.Generator().manual_seed(seed)
    root = _Root(real.covariance)
    sizes = torch.linspace(smallest, n, points, dtype=torch.float64).round().long()
    distances = torch.empty(points, dtype=torch.float64)
    for i, size in enumerate(sizes.tolist()):
        part = Moments.of(fake[torch.randperm(n, generator=generator)[:size]])
        cross = root.trace_with(part.covariance, singular=size <= d)
        offset = part.mean - real.mean
        distances[i] = _assemble(offset, part.covariance, real.covariance, cross)
    x = 1 / sizes.double()
    slope = (x - x.mean()) @ distances / (x - x.mean()).square().sum()
    value = float(distances.mean() - slope * x.mean())
    return Extrapolation(value, tuple(sizes.tolist()), tuple(distances.tolist()))


def frechet_with_error(
    features_fake: Tensor, real: Moments, groups: int = 8
) -> tuple[float, float]:
    """Return the squared Fréchet distance of ``features_fake`` [N, d] to ``real``, and its error.

    The standard error is the delete-a-group jackknife over ``groups`` groups of every
    ``groups``-th row, so that an order by class does no harm; it covers the draw of the fakes, not
    of the reals. Each group's moments are subtracted from the whole's, so a group costs one [d, d]
    eigenvalue problem. Raises ValueError where a group left out leaves fewer than 2 rows.
    """
    x = checked(features_fake)
    n, d = x.shape
    if not 2 <= groups <= n or n - -(-n // groups) < 2 or real.count < 2:
        raise ValueError(
            f"groups must be from 2 to the number of fakes with 2 left over, and 2 or more reals "
            f"are needed, but got groups={groups} for {n} fakes and {real.count} reals"
        )
    centre = x.mean(0)
    x = x - centre
    root, offset = _Root(real.covariance), centre - real.mean
    scatter = x.T @ x
    covariance = scatter / (n - 1)
    cross = root.trace_with(covariance, singular=n <= d)
    value = _assemble(offset, covariance, real.covariance, cross)
    left_out = torch.empty(groups, dtype=torch.float64)
    for g in range(groups):
        part = x[g::groups]
        kept = n - len(part)
        shift = -part.sum(0) / kept
        covariance = scatter - part.T @ part - kept * torch.outer(shift, shift)
        covariance = covariance / (kept - 1)
        cross = root.trace_with(covariance, singular=kept <= d)
        left_out[g] = _assemble(offset + shift, covariance, real.covariance, cross)
    spread = (left_out - left_out.mean()).square().sum()
    return value, float((spread * (groups - 1) / groups).sqrt())


class _Root:
    """A factor L of a covariance A = L Lᵀ, made once and used against many others."""

    def __init__(self, covariance: Tensor) -> None:
        self.factor, self.regular = _factor(covariance)

    def trace_with(self, other: Tensor, *, singular: bool = False) -> float:
        """Return tr (A B)^½ for ``other`` = B [d, d], which may be known to be ``singular``."""
        if self.regular and not singular:
            total = _sum_of_roots(_congruent(self.factor, other))
            if total is not None:
                return total
        return _nuclear(self.factor.T @ _factor(other)[0])


def _factor(covariance: Tensor) -> tuple[Tensor, bool]:
    """Return L [d, r] with L Lᵀ = ``covariance``, and whether it is a well-conditioned triangle."""
    lower, info = torch.linalg.cholesky_ex(covariance)
    if int(info) == 0:
        pivots = lower.diagonal().square()
        if float(pivots.max()) < _CONDITION * float(pivots.min()):
            return lower, True
    values, vectors = torch.linalg.eigh(covariance)
    floor = float(values[-1].clamp(min=0)) * len(values) * torch.finfo(torch.float64).eps
    kept = values > floor
    return vectors[:, kept] * values[kept].sqrt(), False


def _sample_factor(x: Tensor) -> Tensor:
    """Return L [d, r] with L Lᵀ the covariance of ``x`` [n, d], r < n.

    A reflection that turns the vector of ones into an axis takes the mean out of the other n - 1
    rows: were it only subtracted, a null direction would be left.
    """
    n, d = x.shape
    if n > d:
        return _factor(Moments.of(x).covariance)[0]
    centred = x - x.mean(0)
    return (centred[1:] - centred[0] / (1 + n**0.5)).T / (n - 1) ** 0.5


def _nuclear(matrix: Tensor) -> float:
    """Return the sum of the singular values of ``matrix`` [n, m]."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = wide.new_zeros(len(wide), len(wide))
    for start in range(0, len(wide), _BLOCK):
        block = slice(start, start + _BLOCK)
        gram[start:, block] = wide[start:] @ wide[block].T
    total = _sum_of_roots(gram)
    return float(torch.linalg.svdvals(wide).sum()) if total is None else total


def _congruent(lower: Tensor, b: Tensor) -> Tensor:
    """Return the lower triangle of Lᵀ B L for a triangle L = ``lower`` [d, d], skipping zeros."""
    result = torch.zeros_like(b)
    for start in range(0, len(b), _BLOCK):
        block = slice(start, start + _BLOCK)
        columns = b[start:, start:] @ lower[start:, block]
        result[start:, block] = lower[start:, start:].T @ columns
    return result


def _sum_of_roots(gram: Tensor) -> float | None:
    """Return the sum of the roots of the eigenvalues of ``gram`` [d, d], of which the lower
    triangle is read; None where rounding could matter: a null eigenvalue, 0 ± ε, has root 1e-8."""
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    if len(values) == 0:
        return 0.0
    roots = values.sqrt()
    noise = 4 * torch.finfo(values.dtype).eps * values[-1]
    # The root of λ ± noise is off by noise / (2 √λ), and that of 0 ± noise by at most √noise.
    lost = float((noise / (roots + noise.sqrt())).sum())
    total = float(roots.sum())
    return total if lost <= _ROUNDING * total else None


def _assemble(offset: Tensor, cov_a: Tensor, cov_b: Tensor, cross: float) -> float:
    """Return the squared distance from its parts; rounding below zero becomes 0."""
    trace = float(cov_a.diagonal().sum() + cov_b.diagonal().sum())
    return max(float(offset @ offset) + trace - 2 * cross, 0.0)
