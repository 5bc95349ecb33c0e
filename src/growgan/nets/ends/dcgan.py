"""DCGAN's ends: strided convolutions to and from the image (Radford et al. 2016, 1511.06434)."""

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
from growgan.nets.layers import ACTIVATIONS, LinearMapWidths, LinearToGrid, ScaledConv2d
from growgan.nets.norms import BatchNorm
from growgan.nets.resampling import ScaledStridedConv2d
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec


class DCGANStem(Stem):
    """A dense map of the latent to the base grid, batch normalization and a rectifier."""

    linear_map_widths: ClassVar[LinearMapWidths] = {
        "project": (None, "stem"),
        "norm": (None, "stem"),
    }

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.project = LinearToGrid(
            spec.stem_input_dim,
            spec.stem_width,
            spec.base_grid,
            gain=2**0.5,
            weight_spec=spec.weight_spec,
        )
        self.norm = BatchNorm(spec.stem_width)
        self.activation = nn.ReLU()

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        return self.activation(self.norm(self.project(self.stem_input(w))))


class StridedToImage(ToImage):
    """A transposed convolution that doubles the resolution, and tanh."""

    def __init__(self, spec: GeneratorSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = ScaledStridedConv2d(
            width, spec.image_channels, 4, transposed=True, weight_spec=spec.weight_spec
        )

    def forward(
        self, h: Float[Tensor, "n d h w"], style: Tensor | None = None
    ) -> Float[Tensor, "n c h2 w2"]:
        return torch.tanh(self.conv(h))


class StridedFromImage(FromImage):
    """A convolution that halves the resolution, and a leaky rectifier."""

    def __init__(self, spec: DiscriminatorSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = ScaledStridedConv2d(
            spec.from_image_channels, width, 4, transposed=False, weight_spec=spec.weight_spec
        )
        self.activation = ACTIVATIONS["leaky_relu"]()

    def forward(self, x: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "n d h w"]:
        return self.activation(self.conv(x))


class DCGANEpilogue(DiscriminatorEpilogue):
    """One valid convolution from the base grid to the logit."""

    linear_map_widths: ClassVar[LinearMapWidths] = {"logit_layer": ("stem", None)}

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__(spec)
        if spec.has_logit:
            self.logit_layer = ScaledConv2d(
                spec.stem_width,
                1,
                spec.base_grid,
                gain=1.0,
                padding=0,
                weight_spec=spec.weight_spec,
            )

    @staticmethod
    def feature_dim(spec: DiscriminatorSpec) -> int:
        """Return the number of features, those of all cells of the base grid."""
        return spec.stem_width * spec.base_grid[0] * spec.base_grid[1]

    def forward(self, h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return h.movedim(1, -1).flatten(1)  # a view in channels-last memory format

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the logit of each feature vector."""
        grid = features.view(len(features), *self.spec.base_grid, self.spec.stem_width)
        return self.logit_layer(grid.movedim(-1, 1)).float().flatten()


ENDS.register(
    "dcgan",
    "Strided convolutions at the image, one convolution to the logit.",
    "Radford et al. 2016, 1511.06434",
)(
    NetworkEnds(
        stem=DCGANStem,
        to_image=StridedToImage,
        from_image=StridedFromImage,
        epilogue=DCGANEpilogue,
    )
)
