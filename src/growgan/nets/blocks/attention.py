"""Self-attention over the pixels of a feature map (Zhang et al. 2019, 1805.08318)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growgan.nets.blocks.base import BLOCKS, Block
from growgan.nets.layers import ScaledConv2d
from growgan.nets.spec import LayerSpec, Role


@BLOCKS.register("attention", "Self-attention over pixels.", "Zhang et al. 2019, 1805.08318")
class AttentionBlock(Block):
    """x_j + γ v(Σ_i β_ji h(x_i)), where β_j = softmax_i(f(x_i)ᵀ g(x_j)): equations 1 to 3.

    f, g and h are 1×1 convolutions to an eighth of the channels. γ starts at 0, so that a new layer
    does not change the output.
    """

    can_widen = False
    can_resample = False
    preserves_width = True

    @classmethod
    def macs_per_pixel(
        cls, layer_spec: LayerSpec, inner_width: int, role: Role, num_pixels: int
    ) -> float:
        return inner_width * (inner_width + num_pixels / 2) / 2

    def build(self) -> None:
        width = self.inner_width
        self.attention_channels = max(1, width // 8)
        self.f = self._linear(width, self.attention_channels)
        self.g = self._linear(width, self.attention_channels)
        self.h = self._linear(width, self.attention_channels)
        self.v = self._linear(self.attention_channels, width)
        self.gamma = nn.Parameter(torch.zeros(()))

    def _linear(self, in_channels: int, out_channels: int) -> ScaledConv2d:
        return ScaledConv2d(
            in_channels, out_channels, 1, gain=1.0, weight_spec=self.weight_spec, bias=False
        )

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        f, g, h = (conv(x).flatten(2) for conv in (self.f, self.g, self.h))  # (N, C/8, H·W)
        beta = torch.softmax(g.transpose(1, 2) @ f, 2)  # (N, H·W of j, H·W of i)
        attended = (h @ beta.transpose(1, 2)).view(-1, self.attention_channels, *x.shape[2:])
        return x + self.gamma.to(x.dtype) * self.v(attended)
