"""Time and peak memory of the sliced Wasserstein distance, beside the published way in numpy.

    python benchmarks/sliced.py                      # the protocol: 16,384 images of 32x32x3
    python benchmarks/sliced.py --count 1024 --published

The published way takes gigabytes and minutes at full size: run it on 1,024 images or so, and scale.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch
from numpy.typing import NDArray

from growgan.metrics import laplacian_pyramid, sliced_wasserstein


def published(fake: NDArray[np.uint8], real: NDArray[np.uint8]) -> None:
    """Cut all patches, project them on 4 x 128 directions, and sort along the first axis."""
    rng = np.random.default_rng(0)
    pyramids = [laplacian_pyramid(torch.from_numpy(images)) for images in (fake, real)]
    for levels in zip(*pyramids, strict=True):
        sets = []
        for level in levels:
            images = level.numpy()
            n, c, h, w = images.shape
            index = np.arange(n * 128).reshape(-1, 1, 1, 1) // 128
            rows = rng.integers(h - 6, size=(n * 128, 1, 1, 1)) + np.arange(7).reshape(7, 1)
            columns = rng.integers(w - 6, size=(n * 128, 1, 1, 1)) + np.arange(7)
            cut = images[index, np.arange(c).reshape(-1, 1, 1), rows, columns]
            cut -= cut.mean((0, 2, 3), keepdims=True)
            cut /= cut.std((0, 2, 3), keepdims=True)
            sets.append(cut.reshape(n * 128, -1))
        for _ in range(4):
            axes = rng.normal(size=(sets[0].shape[1], 128))
            axes = (axes / np.linalg.norm(axes, axis=0)).astype(np.float32)
            a, b = (np.sort(patches @ axes, axis=0) for patches in sets)
            np.abs(a - b).mean()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=16_384)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--published", action="store_true", help="time the published way too")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (arguments.count, 3, arguments.size, arguments.size)
    fake, real = (rng.integers(256, size=shape, dtype=np.uint8) for _ in range(2))

    started = time.perf_counter()
    sliced_wasserstein(torch.from_numpy(fake), torch.from_numpy(real))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # KiB on Linux
    print(f"growgan: {seconds:.1f} s, at most {peak:.3f} GB with torch and the images")
    if arguments.published:
        started = time.perf_counter()
        published(fake, real)
        print(f"published way: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
