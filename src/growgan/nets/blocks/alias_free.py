"""StyleGAN3's layers, which translate with their input (Karras et al. 2021, 2106.12423)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growgan.nets.blocks.base import BLOCKS, StyledBlock
from growgan.nets.layers import HE_GAIN
from growgan.nets.resampling import downsample_lowpass, upsample_lowpass
from growgan.nets.spec import LayerSpec, Role

GRID_MARGIN_PIXELS = 10  # border of each feature map that lies outside the image
MAGNITUDE_EMA_DECAY = 0.999  # per batch, of the mean square of a layer's input


@BLOCKS.register(
    "alias-free",
    "Modulated convolution with a low-pass filtered activation; for G.",
    "Karras et al. 2021, 2106.12423",
)
class AliasFreeBlock(StyledBlock):
    """Modulated convolution, and an activation at twice the sampling rate between low-pass filters.

    The filters remove the frequencies that the activation adds above half of the sampling rate, so
    that the pixel grid leaves no trace (section 3). A kernel of one pixel uses a radial filter,
    which makes the layer rotate with its input as well (configuration R). Instead of pixel norm,
    the input is divided by a running mean of its magnitude. Unlike in the paper, no layer at the
    end is critically sampled, so that each size can be the final one or grow.

    Attributes:
        magnitude_ema: Running mean square of the input, a scalar.
    """

    activation_multiplier = 8.0
    grid_margin = GRID_MARGIN_PIXELS
    magnitude_ema: Tensor

    @classmethod
    def macs_per_pixel(
        cls, layer_spec: LayerSpec, inner_width: int, role: Role, num_pixels: int
    ) -> float:
        kernel_pixels = layer_spec.kernel_size**2
        conv = kernel_pixels * inner_width * layer_spec.width / layer_spec.resample_factor**2
        return conv + 12 * 12 * layer_spec.width

    def build(self) -> None:
        super().build()
        self.register_buffer("magnitude_ema", torch.ones(()))

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        if self.training:
            self.magnitude_ema.lerp_(x.detach().float().square().mean(), 1 - MAGNITUDE_EMA_DECAY)
        scale, weight = self.affine(style).float(), self.conv.effective_weight.float()
        # Normalize weights and styles to unit magnitude before demodulation.
        weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
        scale = scale * scale.square().mean(1, keepdim=True).rsqrt()
        demodulation = scale.square() @ weight.square().sum((2, 3)).T.float()  # (N, out)
        demodulation = torch.rsqrt(demodulation + 1e-8)
        scale = scale * torch.rsqrt(self.magnitude_ema)
        # Convolve.
        h = x * scale.to(x.dtype)[:, :, None, None]
        h = nn.functional.conv2d(h, weight, padding=weight.shape[-1] // 2)
        h = h * demodulation.to(h.dtype)[:, :, None, None] + self.bias[:, None, None].to(h.dtype)
        # Apply the activation at twice the larger sampling rate.
        h = self.activation(upsample_lowpass(h, 2 * self.up)) * HE_GAIN
        h = downsample_lowpass(h, 2, radial=self.layer_spec.kernel_size == 1)
        # Upsampling has doubled the margin, too. Crop it back.
        crop = GRID_MARGIN_PIXELS * (self.up - 1)
        return self.norm(h[:, :, crop : h.shape[2] - crop, crop : h.shape[3] - crop], style)
