"""Nearest neighbors of feature vectors, computed in blocks of rows.

Distances are computed in the precision and on the device of the features. The features are centered
first, so that a common offset costs no precision. A squared distance is then off by about
√d ε (|x|² + |y|²), where ε is 1e-7 for float32 and 2e-16 for float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from growgan.metrics.validation import check_finite

_MAX_DISTANCES_PER_BLOCK = 2**24  # distances held in memory at once
_MAX_PAIRS_PER_CHUNK = 4096  # pairs of rows whose difference is computed at once


def nearest_neighbors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest row of ``y`` [m, d] to each row of ``x`` [n, d], and its distance.

    The first result holds row numbers of ``y``, int64 [n]. The distances [n] are norms of
    differences, so that of an exact copy is exactly 0.
    """
    indices = torch.cat([squared.argmin(1) for _, squared in squared_distance_blocks(x, y)])
    chunks = zip(x.split(_MAX_PAIRS_PER_CHUNK), indices.split(_MAX_PAIRS_PER_CHUNK), strict=True)
    return indices, torch.cat([(rows - y[index]).norm(dim=1) for rows, index in chunks])


def squared_distance_blocks(
    x: Tensor, y: Tensor, *, include_rounding_ties: bool = False
) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the rows of ``x`` [n, d], with their squared distances to ``y`` [m, d].

    The distances are [rows, m]. With ``include_rounding_ties`` each is reduced by about its
    rounding error, so that a distance equal to a radius counts as within it.
    """
    x_norms, y_norms = x.square().sum(1), y.square().sum(1)
    shrink_factor = 1.0
    if include_rounding_ties:
        shrink_factor -= (x.shape[1] ** 0.5 + 4) * torch.finfo(x.dtype).eps
    step = max(_MAX_DISTANCES_PER_BLOCK // len(y), 1)
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        norms = (x_norms[rows, None] + y_norms).mul_(shrink_factor)
        yield rows, norms.addmm_(x[rows], y.T, alpha=-2).clamp_(min=0)


def squared_kth_neighbor_distances(x: Tensor, *ks: int) -> Tensor:
    """Return, for each k, the squared distance of each row of ``x`` [n, d] to its k-th neighbor.

    The result is [len(ks), n]. A row is not its own neighbor.
    """
    # The nearest of all rows is the row itself.
    blocks = [
        squared.topk(max(ks) + 1, largest=False).values
        for _, squared in squared_distance_blocks(x, x)
    ]
    return torch.cat(blocks).T[list(ks)]


def center_features(**feature_sets: Tensor) -> list[Tensor]:
    """Return the sets minus the mean of the first, all float32, or all float64 if one of them is.

    Raises:
        ValueError: A set holds NaN or infinity.
    """
    for name, features in feature_sets.items():
        check_finite(name, features)
    any_float64 = any(features.dtype == torch.float64 for features in feature_sets.values())
    dtype = torch.float64 if any_float64 else torch.float32
    mean = next(iter(feature_sets.values())).to(dtype).mean(0)
    return [features.to(dtype) - mean for features in feature_sets.values()]
