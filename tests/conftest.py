"""What several test files need: one thread, and small labelled images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from growgan.data import ImageSet


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors are fastest, and repeatable, on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_images() -> Callable[..., ImageSet]:
    """Return a maker of sets of soft random blobs, each class at a place of its own."""

    def make(count: int, channels: int, height: int, width: int, seed: int = 0) -> ImageSet:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, count)
        rows, columns = np.mgrid[0:height, 0:width]
        y = rng.normal(height * (0.3 + 0.4 * labels), 1)[:, None, None]
        x = rng.normal(width / 2, width / 8, count)[:, None, None]
        blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8)
        shades = rng.uniform(128, 255, (count, channels, 1, 1))
        images = (blob[:, None] * shades).astype(np.uint8)
        return ImageSet("blobs", images, labels, ("top", "bottom"), f"blobs-{count}-{seed}")

    return make
