"""The kernel distance of two sets of features: no Gaussian assumed, no bias from few samples."""

from __future__ import annotations

import torch
from torch import Tensor

from growgan.metrics.checks import check_finite, finite, pair
from growgan.metrics.distances import Estimate


def kid(
    fake: Tensor, real: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Estimate:
    """Return the kernel inception distance of the features ``fake`` [n, d] and ``real`` [m, d].

    The mean over ``subsets`` random subsets of ``size`` rows of each (of the smaller set's number,
    if that is less) of the unbiased estimate of MMD², in float64; it can fall below zero. Bińkowski
    et al. 2018, arXiv 1801.01401, whose protocol is the defaults. Raises ValueError for fewer than
    2 rows, different d, and values that are NaN or infinite.
    """
    fake, real = pair(fake, real, least=2)
    if subsets < 1 or size < 2:
        raise ValueError(
            f"subsets must be at least 1 and size at least 2, but are {subsets} and {size}"
        )
    for name, features in (("fake", fake), ("real", real)):
        check_finite(name, features)
    size = min(size, len(fake), len(real))
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(subsets, dtype=torch.float64)
    for i in range(subsets):
        x, y = (
            finite("features", features[torch.randperm(len(features), generator=generator)[:size]])
            for features in (fake, real)
        )
        values[i] = squared_mmd(x, y)
    return Estimate.over(values)


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Return the unbiased estimate of MMD² of ``x`` [n, d] and ``y`` [m, d], n and m at least 2.

    The kernel is (x·y / d + 1)³. Gretton et al. 2012, lemma 6: no vector is paired with itself.
    """
    within = sum(
        float(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))
        for k in (_kernel(x, x), _kernel(y, y))
    )
    return within - 2 * float(_kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
