"""Perceptual path length: how smoothly images change along paths in latent space.

Karras et al. 2019 (StyleGAN, arXiv 1812.04948, section 4.1), over full paths in z.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from growgan.metrics.checks import finite
from growgan.metrics.watch import Progress, unseen

_DROPPED = 0.01  # of the distances at each end


def perceptual_path_length(
    generate: Callable[[Tensor], Tensor],
    features: Callable[[Tensor], Tensor],
    latent: int,
    *,
    pairs: int = 50_000,
    epsilon: float = 1e-4,
    batch: int = 64,
    seed: int = 0,
    progress: Progress = unseen,
) -> float:
    """Return the mean of |f(G(z(t))) - f(G(z(t + ε)))|² / ε² over random paths z and places t.

    ``generate`` maps float32 latents [n, latent] of length sqrt(latent) to float images
    [n, C, H, W] in [-1, 1], which must not be quantised: a step of ``epsilon`` would vanish.
    ``features`` maps these to [n, ...]. Each path runs on the sphere between two random points and
    t is uniform in [0, 1]; the lowest and highest 1 % are dropped. ``batch`` is how many steps are
    taken at once, so that both functions get twice as many. Raises ValueError for arguments out of
    range, images that are not float, and features that are not finite.
    """
    for name, value, least in (("latent", latent, 2), ("pairs", pairs, 1), ("batch", batch, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but got {value}")
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must be above 0 and below 1, but got {epsilon}")
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(pairs, 2, latent, generator=generator)
    places = torch.rand(pairs, 1, generator=generator, dtype=torch.float64)
    found = []
    for (a, b), t in zip(
        (e.unbind(1) for e in ends.split(batch)), places.split(batch), strict=True
    ):
        steps = torch.cat([slerp(a, b, t), slerp(a, b, t + epsilon)])
        with torch.no_grad():
            images = generate(steps.float())
            if not images.is_floating_point():
                raise ValueError(f"generate must return float images, but gave {images.dtype}")
            before, after = finite("features", features(images)).flatten(1).chunk(2)
        found.append((after - before).square().sum(1).cpu() / epsilon**2)
        progress(min(batch * len(found), pairs), pairs)
    distances = torch.cat(found)
    low = distances.quantile(_DROPPED, interpolation="lower")
    high = distances.quantile(1 - _DROPPED, interpolation="higher")
    return float(distances[(distances >= low) & (distances <= high)].mean())


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return the points at ``t`` [N, 1] of the arcs from ``a`` to ``b``, both [N, d], in float64.

    All are brought to length sqrt(d), that of standard normal vectors. Shoemake 1985.
    """
    a, b = F.normalize(a.double()), F.normalize(b.double())
    cosine = (a * b).sum(1, keepdim=True)
    angle = t * cosine.clamp(-1, 1).acos()
    across = F.normalize(b - cosine * a)
    return (a * angle.cos() + across * angle.sin()) * a.shape[1] ** 0.5
