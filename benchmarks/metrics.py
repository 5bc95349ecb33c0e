"""Time and memory of the metrics, beside the usual ways to compute them, as ratios in one run.

    python benchmarks/metrics.py                       # all, full size: some twenty minutes
    python benchmarks/metrics.py --only frechet
    python benchmarks/metrics.py --only sliced --published 1024

Each part runs in a process of its own, whose peak memory is the figure. The published way of SWD
takes gigabytes and minutes at full size: it runs on ``--published`` images, and is scaled up.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from growgan.metrics import neighbourhoods, sliced_wasserstein
from growgan.metrics.distances import frechet_distance, frechet_of_samples
from growgan.training.runtime import machine

RESULTS = Path(__file__).parent / "results" / "metrics.json"
FULL = 16_384  # images of the published SWD
Figures = dict[str, float]


def timed(function: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of a call."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def frechet(repeats: int) -> Figures:
    """Time the distance of two 2,048-d Gaussians, and of 2,000 samples, beside the usual ways."""
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(0)
    d, n = 2048, 10_000
    scales = torch.linspace(0.1, 3, d, dtype=torch.float64)
    x, y = (torch.randn(n, d, generator=generator, dtype=torch.float64) * scales for _ in range(2))
    y = y + 0.1
    means = [each.mean(0) for each in (x, y)]
    covs = [torch.cov(each.T) for each in (x, y)]
    offset = float((means[0] - means[1]).square().sum() + sum(c.trace() for c in covs))

    def ours() -> float:
        return frechet_distance(means[0], covs[0], means[1], covs[1])

    def by_sqrtm() -> float:
        return offset - 2 * float(np.trace(np.real(sqrtm(covs[0].numpy() @ covs[1].numpy()))))

    def by_eigenvalues() -> float:
        return offset - 2 * float(torch.linalg.eigvals(covs[0] @ covs[1]).sqrt().real.sum())

    samples = [each[:2000] for each in (x, y)]

    def of_samples() -> float:
        return frechet_of_samples(*samples)

    small = [torch.cov(each.T) for each in samples]

    def sqrtm_of_samples() -> object:
        return sqrtm(small[0].numpy() @ small[1].numpy())

    exact = by_eigenvalues()
    seconds = {
        "ours, s": timed(ours, repeats),
        "scipy sqrtm, s": timed(by_sqrtm, 1),
        "eigenvalues of the product, s": timed(by_eigenvalues, 1),
        "ours of 2,000 samples, s": timed(of_samples, repeats),
        "scipy sqrtm of 2,000 samples, s": timed(sqrtm_of_samples, 1),
    }
    return {
        **seconds,
        "times faster than sqrtm (target 10)": seconds["scipy sqrtm, s"] / seconds["ours, s"],
        "times faster than eigenvalues (target 2)": seconds["eigenvalues of the product, s"]
        / seconds["ours, s"],
        "times faster with 2,000 samples (target 12)": seconds["scipy sqrtm of 2,000 samples, s"]
        / seconds["ours of 2,000 samples, s"],
        "relative difference to eigenvalues": abs(ours() - exact) / exact,
    }


def published_pyramid(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Return the Laplacian pyramid down to 16 pixels, by convolutions of all images at once."""
    from scipy import ndimage

    row = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16
    window = np.outer(row, row)[None, None]
    levels = [images.astype(np.float32)]
    while levels[-1].shape[2] > 16:
        fine = levels[-1]
        small = ndimage.convolve(fine, window, mode="mirror")[:, :, ::2, ::2]
        spread = np.zeros_like(fine)
        spread[:, :, ::2, ::2] = small
        levels[-1] = fine - ndimage.convolve(spread, 4 * window, mode="mirror")
        levels.append(small)
    return levels


def published(fake: NDArray[np.uint8], real: NDArray[np.uint8]) -> None:
    """Cut all patches, project them on 4 x 128 directions, and sort along the first axis."""
    rng = np.random.default_rng(0)
    pyramids = [published_pyramid(images) for images in (fake, real)]
    for levels in zip(*pyramids, strict=True):
        sets = []
        for images in levels:
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
            a, b = (np.sort(each @ axes, axis=0) for each in sets)
            np.abs(a - b).mean()


def images(count: int) -> list[NDArray[np.uint8]]:
    """Return two sets of noise, uint8 [count, 3, 32, 32]."""
    rng = np.random.default_rng(0)
    return [rng.integers(256, size=(count, 3, 32, 32), dtype=np.uint8) for _ in range(2)]


def sliced(repeats: int, count: int) -> Figures:
    """Time SWD at full size, and the published way on ``count`` images, scaled up."""
    sets = [torch.from_numpy(each) for each in images(FULL)]
    before = peak()
    seconds = timed(lambda: sliced_wasserstein(*sets), repeats)
    memory = peak() - before + sum(each.numel() for each in sets) / 2**20
    few = images(count)
    usual = timed(lambda: published(*few), 1) * FULL / count
    return {
        "ours, s": seconds,
        "ours, MiB (target 1024)": memory,
        f"published way, s, from {count} images": usual,
        "times faster (target 20)": usual / seconds,
    }


def neighbours(rows: int) -> Figures:
    """Time and peak memory of precision, recall, density and coverage on [rows, 2048]."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, 2048, generator=generator) for _ in range(2))
    seconds = timed(lambda: neighbourhoods(x, y), 1)
    return {"s": seconds, "MiB in all (target 4096)": peak()}


def peak() -> float:
    """Return this process's peak memory in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Read the command line, run each part alone, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=["frechet", "sliced", "neighbours"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--published", type=int, default=1024, help="images of the published SWD")
    parser.add_argument("--rows", type=int, default=50_000, help="of features, on either side")
    given = parser.parse_args()
    parts: dict[str, tuple[Callable[..., Figures], tuple[int, ...]]] = {
        "frechet": (frechet, (given.repeats,)),
        "sliced": (sliced, (given.repeats, given.published)),
        "neighbours": (neighbours, (given.rows,)),
    }
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, (part, arguments) in parts.items():
        if given.only in (None, name):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                figures = pool.submit(part, *arguments).result()
            kept[name] = {"machine": machine(), **figures}
            print(f"\n**{name}** ({machine()})\n\n| figure | value |\n|---|---|")
            for key, value in figures.items():
                print(f"| {key} | {value:.4g} |", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
