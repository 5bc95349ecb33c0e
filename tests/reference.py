"""References that share nothing with the code that they check."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def gaussian(seed: int, n: int, d: int, shift: float = 0.0) -> Tensor:
    """Correlated float64 features [n, d]."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) / d**0.5
    return torch.from_numpy(rng.normal(size=(n, d)) @ mix + shift)


def by_sqrtm(a: Array, b: Array) -> float:
    """The Fréchet distance by the textbook, with scipy's matrix square root."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + np.trace(cov_a + cov_b - 2 * root.real))


def by_roots(a: Array, b: Array) -> float:
    """The Fréchet distance by both covariances' own roots: right where they are singular, too."""
    covariances = [np.cov(z, rowvar=False) for z in (a, b)]
    roots = []
    for covariance in covariances:
        values, vectors = np.linalg.eigh(covariance)
        roots.append(vectors * np.sqrt(np.where(values > 1e-12, values, 0)))
    cross = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + sum(np.trace(c) for c in covariances) - 2 * cross)
