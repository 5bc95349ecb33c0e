"""Truncation and interpolation of latents and styles."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from growgan.errors import UserError

MIN_LATENT_TRUNCATION = 0.05  # standard deviations; below it, redrawing takes too long
MAX_TRUNCATION = 10.0  # no latent is larger, and styles this far away have no meaning
MIN_SLERP_ANGLE = 1e-4  # radians; below it, a great circle is a line


def truncate_latents(z: Tensor, threshold: float, seed: int) -> Tensor:
    """Redraw every value of ``z`` beyond ``threshold`` until none is left (Brock et al. 2019).

    ``torch.nn.init.trunc_normal_`` would change the other values too. Truncated samples would then
    no longer resemble the same samples without truncation.

    Args:
        z: Latents.
        threshold: Largest absolute value, in standard deviations, 0.05 to 10.
        seed: Random seed.

    Raises:
        UserError: ``threshold`` is out of range.
    """
    _check_truncation(threshold, MIN_LATENT_TRUNCATION)
    rng = torch.Generator().manual_seed(~seed & 0xFFFFFFFF)
    while (is_beyond := z.abs() > threshold).any():
        z = torch.where(is_beyond, torch.randn(z.shape, generator=rng), z)
    return z


def truncate_styles(mean_style: Tensor, styles: Tensor, psi: float) -> Tensor:
    """Multiply the distance of ``styles`` from the mean style by ``psi``, 0 to 10.

    See Karras et al. 2019 (1812.04948), section B.

    Raises:
        UserError: ``psi`` is out of range.
    """
    _check_truncation(psi, 0.0)
    return torch.lerp(mean_style, styles, psi)


def _check_truncation(truncation: float, minimum: float) -> None:
    if not minimum <= truncation <= MAX_TRUNCATION:
        raise UserError(
            f"truncation must be from {minimum:g} to {MAX_TRUNCATION:g}, but got {truncation:g}"
        )


def slerp(a: Float[Tensor, " z"], b: Float[Tensor, " z"], fraction: Tensor) -> Float[Tensor, " z"]:
    """Interpolate from ``a`` to ``b`` on a great circle (Shoemake 1985).

    The angle and the norm both change linearly.

    Args:
        a: The point at fraction 0.
        b: The point at fraction 1.
        fraction: Scalar from 0 to 1.
    """
    norm = torch.lerp(a.norm(), b.norm(), fraction)
    a, b = a / a.norm(), b / b.norm()
    angle = torch.acos((a * b).sum().clamp(-1, 1))
    if float(angle) < MIN_SLERP_ANGLE:
        return norm * torch.lerp(a, b, fraction)
    weight_a, weight_b = torch.sin((1 - fraction) * angle), torch.sin(fraction * angle)
    return norm * (weight_a * a + weight_b * b) / torch.sin(angle)
