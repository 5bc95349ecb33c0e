"""The layers that growgan's own networks use, and those of the first GANs."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from growgan.nets.blocks.base import BLOCKS, Block
from growgan.nets.layers import LinearMapWidths, ScaledConv2d
from growgan.nets.resampling import ScaledStridedConv2d, downsample_average, upsample_nearest
from growgan.nets.spec import LayerSpec, Role

BRANCH_GAIN = 0.1  # gain of the last convolution of a residual branch


@BLOCKS.register("conv", "Convolution, activation, norm.", "Karras et al. 2018, 1710.10196")
class ConvBlock(Block):
    """Upsample → convolution → activation → norm → downsample."""

    linear_map_widths: ClassVar[LinearMapWidths] = {"conv": ("in", "out"), "norm": (None, "out")}

    def build(self) -> None:
        self.conv = ScaledConv2d(
            self.in_channels,
            self.out_channels,
            self.layer_spec.kernel_size,
            weight_spec=self.weight_spec,
        )

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        h = self.norm(self.activation(self.conv(upsample_nearest(x, self.up))), style)
        return downsample_average(h, self.down)


@BLOCKS.register(
    "strided",
    "Like conv, but the convolution itself resamples.",
    "Radford et al. 2016, 1511.06434",
)
class StridedBlock(Block):
    """Convolution → activation → norm; to resample, the stride is 2 and the kernel 1 pixel larger.

    It needs less than half of the multiplications of a ``conv`` block, and never stores features of
    the larger grid on its base-grid side.
    """

    linear_map_widths: ClassVar[LinearMapWidths] = {"conv": ("in", "out"), "norm": (None, "out")}

    @classmethod
    def macs_per_pixel(
        cls, layer_spec: LayerSpec, inner_width: int, role: Role, num_pixels: int
    ) -> float:
        if layer_spec.resample_factor == 1:
            return layer_spec.kernel_size**2 * inner_width * layer_spec.width
        return (layer_spec.kernel_size + 1) ** 2 / 4 * inner_width * layer_spec.width

    def build(self) -> None:
        kernel_size = self.layer_spec.kernel_size
        self.conv: nn.Module = ScaledConv2d(
            self.in_channels, self.out_channels, kernel_size, weight_spec=self.weight_spec
        )
        if self.layer_spec.resample_factor == 2:
            self.conv = ScaledStridedConv2d(
                self.in_channels,
                self.out_channels,
                kernel_size + 1,
                transposed=self.role == "generator",
                weight_spec=self.weight_spec,
            )

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        return self.norm(self.activation(self.conv(x)), style)


@BLOCKS.register("residual", "Two convolutions with a shortcut; starts as the identity.")
class ResidualBlock(Block):
    """shortcut(x) + conv(norm(activation(conv(x)))), where the last convolution starts at zero.

    The zero weights make the block the identity if size and width stay the same (Fixup, Zhang et
    al. 2019), so it can be inserted anywhere without a change of the output. The gain of the last
    convolution is ``BRANCH_GAIN``, which with the parametrization "equalized" also reduces its
    steps: every block adds its change to the sum, and a learning rate that suits one block is too
    high for six (Yang et al. 2023, 2310.02244).
    """

    linear_map_widths: ClassVar[LinearMapWidths] = {
        "conv1": ("in", "width"),
        "norm": (None, "width"),
        "conv2": ("width", "out"),
        "skip": ("in", "out"),
    }
    activation_multiplier = 2.0

    @property
    def normalized_channels(self) -> int:
        return self.layer_spec.width

    @classmethod
    def macs_per_pixel(
        cls, layer_spec: LayerSpec, inner_width: int, role: Role, num_pixels: int
    ) -> float:
        out_channels = layer_spec.width if role == "generator" else inner_width
        return layer_spec.kernel_size**2 * layer_spec.width * (inner_width + out_channels)

    def build(self) -> None:
        width, kernel_size = self.layer_spec.width, self.layer_spec.kernel_size
        self.conv1 = ScaledConv2d(
            self.in_channels, width, kernel_size, weight_spec=self.weight_spec
        )
        self.conv2 = ScaledConv2d(
            width,
            self.out_channels,
            kernel_size,
            gain=BRANCH_GAIN,
            weight_spec=self.weight_spec,
            zero_init=True,
        )
        self.skip: nn.Module = nn.Identity()
        if self.in_channels != self.out_channels:
            self.skip = ScaledConv2d(
                self.in_channels, self.out_channels, 1, gain=1.0, weight_spec=self.weight_spec
            )

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        h = self.activation(self.conv1(upsample_nearest(x, self.up)))
        h = self.conv2(self.norm(h, style))
        shortcut = upsample_nearest(self.skip(x), self.up)
        return downsample_average(shortcut + h, self.down)


@BLOCKS.register("dense", "Dense map of vectors.", "Goodfellow et al. 2014, 1406.2661")
class DenseBlock(Block):
    """Dense map → activation → norm of features float ``[N, C, 1, 1]``."""

    linear_map_widths: ClassVar[LinearMapWidths] = {"conv": ("in", "out"), "norm": (None, "out")}

    can_resample = False

    def build(self) -> None:
        self.conv = ScaledConv2d(
            self.in_channels, self.out_channels, 1, weight_spec=self.weight_spec
        )

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        return self.norm(self.activation(self.conv(x)), style)
