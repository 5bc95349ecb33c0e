"""Compare the speed and memory of the metrics with reference implementations.

    python benchmarks/metrics.py                       # full size, about twenty minutes
    python benchmarks/metrics.py --only frechet
    python benchmarks/metrics.py --only swd --reference-images 1024

Each part runs in a process of its own, so that its peak memory can be measured. The reference
implementation of the sliced Wasserstein distance (SWD) takes gigabytes and minutes at full size. It
runs on ``--reference-images`` images, and its time is extrapolated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from common import median_seconds
from numpy.typing import NDArray

from growgan.metrics import compute_prdc, sliced_wasserstein
from growgan.metrics.functional.frechet_distance import (
    frechet_distance,
    frechet_distance_of_features,
)
from growgan.training.runtime import describe_machine

RESULTS = Path(__file__).parent / "results" / "metrics.json"
FULL_NUM_IMAGES = 16_384  # images of each set in the published SWD
NUM_FEATURES = 2048
PATCHES_PER_IMAGE = 128
PATCH_SIDE = 7  # pixels
NUM_DIRECTIONS = 128
NUM_REPEATS = 4  # sets of directions
Measurements = dict[str, float]


def benchmark_frechet(repeats: int) -> Measurements:
    """Time the Fréchet distance of 2,048-dimensional Gaussians, and of 2,000 samples."""
    from scipy.linalg import sqrtm

    rng = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.1, 3, NUM_FEATURES, dtype=torch.float64)
    x, y = (
        torch.randn(10_000, NUM_FEATURES, generator=rng, dtype=torch.float64) * scales
        for _ in range(2)
    )
    y = y + 0.1
    mean_x, mean_y = x.mean(0), y.mean(0)
    cov_x, cov_y = torch.cov(x.T), torch.cov(y.T)
    offset = float((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace())

    def by_growgan() -> float:
        return frechet_distance(mean_x, cov_x, mean_y, cov_y)

    def by_sqrtm() -> float:
        return offset - 2 * float(np.trace(np.real(sqrtm(cov_x.numpy() @ cov_y.numpy()))))

    def by_eigenvalues() -> float:
        return offset - 2 * float(torch.linalg.eigvals(cov_x @ cov_y).sqrt().real.sum())

    few_x, few_y = x[:2000], y[:2000]
    few_cov_x, few_cov_y = torch.cov(few_x.T), torch.cov(few_y.T)

    def by_growgan_from_samples() -> float:
        return frechet_distance_of_features(few_x, few_y)

    def by_sqrtm_from_samples() -> object:
        return sqrtm(few_cov_x.numpy() @ few_cov_y.numpy())

    exact = by_eigenvalues()
    growgan = median_seconds(by_growgan, repeats)
    scipy = median_seconds(by_sqrtm, 1)
    eigenvalues = median_seconds(by_eigenvalues, 1)
    growgan_samples = median_seconds(by_growgan_from_samples, repeats)
    scipy_samples = median_seconds(by_sqrtm_from_samples, 1)
    return {
        "growgan, s": growgan,
        "scipy sqrtm, s": scipy,
        "eigenvalues of the product, s": eigenvalues,
        "growgan with 2,000 samples, s": growgan_samples,
        "scipy sqrtm with 2,000 samples, s": scipy_samples,
        "speedup over sqrtm (target: 10)": scipy / growgan,
        "speedup over eigenvalues (target: 2)": eigenvalues / growgan,
        "speedup with 2,000 samples (target: 12)": scipy_samples / growgan_samples,
        "relative difference to eigenvalues": abs(by_growgan() - exact) / exact,
    }


def reference_pyramid(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Return the Laplacian pyramid down to 16 pixels, with all images in one convolution."""
    from scipy import ndimage

    row = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16
    kernel = np.outer(row, row)[None, None]
    levels = [images.astype(np.float32)]
    while levels[-1].shape[2] > 16:
        fine = levels[-1]
        coarse = ndimage.convolve(fine, kernel, mode="mirror")[:, :, ::2, ::2]
        upsampled = np.zeros_like(fine)
        upsampled[:, :, ::2, ::2] = coarse
        levels[-1] = fine - ndimage.convolve(upsampled, 4 * kernel, mode="mirror")
        levels.append(coarse)
    return levels


