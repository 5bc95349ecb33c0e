"""The Fréchet distance of two Gaussians, their streaming moments, and its sampling error.

All sums are float64, on the features' device where it can; a covariance divides by N - 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_CONDITION = 1e8  # beyond this ratio of Cholesky pivots, squaring the spectrum loses digits


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
        x = _checked(features)
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
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Return |μa - μb|² + tr(A + B - 2 (A B)^½), at least 0, in float64.

    ``mean_*`` are [d], ``cov_*`` symmetric positive semi-definite [d, d], singular or not. Dowson &
    Landau 1982; as FID: Heusel et al. 2017, arXiv 1706.08500, eq. 6. With A = L Lᵀ the eigenvalues
    of A B are those of Lᵀ B L, which is symmetric. Raises ValueError on unequal shapes and NaN.
    """
    mean_a, mean_b = _finite("mean_a", mean_a), _finite("mean_b", mean_b)
    cov_a, cov_b = _finite("cov_a", cov_a), _finite("cov_b", cov_b)
    d = mean_a.numel()
    if mean_a.shape != (d,) or mean_b.shape != (d,):
        shapes = f"{tuple(mean_a.shape)} and {tuple(mean_b.shape)}"
        raise ValueError(f"mean_a and mean_b must be vectors of one length, but have {shapes}")
    for name, cov in (("cov_a", cov_a), ("cov_b", cov_b)):
        if cov.shape != (d, d):
            raise ValueError(f"{name} must be [{d}, {d}], but is {list(cov.shape)}")
    cross = _Root(cov_a).trace_with(cov_b)
    return _assemble(mean_a - mean_b, cov_a, cov_b, cross)


def frechet_with_error(
    features_fake: Tensor, real: Moments, groups: int = 8
) -> tuple[float, float]:
    """Return the squared Fréchet distance of ``features_fake`` [N, d] to ``real``, and its error.

    The standard error is the delete-a-group jackknife over ``groups`` groups of every
    ``groups``-th row, so that an order by class does no harm; it covers the draw of the fakes, not
    of the reals. Each group's moments are subtracted from the whole's, so a group costs one [d, d]
    eigenvalue problem. Raises ValueError where a group left out leaves fewer than 2 rows.
    """
    x = _checked(features_fake)
    n = len(x)
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
    value = _assemble(offset, covariance, real.covariance, root.trace_with(covariance))
    left_out = torch.empty(groups, dtype=torch.float64)
    for g in range(groups):
        part = x[g::groups]
        kept = n - len(part)
        shift = -part.sum(0) / kept
        covariance = scatter - part.T @ part - kept * torch.outer(shift, shift)
        covariance = covariance / (kept - 1)
        cross = root.trace_with(covariance)
        left_out[g] = _assemble(offset + shift, covariance, real.covariance, cross)
    spread = (left_out - left_out.mean()).square().sum()
    return value, float((spread * (groups - 1) / groups).sqrt())


class _Root:
    """A factor L of a covariance A = L Lᵀ, made once and used against many others."""

    def __init__(self, covariance: Tensor) -> None:
        self.factor, self.regular = _factor(covariance)

    def trace_with(self, other: Tensor) -> float:
        """Return tr (A B)^½ for ``other`` = B [d, d]."""
        if self.regular:
            factor, regular = _factor(other, eigen=False)
            if regular:
                product = self.factor.T @ factor
                values = torch.linalg.eigvalsh(product @ product.T)
                return float(values.clamp(min=0).sqrt().sum())
        # A null direction has eigenvalue 0 ± ε, whose root would be 1e-8: take singular values of
        # the cross product of both factors, which are those roots themselves.
        factor, _ = _factor(other)
        return float(torch.linalg.svdvals(self.factor.T @ factor).sum())


def _factor(covariance: Tensor, eigen: bool = True) -> tuple[Tensor, bool]:
    """Return L [d, r] with L Lᵀ = ``covariance``, and whether it is well-conditioned."""
    lower, info = torch.linalg.cholesky_ex(covariance)
    if int(info) == 0:
        pivots = lower.diagonal().square()
        if float(pivots.max()) < _CONDITION * float(pivots.min()):
            return lower, True
    if not eigen:
        return lower, False
    values, vectors = torch.linalg.eigh(covariance)
    floor = float(values[-1].clamp(min=0)) * len(values) * torch.finfo(torch.float64).eps
    kept = values > floor
    return vectors[:, kept] * values[kept].sqrt(), False


def _assemble(offset: Tensor, cov_a: Tensor, cov_b: Tensor, cross: float) -> float:
    """Return the squared distance from its parts; rounding below zero becomes 0."""
    trace = float(cov_a.diagonal().sum() + cov_b.diagonal().sum())
    return max(float(offset @ offset) + trace - 2 * cross, 0.0)


def _checked(features: Tensor) -> Tensor:
    """Return ``features`` as finite float64 [N, d], N >= 1."""
    if features.ndim != 2 or len(features) == 0:
        shape = list(features.shape)
        raise ValueError(f"features must be [N, d] with N of at least 1, but is {shape}")
    return _finite("features", features)


def _finite(name: str, values: Tensor) -> Tensor:
    """Return ``values`` in float64; raise ValueError for NaN or infinity."""
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{name} must be finite, but holds {bad} NaN or infinite values")
    # Apple's GPUs know no float64.
    return values.cpu().double() if values.device.type == "mps" else values.double()
