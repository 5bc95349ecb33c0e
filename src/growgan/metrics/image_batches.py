"""Iterate over a large array of images, and draw random subsets of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IMAGES_PER_BATCH = 512  # images read from a memory map and processed at once


def iterate_batches(
    images: NDArray[np.uint8], batch_size: int = IMAGES_PER_BATCH
) -> Iterator[Tensor]:
    """Yield ``images`` [N, C, H, W] in order, as tensors [n, C, H, W] with n <= ``batch_size``."""
    for start in range(0, len(images), batch_size):
        yield torch.from_numpy(np.array(images[start : start + batch_size]))


def random_rows(num_rows: int, max_rows: int, seed: int) -> NDArray[np.int64]:
    """Return up to ``max_rows`` distinct random row numbers below ``num_rows``, ascending.

    The subset is random because datasets are often sorted by class. The order is ascending because
    a memory map is faster to read in order.
    """
    return np.sort(np.random.default_rng(seed).permutation(num_rows)[:max_rows])