def reference_swd(fake: NDArray[np.uint8], real: NDArray[np.uint8]) -> None:
    """Compute the SWD as published code does: cut all patches, project them, sort columns."""
    rng = np.random.default_rng(0)
    pyramids = [reference_pyramid(images) for images in (fake, real)]
    for levels in zip(*pyramids, strict=True):
        patch_sets = []
        for images in levels:
            n, c, h, w = images.shape
            num_patches = n * PATCHES_PER_IMAGE
            shape, offsets = (num_patches, 1, 1, 1), np.arange(PATCH_SIDE)
            image_index = np.arange(num_patches).reshape(shape) // PATCHES_PER_IMAGE
            rows = rng.integers(h - PATCH_SIDE + 1, size=shape) + offsets.reshape(-1, 1)
            columns = rng.integers(w - PATCH_SIDE + 1, size=shape) + offsets
            patches = images[image_index, np.arange(c).reshape(-1, 1, 1), rows, columns]
            patches -= patches.mean((0, 2, 3), keepdims=True)
            patches /= patches.std((0, 2, 3), keepdims=True)
            patch_sets.append(patches.reshape(num_patches, -1))
        for _ in range(NUM_REPEATS):
            directions = rng.normal(size=(patch_sets[0].shape[1], NUM_DIRECTIONS))
            directions = (directions / np.linalg.norm(directions, axis=0)).astype(np.float32)
            a, b = (np.sort(patches @ directions, axis=0) for patches in patch_sets)
            np.abs(a - b).mean()


def noise_images(num_images: int) -> list[NDArray[np.uint8]]:
    """Return two sets of noise images, uint8 [N, 3, 32, 32]."""
    rng = np.random.default_rng(0)
    shape = (num_images, 3, 32, 32)
    return [rng.integers(256, size=shape, dtype=np.uint8) for _ in range(2)]


def benchmark_swd(repeats: int, num_reference_images: int) -> Measurements:
    """Time the SWD at full size, and the reference implementation on fewer images."""
    fake, real = (torch.from_numpy(images) for images in noise_images(FULL_NUM_IMAGES))
    memory_before = peak_memory_mib()
    seconds = median_seconds(lambda: sliced_wasserstein(fake, real), repeats)
    images_mib = (fake.numel() + real.numel()) / 2**20
    memory = peak_memory_mib() - memory_before + images_mib
    fewer_images = noise_images(num_reference_images)
    scale = FULL_NUM_IMAGES / num_reference_images
    reference = median_seconds(lambda: reference_swd(*fewer_images), 1) * scale
    return {
        "growgan, s": seconds,
        "growgan, MiB (target: at most 1024)": memory,
        f"reference, s, extrapolated from {num_reference_images} images": reference,
        "speedup (target: 20)": reference / seconds,
    }


def benchmark_prdc(num_features: int) -> Measurements:
    """Measure precision, recall, density and coverage of features [N, 2048]."""
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(num_features, NUM_FEATURES, generator=rng) for _ in range(2))
    seconds = median_seconds(lambda: compute_prdc(x, y), 1)
    return {"growgan, s": seconds, "peak memory, MiB (target: at most 4096)": peak_memory_mib()}


def peak_memory_mib() -> float:
    """Return this process's peak memory in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Read the command line, run each part in a process, and print and save the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", choices=["frechet", "swd", "prdc"], help="metric to measure; all by default"
    )
    parser.add_argument("--repeats", type=int, default=3, help="repeats of fast measurements")
    parser.add_argument(
        "--reference-images", type=int, default=1024, help="images of the reference SWD"
    )
    parser.add_argument(
        "--num-features", type=int, default=50_000, help="feature vectors in each set for prdc"
    )
    args = parser.parse_args()
    parts: dict[str, tuple[Callable[..., Measurements], tuple[int, ...]]] = {
        "frechet": (benchmark_frechet, (args.repeats,)),
        "swd": (benchmark_swd, (args.repeats, args.reference_images)),
        "prdc": (benchmark_prdc, (args.num_features,)),
    }
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, (part, arguments) in parts.items():
        if args.only in (None, name):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                measurements = pool.submit(part, *arguments).result()
            saved[name] = {"machine": describe_machine(), **measurements}
            print(f"\n**{name}** ({describe_machine()})\n\n| measurement | value |\n|---|---|")
            for key, value in measurements.items():
                print(f"| {key} | {value:.4g} |", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
