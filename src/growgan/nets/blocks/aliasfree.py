"""StyleGAN3's layers: shifts of what comes in are shifts of what goes out (2106.12423)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growgan.config import Rate
from growgan.nets.blocks.base import BLOCKS, StyledBlock
from growgan.nets.filters import shrink, stretch
from growgan.nets.layers import GAIN
from growgan.nets.spec import LayerSpec, Role

MARGIN = 10  # pixels on each side of a grid that belong to no image
MEMORY = 0.999  # of the mean square of a layer's input, a batch


@BLOCKS.register(
    "alias-free", "modulated, nonlinear between filters", "Karras et al. 2021, 2106.12423"
)
class AliasFreeBlock(StyledBlock):
    """Modulated convolution; activation at twice the larger rate, between low-pass filters.

    What the activation adds above half of the rate is filtered away, so that no pixel grid shows
    (Karras et al. 2021, section 3). Weights of one pixel make a radial filter, and with it a layer
    that rotates with its input, too (configuration R). In place of pixel norms the input is divided
    by a running mean of its size. Grids have a margin on all sides. Unlike in the published stack
    no layer at the end is critically sampled, so that each size may be the last one or grow.

    Attributes:
        size: running mean square of the input.
    """

    held = 8.0
    margin = MARGIN
    size: Tensor

    @classmethod
    def multiplications(cls, layer: LayerSpec, inner: int, role: Role, pixels: int) -> float:
        convolved = layer.kernel**2 * inner * layer.width / layer.resample**2
        return convolved + 12 * 12 * layer.width

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__(layer, inner, role=role, rate=rate, style=style)
        self.register_buffer("size", torch.ones(()))

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        if self.training:
            self.size.lerp_(x.detach().float().square().mean(), 1 - MEMORY)
        scale, weight = self.affine(style).float(), self.conv.used.float()
        # Weights and styles are brought to unit size before one norms the other.
        weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
        scale = scale * scale.square().mean(1, keepdim=True).rsqrt()
        norm = torch.rsqrt(scale.square() @ weight.square().sum((2, 3)).T.float() + 1e-8)
        scale = scale * torch.rsqrt(self.size)
        h = x * scale.to(x.dtype)[:, :, None, None]
        h = nn.functional.conv2d(h, weight, padding=weight.shape[-1] // 2)
        h = h * norm.to(h.dtype)[:, :, None, None] + self.bias[:, None, None].to(h.dtype)
        h = self.activation(stretch(h, 2 * self.up)) * GAIN
        h = shrink(h, 2, radial=self.layer.kernel == 1)
        cut = MARGIN * (self.up - 1)  # a doubled margin is cut back
        return self.norm(h[:, :, cut : h.shape[2] - cut, cut : h.shape[3] - cut], style)
