"""Residual layers with norm and activation before the convolution (He et al. 2016, 1603.05027)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growgan.nets.blocks.base import BLOCKS, Block
from growgan.nets.layers import ScaledConv2d
from growgan.nets.resampling import downsample_average, upsample_nearest
from growgan.nets.spec import LayerSpec, Role


@BLOCKS.register(
    "preactivation",
    "Residual layer with norm and activation before each convolution.",
    "Miyato et al. 2018, 1802.05957",
)
class PreactivationBlock(Block):
    """shortcut(x) + conv(activation(norm(conv(up(activation(norm(x))))))), then downsampled.

    The shortcut has a 1×1 convolution if the width or the size changes.
    """

    can_widen = False

    @property
    def normalized_channels(self) -> int:
        return self.in_channels

    @classmethod
    def macs_per_pixel(
        cls, layer_spec: LayerSpec, inner_width: int, role: Role, num_pixels: int
    ) -> float:
        out_channels = layer_spec.width if role == "generator" else inner_width
        return layer_spec.kernel_size**2 * out_channels * (inner_width + layer_spec.width)

    def build(self) -> None:
        in_channels, out_channels = self.in_channels, self.out_channels
        kernel_size = self.layer_spec.kernel_size
        self.norm2 = self.build_norm(out_channels)
        self.conv1 = ScaledConv2d(
            in_channels, out_channels, kernel_size, weight_spec=self.weight_spec
        )
        self.conv2 = ScaledConv2d(
            out_channels, out_channels, kernel_size, weight_spec=self.weight_spec
        )
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels or self.layer_spec.resample_factor != 1:
            self.skip = ScaledConv2d(
                in_channels, out_channels, 1, gain=1.0, weight_spec=self.weight_spec
            )

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        h = self.conv1(upsample_nearest(self.activation(self.norm(x, style)), self.up))
        h = self.conv2(self.activation(self.norm2(h, style)))
        # A 1×1 convolution and resampling commute. Convolve on the smaller grid.
        shortcut = upsample_nearest(self.skip(downsample_average(x, self.down)), self.up)
        return shortcut + downsample_average(h, self.down)


@BLOCKS.register(
    "bottleneck",
    "Residual layer with few channels inside and no convolution in its shortcut.",
    "Brock et al. 2019, 1809.11096",
)
class BottleneckBlock(Block):
    """shortcut(x) + four convolutions, each after norm and activation: 1×1, two wider, 1×1.

    Inside there are a quarter of the channels of the base-grid side. The shortcut drops surplus
    channels, and computes missing ones by a 1×1 convolution (Brock et al. 2019, appendix B).
    """

    can_widen = False

    @property
    def normalized_channels(self) -> int:
        return self.in_channels

    @classmethod
    def macs_per_pixel(
        cls, layer_spec: LayerSpec, inner_width: int, role: Role, num_pixels: int
    ) -> float:
        narrow = inner_width / 4
        return narrow * (2 * layer_spec.kernel_size**2 * narrow + inner_width + layer_spec.width)

    def build(self) -> None:
        narrow = max(1, self.inner_width // 4)
        kernel_size, weight_spec = self.layer_spec.kernel_size, self.weight_spec
        self.norms = nn.ModuleList(self.build_norm(narrow) for _ in range(3))
        self.conv1 = ScaledConv2d(self.in_channels, narrow, 1, weight_spec=weight_spec)
        self.conv2 = ScaledConv2d(narrow, narrow, kernel_size, weight_spec=weight_spec)
        self.conv3 = ScaledConv2d(narrow, narrow, kernel_size, weight_spec=weight_spec)
        self.conv4 = ScaledConv2d(narrow, self.out_channels, 1, weight_spec=weight_spec)
        num_missing = self.out_channels - self.in_channels
        self.extra_channels: nn.Module | None = None
        if num_missing > 0:
            self.extra_channels = ScaledConv2d(
                self.in_channels, num_missing, 1, gain=1.0, weight_spec=weight_spec
            )

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        h = self.conv1(self.activation(self.norm(x, style)))
        h = self.conv2(upsample_nearest(self.activation(self.norms[0](h, style)), self.up))
        h = self.conv3(self.activation(self.norms[1](h, style)))
        h = self.conv4(downsample_average(self.activation(self.norms[2](h, style)), self.down))
        shortcut = downsample_average(x, self.down)
        if self.extra_channels is None:
            shortcut = shortcut[:, : self.out_channels]
        else:
            shortcut = torch.cat([shortcut, self.extra_channels(shortcut)], 1)
        return upsample_nearest(shortcut, self.up) + h
