"""Perceptual path length (PPL): how abruptly images change along paths in latent space.

Karras et al. 2019 (StyleGAN, arXiv 1812.04948, section 4.1), over full paths in z.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from growgan.metrics.progress import ProgressFn, no_progress
from growgan.metrics.validation import to_finite_float64

_DISCARDED_TAIL_FRACTION = 0.01  # fraction of the distances dropped at each end


def perceptual_path_length(
    generate: Callable[[Tensor], Tensor],
    features: Callable[[Tensor], Tensor],
    latent_dim: int,
    *,
    num_paths: int = 50_000,
    epsilon: float = 1e-4,
    batch_size: int = 64,
    seed: int = 0,
    progress: ProgressFn = no_progress,
) -> float:
    """Return the mean of |f(G(z(t))) - f(G(z(t + ε)))|² / ε² over random paths. Lower is better.

    A path runs along the sphere between two random latents, and t is uniform in [0, 1]. The lowest
    and the highest 1 % of the values are dropped.

    Args:
        generate: Maps float32 latents [n, latent_dim] of length √latent_dim to float images
            [n, C, H, W] in [-1, 1]. The images must not be rounded to integers, or a step of
            ``epsilon`` would vanish.
        features: Maps these images to features [n, ...].
        latent_dim: Number of latent values, at least 2.
        num_paths: Number of random paths, with one step each.
        epsilon: Length of a step as a fraction of the path, between 0 and 1.
        batch_size: Steps computed at once. Both functions receive twice as many rows.
        seed: Random seed of the paths.
        progress: Called with the number of finished paths.

    Raises:
        ValueError: Arguments out of range, images that are not float, or features that are not
            finite.
    """
    for name, value, minimum in (
        ("latent_dim", latent_dim, 2),
        ("num_paths", num_paths, 1),
        ("batch_size", batch_size, 1),
    ):
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, but got {value}")
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must be above 0 and below 1, but got {epsilon}")
    generator = torch.Generator().manual_seed(seed)
    endpoints = torch.randn(num_paths, 2, latent_dim, generator=generator)
    positions = torch.rand(num_paths, 1, generator=generator, dtype=torch.float64)
    distances = []
    num_done = 0
    for batch, t in zip(endpoints.split(batch_size), positions.split(batch_size), strict=True):
        start, end = batch.unbind(1)
        latents = torch.cat(
            [
                slerp_on_normal_sphere(start, end, t),
                slerp_on_normal_sphere(start, end, t + epsilon),
            ]
        )
        with torch.no_grad():
            images = generate(latents.float())
            if not images.is_floating_point():
                raise ValueError(f"generate must return float images, but returned {images.dtype}")
            before, after = to_finite_float64("features", features(images)).flatten(1).chunk(2)
        distances.append((after - before).square().sum(1).cpu() / epsilon**2)
        num_done += len(batch)
        progress(num_done, num_paths)
    values = torch.cat(distances)
    low = values.quantile(_DISCARDED_TAIL_FRACTION, interpolation="lower")
    high = values.quantile(1 - _DISCARDED_TAIL_FRACTION, interpolation="higher")
    return float(values[(values >= low) & (values <= high)].mean())


def slerp_on_normal_sphere(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return the points at ``t`` [N, 1] of the arcs from ``a`` to ``b``, both [N, d], in float64.

    All vectors are scaled to length √d, the typical length of standard normal vectors. Shoemake
    1985.
    """
    a, b = F.normalize(a.double()), F.normalize(b.double())
    cosine = (a * b).sum(1, keepdim=True)
    angle = t * cosine.clamp(-1, 1).acos()
    orthogonal = F.normalize(b - cosine * a)
    return (a * angle.cos() + orthogonal * angle.sin()) * a.shape[1] ** 0.5
