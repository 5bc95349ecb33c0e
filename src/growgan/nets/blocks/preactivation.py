"""Residual layers that normalise and rectify before they convolve (He et al. 2016, 1603.05027)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growgan.config import Rate
from growgan.nets.blocks.base import BLOCKS, Block
from growgan.nets.layers import Conv, downsample, upsample
from growgan.nets.norms import NORMS
from growgan.nets.spec import LayerSpec, Role


@BLOCKS.register(
    "preactivation", "residual; norm and activation come first", "Miyato et al. 2018, 1802.05957"
)
class PreactivationBlock(Block):
    """shortcut(x) + conv(activation(norm(conv(up(activation(norm(x))))))), then down.

    The shortcut has a 1×1 convolution where widths or sizes differ.
    """

    widens = False

    @property
    def normed(self) -> int:
        return self.width_in

    @classmethod
    def multiplications(cls, layer: LayerSpec, inner: int, role: Role, pixels: int) -> float:
        last = layer.width if role == "generator" else inner
        return layer.kernel**2 * last * (inner + layer.width)

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__(layer, inner, role=role, rate=rate, style=style)
        ends = (self.width_in, self.width_out)
        self.ties = ends[0] == ends[1] and layer.resample == 1
        self.norm2 = NORMS[layer.norm](self.width_out, style, rate)
        self.conv1 = Conv(*ends, layer.kernel, rate=rate)
        self.conv2 = Conv(self.width_out, self.width_out, layer.kernel, rate=rate)
        self.skip = nn.Identity() if self.ties else Conv(*ends, 1, gain=1.0, rate=rate)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        h = self.conv1(upsample(self.activation(self.norm(x, style)), self.up))
        h = self.conv2(self.activation(self.norm2(h, style)))
        # A 1×1 convolution and resampling commute; it is done on the smaller grid.
        return upsample(self.skip(downsample(x, self.down)), self.up) + downsample(h, self.down)


@BLOCKS.register(
    "bottleneck",
    "as preactivation, narrow inside, nothing in the shortcut",
    "Brock et al. 2019, 1809.11096",
)
class BottleneckBlock(Block):
    """shortcut(x) + four convolutions, each after norm and activation: 1×1, two wide, 1×1.

    Inside there are a quarter of the channels on the small side. The shortcut drops channels that
    are too many, and adds those that are missing by a 1×1 convolution (Brock et al. 2019,
    1809.11096, appendix B).
    """

    widens = False

    @property
    def normed(self) -> int:
        return self.width_in

    @classmethod
    def multiplications(cls, layer: LayerSpec, inner: int, role: Role, pixels: int) -> float:
        narrow = inner / 4
        return narrow * (2 * layer.kernel**2 * narrow + inner + layer.width)

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__(layer, inner, role=role, rate=rate, style=style)
        self.ties = self.width_in == self.width_out and layer.resample == 1
        narrow, size, norm = max(1, inner // 4), layer.kernel, NORMS[layer.norm]
        self.norms = nn.ModuleList(norm(narrow, style, rate) for _ in range(3))
        self.conv1 = Conv(self.width_in, narrow, 1, rate=rate)
        self.conv2 = Conv(narrow, narrow, size, rate=rate)
        self.conv3 = Conv(narrow, narrow, size, rate=rate)
        self.conv4 = Conv(narrow, self.width_out, 1, rate=rate)
        missing = self.width_out - self.width_in
        self.extra = Conv(self.width_in, missing, 1, gain=1.0, rate=rate) if missing > 0 else None

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        h = self.conv1(self.activation(self.norm(x, style)))
        h = self.conv2(upsample(self.activation(self.norms[0](h, style)), self.up))
        h = self.conv3(self.activation(self.norms[1](h, style)))
        h = self.conv4(downsample(self.activation(self.norms[2](h, style)), self.down))
        x = downsample(x, self.down)
        x = x[:, : self.width_out] if self.extra is None else torch.cat([x, self.extra(x)], 1)
        return upsample(x, self.up) + h
