"""R3GAN's layers: grouped bottlenecks without normalization (Huang et al. 2024, 2501.05441)."""

from __future__ import annotations

from math import gcd, sqrt

from torch import Tensor, nn

from growgan.nets.blocks.base import BLOCKS, Block
from growgan.nets.layers import ScaledConv2d, ScaledGroupedConv2d
from growgan.nets.resampling import downsample_blur, upsample_blur
from growgan.nets.spec import LayerSpec, Role

EXPANSION_RATIO = 2  # channels inside the block for each channel outside
GROUP_WIDTH = 16  # channels in a group
# Fixup's gain for three convolutions per branch and eight layers (Zhang et al. 2019, 1901.09321).
# This is the published value for 32 pixels; it stays the same as the network grows.
FIXUP_GAIN = sqrt(2 / (1 + 0.2**2)) * 8**-0.25


@BLOCKS.register(
    "grouped",
    "Grouped bottleneck with a shortcut; starts as the identity.",
    "Huang et al. 2024, 2501.05441",
)
class GroupedBlock(Block):
    """x + conv(activation(grouped conv(activation(conv(x))))), with twice the channels inside.

    If size or width change, a low-pass filter and a 1×1 convolution stand on the base-grid side.
    """

    can_widen = False
    activation_multiplier = 5.0

    @property
    def normalized_channels(self) -> int:
        return EXPANSION_RATIO * self.layer_spec.width

    @classmethod
    def macs_per_pixel(
        cls, layer_spec: LayerSpec, inner_width: int, role: Role, num_pixels: int
    ) -> float:
        expanded = EXPANSION_RATIO * layer_spec.width
        return expanded * (2 * layer_spec.width + GROUP_WIDTH * layer_spec.kernel_size**2)

    def build(self) -> None:
        width = self.layer_spec.width
        expanded = EXPANSION_RATIO * width
        self.transition: nn.Module = nn.Identity()
        if self.in_channels != self.out_channels:
            self.transition = ScaledConv2d(
                self.in_channels,
                self.out_channels,
                1,
                gain=1.0,
                weight_spec=self.weight_spec,
                bias=False,
            )
        self.conv1 = ScaledConv2d(width, expanded, 1, gain=FIXUP_GAIN, weight_spec=self.weight_spec)
        self.conv2 = ScaledGroupedConv2d(
            expanded,
            gcd(expanded, GROUP_WIDTH),
            self.layer_spec.kernel_size,
            gain=FIXUP_GAIN,
            weight_spec=self.weight_spec,
        )
        self.conv3 = ScaledConv2d(
            expanded,
            width,
            1,
            gain=FIXUP_GAIN,
            weight_spec=self.weight_spec,
            zero_init=True,
            bias=False,
        )

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        if self.role == "generator":
            x = self.transition(x)
            x = upsample_blur(x) if self.up == 2 else x
        h = self.activation(self.conv2(self.activation(self.conv1(x))))
        x = x + self.conv3(self.norm(h, style))
        if self.role == "discriminator":
            x = self.transition(downsample_blur(x) if self.down == 2 else x)
        return x
