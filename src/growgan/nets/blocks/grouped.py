"""R3GAN's layers: grouped bottlenecks without normalisation (Huang et al. 2024, 2501.05441)."""

from __future__ import annotations

from math import gcd, sqrt

from torch import Tensor, nn

from growgan.config import Rate
from growgan.nets.blocks.base import BLOCKS, Block
from growgan.nets.filters import smooth_downsample, smooth_upsample
from growgan.nets.layers import Conv, GroupedConv
from growgan.nets.spec import LayerSpec, Role

EXPANSION = 2
GROUP = 16  # channels that a group reads
# Fixup's gain for branches of three maps in a stack of eight (Zhang et al. 2019, 1901.09321): as
# published at 32 pixels, and held as the stack grows.
GAIN = sqrt(2 / (1 + 0.2**2)) * 8**-0.25


@BLOCKS.register(
    "grouped", "grouped bottleneck, starts as the identity", "Huang et al. 2024, 2501.05441"
)
class GroupedBlock(Block):
    """x + conv(activation(grouped conv(activation(conv(x))))), of twice the channels inside.

    Where sizes or widths differ a 1×1 convolution and a low-pass filter stand between the layer and
    the small side.
    """

    widens = False
    held = 5.0

    @property
    def normed(self) -> int:
        return EXPANSION * self.layer.width

    @classmethod
    def multiplications(cls, layer: LayerSpec, inner: int, role: Role, pixels: int) -> float:
        inside = EXPANSION * layer.width
        return inside * (2 * layer.width + GROUP * layer.kernel**2)

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__(layer, inner, role=role, rate=rate, style=style)
        width, ends = layer.width, (self.width_in, self.width_out)
        inside, group = EXPANSION * width, gcd(EXPANSION * width, GROUP)
        self.change = (
            nn.Identity() if ends[0] == ends[1] else Conv(*ends, 1, gain=1.0, rate=rate, bias=False)
        )
        self.conv1 = Conv(width, inside, 1, gain=GAIN, rate=rate)
        self.conv2 = GroupedConv(inside, group, layer.kernel, gain=GAIN, rate=rate)
        self.conv3 = Conv(inside, width, 1, gain=GAIN, rate=rate, zero=True, bias=False)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        if self.role == "generator":
            x = self.change(x)
            x = smooth_upsample(x) if self.up == 2 else x
        h = self.activation(self.conv2(self.activation(self.conv1(x))))
        x = x + self.conv3(self.norm(h, style))
        if self.role == "discriminator":
            x = self.change(smooth_downsample(x) if self.down == 2 else x)
        return x
