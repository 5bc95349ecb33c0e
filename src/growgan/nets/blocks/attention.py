"""Self-attention over the grid (Zhang et al. 2019, 1805.08318)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growgan.config import Rate
from growgan.errors import UserError
from growgan.nets.blocks.base import BLOCKS, Block
from growgan.nets.layers import Conv
from growgan.nets.spec import LayerSpec, Role


@BLOCKS.register("attention", "self-attention over the grid", "Zhang et al. 2019, 1805.08318")
class AttentionBlock(Block):
    """x_j + γ v(Σ_i β_ji h(x_i)), β_j = softmax_i(f(x_i)ᵀ g(x_j)): equations 1 to 3.

    f, g and h are 1×1 convolutions to an eighth of the channels; γ starts at 0, so that a new layer
    changes nothing.
    """

    widens = False
    resamples = False
    keeps_width = True

    @classmethod
    def multiplications(cls, layer: LayerSpec, inner: int, role: Role, pixels: int) -> float:
        return inner * (inner + pixels / 2) / 2

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__(layer, inner, role=role, rate=rate, style=style)
        if inner != layer.width:
            raise UserError(f"an attention layer keeps its {inner} channels, not {layer.width}")
        self.ties = True
        self.few = max(1, inner // 8)
        self.f, self.g, self.h = (
            Conv(inner, self.few, 1, gain=1.0, rate=rate, bias=False) for _ in range(3)
        )
        self.v = Conv(self.few, inner, 1, gain=1.0, rate=rate, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        f, g, h = (conv(x).flatten(2) for conv in (self.f, self.g, self.h))  # [N, few, H * W]
        beta = torch.softmax(g.transpose(1, 2) @ f, 2)  # [N, H * W of j, H * W of i]
        seen = (h @ beta.transpose(1, 2)).view(-1, self.few, *x.shape[2:])
        return x + self.gamma.to(x.dtype) * self.v(seen)
