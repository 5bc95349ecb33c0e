"""Mean and covariance of feature vectors, computed in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from growgan.metrics.validation import check_matrix, to_finite_float64


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of feature vectors.

    Attributes:
        count: Number of vectors N.
        mean: float64 [d].
        covariance: float64 [d, d], divided by N - 1. It is zero for a single vector, so that
            chunks of one row can be merged.
    """

    count: int
    mean: Tensor
    covariance: Tensor

    @classmethod
    def from_features(cls, features: Tensor) -> Moments:
        """Return the moments of ``features`` [N, d], N >= 1.

        Raises:
            ValueError: Another shape, no rows, NaN or infinity.
        """
        check_matrix("features", features)
        x = to_finite_float64("features", features)
        mean = x.mean(0)
        centered = x - mean
        return cls(len(x), mean, centered.T @ centered / max(len(x) - 1, 1))

    @classmethod
    def from_chunks(cls, chunks: Iterable[Tensor]) -> Moments:
        """Return the moments of all rows of ``chunks``, each [n, d], with one chunk in memory.

        The result equals :meth:`from_features` of the concatenation, up to float64 rounding.

        Raises:
            ValueError: There are no chunks, or a chunk is refused by :meth:`from_features`.
        """
        total: Moments | None = None
        for chunk in chunks:
            moments = cls.from_features(chunk)
            total = moments if total is None else total.merge(moments)
        if total is None:
            raise ValueError("chunks must hold at least one tensor of features, but is empty")
        return total

    def merge(self, other: Moments) -> Moments:
        """Return the moments of the union of both sets (Chan et al. 1979; exact)."""
        n, m = self.count, other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (m / (n + m))
        scatter = self.covariance * (n - 1) + other.covariance * (m - 1)
        scatter = scatter + torch.outer(delta, delta) * (n * m / (n + m))
        return Moments(n + m, mean, scatter / (n + m - 1))
