"""The ends of the first GAN: features and images are vectors (Goodfellow et al. 2014)."""

from __future__ import annotations

from math import prod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from growgan.nets.ends.base import (
    ENDS,
    DiscriminatorEpilogue,
    FromImage,
    NetworkEnds,
    Stem,
    ToImage,
)
from growgan.nets.layers import ACTIVATIONS, LinearMapWidths, LinearToGrid, ScaledConv2d
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec


class DenseStem(Stem):
    """A dense map of the latent and a leaky rectifier; features are float ``[N, C, 1, 1]``."""

    linear_map_widths: ClassVar[LinearMapWidths] = {"project": (None, "stem")}

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.project = LinearToGrid(
            spec.stem_input_dim,
            spec.stem_width,
            (1, 1),
            gain=2**0.5,
            weight_spec=spec.weight_spec,
        )
        self.activation = ACTIVATIONS["leaky_relu"]()

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c 1 1"]:
        return self.activation(self.project(self.stem_input(w)))


class DenseToImage(ToImage):
    """A dense map to all pixels, and tanh."""

    def __init__(self, spec: GeneratorSpec, width: int) -> None:
        super().__init__(spec, width)
        self.image_shape = (spec.image_channels, *spec.base_grid)
        self.conv = ScaledConv2d(
            width, prod(self.image_shape), 1, gain=1.0, weight_spec=spec.weight_spec
        )

    def forward(
        self, h: Float[Tensor, "n d 1 1"], style: Tensor | None = None
    ) -> Float[Tensor, "n c h w"]:
        return torch.tanh(self.conv(h)).view(-1, *self.image_shape)


class DenseFromImage(FromImage):
    """A dense map of all pixels, and a leaky rectifier."""

    def __init__(self, spec: DiscriminatorSpec, width: int) -> None:
        super().__init__(spec, width)
        num_values = spec.from_image_channels * prod(spec.base_grid)
        self.conv = ScaledConv2d(num_values, width, 1, weight_spec=spec.weight_spec)
        self.activation = ACTIVATIONS["leaky_relu"]()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d 1 1"]:
        return self.activation(self.conv(x.flatten(1)[:, :, None, None]))


class DenseEpilogue(DiscriminatorEpilogue):
    """A linear map to the logit."""

    linear_map_widths: ClassVar[LinearMapWidths] = {"logit_layer": ("stem", None)}

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__(spec)
        if spec.has_logit:
            self.logit_layer = ScaledConv2d(
                spec.stem_width, 1, 1, gain=1.0, weight_spec=spec.weight_spec
            )

    def forward(self, h: Float[Tensor, "n c 1 1"]) -> Float[Tensor, "n d"]:
        return h.flatten(1)


ENDS.register(
    "dense", "Dense maps between vectors and all pixels.", "Goodfellow et al. 2014, 1406.2661"
)(
    NetworkEnds(
        stem=DenseStem,
        to_image=DenseToImage,
        from_image=DenseFromImage,
        epilogue=DenseEpilogue,
    )
)
