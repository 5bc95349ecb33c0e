"""What is done with latents before they are drawn: cut at a threshold, walked along a circle."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from growgan.errors import UserError

MOST = 10.0  # of a truncation: no latent lies beyond, and far styles are none


def truncate(z: Tensor, threshold: float, seed: int) -> Tensor:
    """Redraw the values of ``z`` beyond ``threshold``, 0.05 to 10, until none is left."""
    _check(threshold, 0.05)
    rng = torch.Generator().manual_seed(~seed & 0xFFFFFFFF)
    while (far := z.abs() > threshold).any():
        z = torch.where(far, torch.randn(z.shape, generator=rng), z)
    return z


def towards(mean: Tensor, styles: Tensor, share: float) -> Tensor:
    """Return ``styles`` at a ``share``, 0 to 10, of their distance from the ``mean`` one.

    Karras et al. 2019 (1812.04948), section B.
    """
    _check(share, 0.0)
    return torch.lerp(mean, styles, share)


def _check(truncation: float, least: float) -> None:
    if not least <= truncation <= MOST:
        raise UserError(f"truncation must be from {least:g} to {MOST:g}, but got {truncation:g}")


def slerp(a: Float[Tensor, " z"], b: Float[Tensor, " z"], share: Tensor) -> Float[Tensor, " z"]:
    """Return the point that lies ``share`` of the way from ``a`` to ``b`` on a great circle.

    Shoemake 1985: angles and lengths both change evenly.
    """
    lengths = torch.lerp(a.norm(), b.norm(), share)
    a, b = a / a.norm(), b / b.norm()
    angle = torch.acos((a * b).sum().clamp(-1, 1))
    if float(angle) < 1e-4:
        return lengths * torch.lerp(a, b, share)
    weights = torch.sin((1 - share) * angle), torch.sin(share * angle)
    return lengths * (weights[0] * a + weights[1] * b) / torch.sin(angle)
