"""The ends of SNGAN, SAGAN and BigGAN (Miyato et al. 2018, 1802.05957, table 3)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.ends.base import (
    ENDS,
    DiscriminatorEpilogue,
    FromImage,
    NetworkEnds,
    Stem,
    ToImage,
)
from growgan.nets.layers import LinearMapWidths, LinearToGrid, ScaledConv2d
from growgan.nets.norms import BatchNorm
from growgan.nets.resampling import downsample_average
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec


class ResnetStem(Stem):
    """A dense map of the latent to the base grid."""

    linear_map_widths: ClassVar[LinearMapWidths] = {"project": (None, "stem")}

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.project = LinearToGrid(
            spec.stem_input_dim,
            spec.stem_width,
            spec.base_grid,
            gain=1.0,
            weight_spec=spec.weight_spec,
        )

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        return self.project(self.stem_input(w))


class BatchNormToImage(ToImage):
    """Batch normalization, a rectifier, a 3×3 convolution and tanh."""

    def __init__(self, spec: GeneratorSpec, width: int) -> None:
        super().__init__(spec, width)
        self.norm = BatchNorm(width)
        self.activation = nn.ReLU()
        self.conv = ScaledConv2d(
            width, spec.image_channels, 3, gain=1.0, weight_spec=spec.weight_spec
        )

    def forward(
        self, h: Float[Tensor, "n d h w"], style: Tensor | None = None
    ) -> Float[Tensor, "n c h w"]:
        return torch.tanh(self.conv(self.activation(self.norm(h))))


class ResidualFromImage(FromImage):
    """A residual layer that halves the resolution and does not rectify the image first."""

    def __init__(self, spec: DiscriminatorSpec, width: int) -> None:
        super().__init__(spec, width)
        in_channels, weight_spec = spec.from_image_channels, spec.weight_spec
        self.conv1 = ScaledConv2d(in_channels, width, 3, weight_spec=weight_spec)
        self.activation = nn.ReLU()
        self.conv2 = ScaledConv2d(width, width, 3, weight_spec=weight_spec)
        self.skip = ScaledConv2d(in_channels, width, 1, gain=1.0, weight_spec=weight_spec)

    def forward(self, x: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "n d h w"]:
        h = self.conv2(self.activation(self.conv1(x)))
        return downsample_average(h) + self.skip(downsample_average(x))


class ConvFromImage(FromImage):
    """A 3×3 convolution."""

    def __init__(self, spec: DiscriminatorSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = ScaledConv2d(spec.from_image_channels, width, 3, weight_spec=spec.weight_spec)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return self.conv(x)


class SumPoolEpilogue(DiscriminatorEpilogue):
    """Rectified features summed over the base grid, and a linear map to the logit."""

    linear_map_widths: ClassVar[LinearMapWidths] = {"logit_layer": ("stem", None)}

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__(spec)
        self.activation = nn.ReLU()
        if spec.has_logit:
            self.logit_layer = ScaledConv2d(
                spec.stem_width, 1, 1, gain=1.0, weight_spec=spec.weight_spec
            )

    def forward(self, h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.activation(h).sum((2, 3))


ENDS.register(
    "resnet",
    "Linear stem, residual layer of D at the image, sum over the base grid.",
    "Miyato et al. 2018, 1802.05957",
)(
    NetworkEnds(
        stem=ResnetStem,
        to_image=BatchNormToImage,
        from_image=ResidualFromImage,
        epilogue=SumPoolEpilogue,
        can_widen=False,
    )
)
ENDS.register(
    "biggan-deep",
    "Like resnet, with one convolution of D at the image.",
    "Brock et al. 2019, 1809.11096",
)(
    NetworkEnds(
        stem=ResnetStem,
        to_image=BatchNormToImage,
        from_image=ConvFromImage,
        epilogue=SumPoolEpilogue,
        can_widen=False,
    )
)
