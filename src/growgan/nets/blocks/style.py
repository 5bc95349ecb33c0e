"""StyleGAN2's layers (Karras et al. 2020, 1912.04958, figure 2 d and figure 7 c)."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growgan.config import Rate
from growgan.nets.blocks.base import BLOCKS, Block, StyledBlock
from growgan.nets.filters import smooth_double, smooth_halve
from growgan.nets.layers import GAIN, Conv
from growgan.nets.spec import LayerSpec, Role


@lru_cache(maxsize=256)
def still_noise(name: str, height: int, width: int) -> Tensor:
    """Return the noise [1, 1, height, width] of the layer of that id when it is not trained."""
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    return torch.randn(1, 1, height, width, generator=generator)


@BLOCKS.register(
    "modulated", "convolution scaled by the style, noise", "Karras et al. 2020, 1912.04958"
)
class ModulatedBlock(StyledBlock):
    """y = activation(demodulate(conv(x · s)) + noise + bias), s an affine map of the style.

    Each output channel is divided by the norm of its modulated weights, so that it has unit
    deviation whatever s is. The noise is drawn for each pixel in training, and stays the same
    afterwards; its strength is learnt and starts at 0.
    """

    held = 1.5
    noisy = True

    @classmethod
    def multiplications(cls, layer: LayerSpec, inner: int, role: Role, pixels: int) -> float:
        filtered = 16 * layer.width * (layer.resample - 1)
        return layer.kernel**2 * inner * layer.width / layer.resample**2 + filtered

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__(layer, inner, role=role, rate=rate, style=style)
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        scale, weight = self.affine(style), self.conv.used
        square = scale.square() @ weight.square().sum((2, 3)).T  # [N, out]
        norm = torch.rsqrt(square.float() + 1e-8).to(x.dtype)
        h = x * scale.to(x.dtype)[:, :, None, None]
        padding = weight.shape[-1] // 2
        h = smooth_double(h, weight) if self.up == 2 else F.conv2d(h, weight, padding=padding)
        h = h * norm[:, :, None, None] * GAIN
        h = h + (self.noise(h) * self.strength).to(h.dtype) + self.bias[:, None, None].to(h.dtype)
        return self.norm(self.activation(h), style)

    def noise(self, h: Tensor) -> Tensor:
        """Return noise for each pixel of ``h``; after training the same for all images."""
        if self.training:
            return torch.randn(len(h), 1, *h.shape[2:], device=h.device)
        return still_noise(self.layer.id, int(h.shape[2]), int(h.shape[3])).to(h.device)


@BLOCKS.register(
    "smooth", "residual layer that resamples with a filter", "Karras et al. 2020, 1912.04958"
)
class SmoothBlock(Block):
    """(shortcut(x) + activation(conv(activation(conv(x))))) / sqrt(2), low-passed as it resamples.

    The shortcut is a 1×1 convolution.
    """

    widens = False
    held = 1.5

    @classmethod
    def multiplications(cls, layer: LayerSpec, inner: int, role: Role, pixels: int) -> float:
        first, filters = (layer.width, 32) if role == "discriminator" else (inner, 16)
        each = layer.kernel**2 * layer.width
        return each * (first + inner / layer.resample**2) + filters * layer.width

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__(layer, inner, role=role, rate=rate, style=style)
        ends, size = (self.width_in, self.width_out), layer.kernel
        self.conv1 = Conv(self.width_in, self.width_in, size, rate=rate)
        self.conv2 = Conv(*ends, size, rate=rate, bias=False)
        self.bias = nn.Parameter(torch.zeros(self.width_out))
        self.skip = Conv(*ends, 1, gain=1.0, rate=rate, bias=False)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        h = self.resampled(self.activation(self.conv1(x)), self.conv2)
        h = self.activation(h + self.bias[:, None, None].to(h.dtype))
        return self.norm((self.resampled(x, self.skip) + h) / sqrt(2), style)

    def resampled(self, x: Tensor, conv: Conv) -> Tensor:
        """Return the convolution of ``x``, at the size of the output."""
        if self.up == 2:
            return smooth_double(x, conv.used)
        return smooth_halve(x, conv.used) if self.down == 2 else conv(x)
