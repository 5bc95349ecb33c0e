"""What is done with latents before they are drawn: cut at a threshold, walked along a circle."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from growgan.errors import UserError


def truncate(z: Tensor, threshold: float, seed: int) -> Tensor:
    """Redraw the values of ``z`` beyond ``threshold`` until none is left."""
    if threshold < 0.05:
        raise UserError(f"truncation must be at least 0.05, but got {threshold}")
    rng = torch.Generator().manual_seed(~seed & 0xFFFFFFFF)
    while (far := z.abs() > threshold).any():
        z = torch.where(far, torch.randn(z.shape, generator=rng), z)
    return z


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
