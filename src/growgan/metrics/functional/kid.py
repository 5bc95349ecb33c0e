"""Kernel inception distance (KID): unbiased for small samples, without a Gaussian assumption.

This implementation is our own because it takes any features, in float64; torchmetrics ties the
metric to its own Inception weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growgan.metrics.functional.subset_estimate import SubsetEstimate
from growgan.metrics.validation import check_finite, check_same_width, to_finite_float64


def kid(
    fake: Tensor, real: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> SubsetEstimate:
    """Return the kernel inception distance between ``fake`` [n, d] and ``real`` [m, d].

    It is the mean of the unbiased estimate of MMD² over random subsets, in float64. It can be
    negative. Bińkowski et al. 2018, arXiv 1801.01401; the defaults are their protocol.

    Args:
        fake: Features of generated images.
        real: Features of real images.
        subsets: Number of random subsets.
        subset_size: Rows of each set in a subset, at most min(n, m).
        seed: Random seed of the subsets.

    Raises:
        ValueError: Arguments out of range, fewer than 2 rows, different d, NaN or infinity.
    """
    check_same_width(fake=fake, real=real, min_rows=2)
    if subsets < 1 or subset_size < 2:
        raise ValueError(
            "subsets must be at least 1 and subset_size at least 2, but got"
            f" subsets={subsets} and subset_size={subset_size}"
        )
    check_finite("fake", fake)
    check_finite("real", real)
    subset_size = min(subset_size, len(fake), len(real))
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(subsets, dtype=torch.float64)
    for index in range(subsets):
        x = fake[torch.randperm(len(fake), generator=generator)[:subset_size]]
        y = real[torch.randperm(len(real), generator=generator)[:subset_size]]
        values[index] = unbiased_squared_mmd(
            to_finite_float64("fake", x), to_finite_float64("real", y)
        )
    return SubsetEstimate.from_subsets(values)


def unbiased_squared_mmd(x: Tensor, y: Tensor) -> float:
    """Return the unbiased estimate of MMD² between ``x`` [n, d] and ``y`` [m, d], n and m >= 2.

    The kernel is (x·y / d + 1)³. Gretton et al. 2012, lemma 6: no vector is paired with itself.
    """
    within = sum(
        float(kernel.sum() - kernel.diagonal().sum()) / (len(kernel) * (len(kernel) - 1))
        for kernel in (_cubic_polynomial_kernel(x, x), _cubic_polynomial_kernel(y, y))
    )
    return within - 2 * float(_cubic_polynomial_kernel(x, y).mean())


def _cubic_polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
