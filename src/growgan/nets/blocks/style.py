"""StyleGAN2's layers (Karras et al. 2020, 1912.04958, figure 2 d and figure 7 c)."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growgan.nets.blocks.base import BLOCKS, Block, StyledBlock
from growgan.nets.layers import HE_GAIN, ScaledConv2d
from growgan.nets.resampling import blur_conv_downsample, upsample_conv_blur
from growgan.nets.spec import LayerSpec, Role


@lru_cache(maxsize=256)
def constant_noise(layer_id: str, height: int, width: int) -> Tensor:
    """Return the noise of a layer in eval mode, float ``[1, 1, height, width]``."""
    rng = torch.Generator().manual_seed(crc32(layer_id.encode()))
    return torch.randn(1, 1, height, width, generator=rng)


@BLOCKS.register(
    "modulated",
    "Convolution scaled by the style, with noise; for G.",
    "Karras et al. 2020, 1912.04958",
)
class ModulatedBlock(StyledBlock):
    """y = activation(demodulate(conv(x · s)) + noise + bias), where s is affine in the style.

    Demodulation divides each output channel by the norm of its modulated weights, so that it has
    unit variance for every s. In training the noise is drawn for each pixel; in eval mode it is
    constant. Its learned strength starts at 0.
    """

    activation_multiplier = 1.5
    adds_noise = True

    @classmethod
    def macs_per_pixel(
        cls, layer_spec: LayerSpec, inner_width: int, role: Role, num_pixels: int
    ) -> float:
        kernel_pixels = layer_spec.kernel_size**2
        conv = kernel_pixels * inner_width * layer_spec.width / layer_spec.resample_factor**2
        return conv + 16 * layer_spec.width * (layer_spec.resample_factor - 1)

    def build(self) -> None:
        super().build()
        self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        scale, weight = self.affine(style), self.conv.effective_weight
        demodulation = scale.square() @ weight.square().sum((2, 3)).T  # (N, out)
        demodulation = torch.rsqrt(demodulation.float() + 1e-8).to(x.dtype)
        h = x * scale.to(x.dtype)[:, :, None, None]
        if self.up == 2:
            h = upsample_conv_blur(h, weight)
        else:
            h = F.conv2d(h, weight, padding=weight.shape[-1] // 2)
        h = h * demodulation[:, :, None, None] * HE_GAIN
        h = h + (self.sample_noise(h) * self.noise_strength).to(h.dtype)
        h = h + self.bias[:, None, None].to(h.dtype)
        return self.norm(self.activation(h), style)

    def sample_noise(self, h: Tensor) -> Tensor:
        """Return noise for the pixels of ``h``: per sample in training, constant in eval mode."""
        if self.training:
            return torch.randn(len(h), 1, *h.shape[2:], device=h.device)
        return constant_noise(self.layer_spec.id, int(h.shape[2]), int(h.shape[3])).to(h.device)


@BLOCKS.register(
    "blur-residual",
    "Residual layer that resamples with a low-pass filter.",
    "Karras et al. 2020, 1912.04958",
)
class BlurResidualBlock(Block):
    """(shortcut(x) + activation(conv(activation(conv(x))))) / sqrt(2), resampled with a filter.

    The shortcut is a 1×1 convolution.
    """

    can_widen = False
    activation_multiplier = 1.5

    @classmethod
    def macs_per_pixel(
        cls, layer_spec: LayerSpec, inner_width: int, role: Role, num_pixels: int
    ) -> float:
        if role == "discriminator":
            in_channels, filter_macs = layer_spec.width, 32
        else:
            in_channels, filter_macs = inner_width, 16
        macs_per_channel = layer_spec.kernel_size**2 * layer_spec.width
        conv = macs_per_channel * (in_channels + inner_width / layer_spec.resample_factor**2)
        return conv + filter_macs * layer_spec.width

    def build(self) -> None:
        in_channels, out_channels = self.in_channels, self.out_channels
        kernel_size, weight_spec = self.layer_spec.kernel_size, self.weight_spec
        self.conv1 = ScaledConv2d(in_channels, in_channels, kernel_size, weight_spec=weight_spec)
        self.conv2 = ScaledConv2d(
            in_channels, out_channels, kernel_size, weight_spec=weight_spec, bias=False
        )
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.skip = ScaledConv2d(
            in_channels, out_channels, 1, gain=1.0, weight_spec=weight_spec, bias=False
        )

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        h = self._conv_resample(self.activation(self.conv1(x)), self.conv2)
        h = self.activation(h + self.bias[:, None, None].to(h.dtype))
        return self.norm((self._conv_resample(x, self.skip) + h) / sqrt(2), style)

    def _conv_resample(self, x: Tensor, conv: ScaledConv2d) -> Tensor:
        """Return the convolution of ``x`` at the resolution of the output."""
        if self.up == 2:
            return upsample_conv_blur(x, conv.effective_weight)
        return blur_conv_downsample(x, conv.effective_weight) if self.down == 2 else conv(x)
