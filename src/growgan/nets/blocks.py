"""Kinds of layer. A new kind is one class here: it then grows, trains and is listed.

A block is built as ``Block(layer, inner, role=..., rate=...)``, where ``inner`` is the width
on the small side. G's block maps ``inner`` to ``layer.width`` channels and may double the size;
D's maps ``layer.width`` to ``inner`` and may halve it.
"""

from __future__ import annotations

from torch import Tensor, nn

from growgan.config import Rate
from growgan.errors import UserError
from growgan.nets.layers import ACTIVATIONS, NORMS, Conv, StridedConv, downsample, upsample
from growgan.nets.spec import LayerSpec, Role
from growgan.registry import Registry

BLOCKS: Registry[type[Block]] = Registry("block")

BRANCH = 0.1  # gain of a residual branch's last convolution


class Block(nn.Module):
    """What every kind of layer shares: widths, resampling, and which widths are tied.

    Attributes:
        ties: True if the block adds its input to its output unchanged, so that the widths on its
            two sides must stay equal.
    """

    ties = False

    @property
    def normed(self) -> int:
        """How many channels are normalised: those of the output, unless a kind says otherwise."""
        return self.width_out

    def __init__(self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate) -> None:
        super().__init__()
        self.layer, self.role, self.rate = layer, role, rate
        self.up = layer.resample if role == "generator" else 1
        self.down = layer.resample if role == "discriminator" else 1
        sides = (inner, layer.width)
        self.width_in, self.width_out = sides if role == "generator" else sides[::-1]
        self.activation = ACTIVATIONS[layer.activation]()
        self.norm = NORMS[layer.norm](self.normed)


@BLOCKS.register("conv", "convolution, activation, norm", "Karras et al. 2018")
class ConvBlock(Block):
    """resample up → conv → activation → norm → resample down."""

    def __init__(self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate) -> None:
        super().__init__(layer, inner, role=role, rate=rate)
        self.conv = Conv(self.width_in, self.width_out, layer.kernel, rate=rate)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.activation(self.conv(upsample(x, self.up))))
        return downsample(h, self.down)


@BLOCKS.register("strided", "as conv, but the convolution itself resamples", "Radford et al. 2016")
class StridedBlock(Block):
    """conv → activation → norm, with stride 2 and one more row and column where it resamples.

    It does the work of a ``conv`` block with under half of its multiplications, and never holds
    features of the larger grid on its inner side.
    """

    def __init__(self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate) -> None:
        super().__init__(layer, inner, role=role, rate=rate)
        ends, size = (self.width_in, self.width_out), layer.kernel
        self.conv: nn.Module = Conv(*ends, size, rate=rate)
        if layer.resample == 2:
            doubles = role == "generator"
            self.conv = StridedConv(*ends, size + 1, doubles=doubles, rate=rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.conv(x)))


@BLOCKS.register("residual", "two convolutions beside a shortcut; starts as the identity")
class ResidualBlock(Block):
    """shortcut(x) + conv(norm(activation(conv(x)))), the last convolution zero at first.

    Zero initial weights make it the identity wherever size and width stay (Fixup, Zhang et al.
    2019), so it can be inserted anywhere without changing what the stack computes. The branch
    is scaled down by ``BRANCH``, and the steps of its last weights with that (but at the rate
    "plain"): each layer adds its own to the sum, and a rate that suits one layer is too much for
    six (Yang et al. 2023, 2310.02244).
    """

    @property
    def normed(self) -> int:
        return self.layer.width

    def __init__(self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate) -> None:
        super().__init__(layer, inner, role=role, rate=rate)
        middle, size = layer.width, layer.kernel
        self.ties = self.width_in == self.width_out
        self.conv1 = Conv(self.width_in, middle, size, rate=rate)
        self.conv2 = Conv(middle, self.width_out, size, gain=BRANCH, rate=rate, zero=True)
        self.skip = (
            nn.Identity()
            if self.ties
            else Conv(self.width_in, self.width_out, 1, gain=1.0, rate=rate)
        )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(self.norm(self.activation(self.conv1(upsample(x, self.up)))))
        shortcut = upsample(self.skip(x), self.up)
        return downsample(shortcut + branch, self.down)


@BLOCKS.register("dense", "a linear map of vectors", "Goodfellow et al. 2014")
class DenseBlock(Block):
    """linear map → activation → norm, of features [N, width, 1, 1]."""

    def __init__(self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate) -> None:
        super().__init__(layer, inner, role=role, rate=rate)
        if layer.resample != 1:
            raise UserError("a dense layer has no grid to double: resample must be 1")
        self.conv = Conv(self.width_in, self.width_out, 1, rate=rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.conv(x)))
