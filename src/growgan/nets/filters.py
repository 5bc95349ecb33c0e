"""Resampling with a low-pass filter: what StyleGAN2 and R3GAN resample with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def smooth_downsample(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """Filter with [1 3 3 1] / 8 in both directions, zeros outside, and keep each second pixel."""
    return F.conv2d(x, _taps(x, 1 / 8), stride=2, padding=1, groups=x.shape[1])


def smooth_upsample(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """Put zeros between the pixels, and filter with [1 3 3 1] / 4 in both directions."""
    return F.conv_transpose2d(x, _taps(x, 1 / 4), stride=2, padding=1, groups=x.shape[1])


def smooth(x: Float[Tensor, "n c h w"], padding: int) -> Float[Tensor, "n c h1 w1"]:
    """Filter with [1 3 3 1] / 8 both ways, ``padding`` zeros outside; three pixels less."""
    return F.conv2d(x, _taps(x, 1 / 8), padding=padding, groups=x.shape[1])


def smooth_double(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "d c k k"]
) -> Float[Tensor, "n d h2 w2"]:
    """Put zeros between the pixels, convolve, and filter with [1 3 3 1] / 4 in both directions."""
    kernel = weight.shape[-1]
    if kernel == 1:
        return smooth_upsample(F.conv2d(x, weight))
    spread = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2, padding=(kernel - 3) // 2)
    return 4 * smooth(spread, 1)


def smooth_halve(
    x: Float[Tensor, "n c h2 w2"], weight: Float[Tensor, "d c k k"]
) -> Float[Tensor, "n d h w"]:
    """Filter with [1 3 3 1] / 8 in both directions, convolve, and keep each second pixel."""
    return F.conv2d(smooth(x, (weight.shape[-1] + 1) // 2), weight, stride=2)


def _taps(x: Tensor, scale: float) -> Tensor:
    """Return the filter for each channel of ``x``, [c, 1, 4, 4]."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) * scale
    return torch.outer(row, row).to(x.dtype).expand(x.shape[1], 1, 4, 4)
