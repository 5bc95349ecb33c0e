"""The kinds of layer that growgan's own stacks are made of, and those of the earliest GANs."""

from __future__ import annotations

from torch import Tensor, nn

from growgan.config import Rate
from growgan.nets.blocks.base import BLOCKS, Block
from growgan.nets.layers import Conv, downsample, upsample
from growgan.nets.spec import LayerSpec, Role
from growgan.nets.strided import StridedConv

BRANCH = 0.1  # gain of a residual branch's last convolution


@BLOCKS.register("conv", "convolution, activation, norm", "Karras et al. 2018, 1710.10196")
class ConvBlock(Block):
    """resample up → conv → activation → norm → resample down."""

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__(layer, inner, role=role, rate=rate, style=style)
        self.conv = Conv(self.width_in, self.width_out, layer.kernel, rate=rate)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        h = self.norm(self.activation(self.conv(upsample(x, self.up))), style)
        return downsample(h, self.down)


@BLOCKS.register(
    "strided", "as conv, but the convolution itself resamples", "Radford et al. 2016, 1511.06434"
)
class StridedBlock(Block):
    """conv → activation → norm, with stride 2 and one more row and column where it resamples.

    It does the work of a ``conv`` block with under half of its multiplications, and never holds
    features of the larger grid on its inner side.
    """

    @classmethod
    def multiplications(cls, layer: LayerSpec, inner: int, role: Role, pixels: int) -> float:
        size = layer.kernel**2 if layer.resample == 1 else (layer.kernel + 1) ** 2 / 4
        return size * inner * layer.width

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__(layer, inner, role=role, rate=rate, style=style)
        ends, size = (self.width_in, self.width_out), layer.kernel
        self.conv: nn.Module = Conv(*ends, size, rate=rate)
        if layer.resample == 2:
            doubles = role == "generator"
            self.conv = StridedConv(*ends, size + 1, doubles=doubles, rate=rate)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        return self.norm(self.activation(self.conv(x)), style)


@BLOCKS.register("residual", "two convolutions beside a shortcut; starts as the identity")
class ResidualBlock(Block):
    """shortcut(x) + conv(norm(activation(conv(x)))), the last convolution zero at first.

    Zero initial weights make it the identity wherever size and width stay (Fixup, Zhang et al.
    2019), so it can be inserted anywhere without changing what the stack computes. The branch
    is scaled down by ``BRANCH``, and the steps of its last weights with that (but at the rate
    "plain"): each layer adds its own to the sum, and a rate that suits one layer is too much for
    six (Yang et al. 2023, 2310.02244).
    """

    held = 2.0

    @property
    def normed(self) -> int:
        return self.layer.width

    @classmethod
    def multiplications(cls, layer: LayerSpec, inner: int, role: Role, pixels: int) -> float:
        last = layer.width if role == "generator" else inner
        return layer.kernel**2 * layer.width * (inner + last)

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__(layer, inner, role=role, rate=rate, style=style)
        middle, size = layer.width, layer.kernel
        self.ties = self.width_in == self.width_out
        self.conv1 = Conv(self.width_in, middle, size, rate=rate)
        self.conv2 = Conv(middle, self.width_out, size, gain=BRANCH, rate=rate, zero=True)
        self.skip = (
            nn.Identity()
            if self.ties
            else Conv(self.width_in, self.width_out, 1, gain=1.0, rate=rate)
        )

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        inside = self.activation(self.conv1(upsample(x, self.up)))
        branch = self.conv2(self.norm(inside, style))
        shortcut = upsample(self.skip(x), self.up)
        return downsample(shortcut + branch, self.down)


@BLOCKS.register("dense", "a linear map of vectors", "Goodfellow et al. 2014, 1406.2661")
class DenseBlock(Block):
    """linear map → activation → norm, of features [N, width, 1, 1]."""

    resamples = False

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__(layer, inner, role=role, rate=rate, style=style)
        self.conv = Conv(self.width_in, self.width_out, 1, rate=rate)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        return self.norm(self.activation(self.conv(x)), style)
