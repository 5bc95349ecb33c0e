"""Independent reference implementations, and random data, for the tests of the metrics."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def correlated_gaussian(seed: int, n: int, d: int, shift: float = 0.0) -> Tensor:
    """Return correlated Gaussian features, float64 [n, d]."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) / d**0.5
    return torch.from_numpy(rng.normal(size=(n, d)) @ mixing + shift)


def smooth_images(seed: int, shape: tuple[int, ...], sigma: float) -> NDArray[np.uint8]:
    """Return noise images [N, C, H, W], smoothed by a Gaussian of ``sigma`` pixels."""
    noise = np.random.default_rng(seed).normal(size=shape)
    noise = scipy.ndimage.gaussian_filter(noise, (0, 0, sigma, sigma))
    pixels: NDArray[np.uint8] = np.clip(noise / noise.std() * 50 + 120, 0, 255).astype(np.uint8)
    return pixels


def frechet_distance_by_sqrtm(a: Array, b: Array) -> float:
    """Return the Fréchet distance by the textbook formula, with scipy's matrix square root."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    difference = a.mean(0) - b.mean(0)
    return float(difference @ difference + np.trace(cov_a + cov_b - 2 * root.real))


def frechet_distance_by_roots(a: Array, b: Array) -> float:
    """Return the Fréchet distance by the roots of both covariances, which may be singular."""
    covariances = [np.cov(features, rowvar=False) for features in (a, b)]
    roots = []
    for covariance in covariances:
        values, vectors = np.linalg.eigh(covariance)
        roots.append(vectors * np.sqrt(np.where(values > 1e-12, values, 0)))
    trace_sqrt = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    difference = a.mean(0) - b.mean(0)
    traces = sum(np.trace(covariance) for covariance in covariances)
    return float(difference @ difference + traces - 2 * trace_sqrt)
