"""PGGAN's ends (Karras et al. 2018, appendix A), which growgan's own networks use."""

from __future__ import annotations

from math import prod
from typing import ClassVar

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
from growgan.nets.minibatch import MinibatchStdDev
from growgan.nets.norms import PixelNorm
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec


class ProgressiveStem(Stem):
    """A dense map of the normalized latent to the base grid, activation and pixel norm."""

    linear_map_widths: ClassVar[LinearMapWidths] = {"project": (None, "stem")}

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.norm_latent = PixelNorm()
        self.project = LinearToGrid(
            spec.stem_input_dim,
            spec.stem_width,
            spec.base_grid,
            gain=2**0.5 / 4,  # as published
            weight_spec=spec.weight_spec,
        )
        self.activation = ACTIVATIONS["leaky_relu"]()
        self.norm = PixelNorm()

    def map_to_w(self, z: Float[Tensor, "n z"], label: Tensor | None) -> Float[Tensor, "n w"]:
        """Return latents of length sqrt(latent_dim) followed by embedded labels."""
        return super().map_to_w(self.norm_latent(z), label)

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        return self.norm(self.activation(self.project(self.stem_input(w))))


class LinearToImage(ToImage):
    """A 1×1 convolution to image channels."""

    has_bias: ClassVar[bool] = True

    def __init__(self, spec: GeneratorSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = ScaledConv2d(
            width,
            spec.image_channels,
            1,
            gain=1.0,
            weight_spec=spec.weight_spec,
            bias=self.has_bias,
        )

    def forward(
        self, h: Float[Tensor, "n d h w"], style: Tensor | None = None
    ) -> Float[Tensor, "n c h w"]:
        return self.conv(h)


class ActivatedFromImage(FromImage):
    """A 1×1 convolution from image channels and a leaky rectifier."""

    def __init__(self, spec: DiscriminatorSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = ScaledConv2d(spec.from_image_channels, width, 1, weight_spec=spec.weight_spec)
        self.activation = ACTIVATIONS["leaky_relu"]()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return self.activation(self.conv(x))


class ProgressiveEpilogue(DiscriminatorEpilogue):
    """Minibatch standard deviation, a 3×3 convolution, and one from the base grid to features.

    With ``patch_discriminator`` the second convolution keeps the base grid, and each of its cells
    has a logit (PatchGAN: Isola et al. 2017, 1611.07004).
    """

    linear_map_widths: ClassVar[LinearMapWidths] = {
        "conv": ("stem", "stem"),
        "to_features": ("stem", "stem"),
        "logit_layer": ("stem", None),
    }

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__(spec)
        group_size, width, weight_spec = spec.mbstd_group_size, spec.stem_width, spec.weight_spec
        self.minibatch_stddev = MinibatchStdDev(group_size) if group_size else nn.Identity()
        num_extra_maps = 1 if group_size else 0
        self.num_extra_inputs = {"conv": num_extra_maps}
        self.conv = ScaledConv2d(width + num_extra_maps, width, 3, weight_spec=weight_spec)
        if spec.patch_discriminator:
            self.to_features = ScaledConv2d(width, width, 3, weight_spec=weight_spec)
        else:
            self.to_features = ScaledConv2d(
                width, width, spec.base_grid, padding=0, weight_spec=weight_spec
            )
        self.activation = ACTIVATIONS["leaky_relu"]()
        if spec.has_logit:
            self.logit_layer = ScaledConv2d(width, 1, 1, gain=1.0, weight_spec=weight_spec)

    @staticmethod
    def feature_dim(spec: DiscriminatorSpec) -> int:
        """Return the number of features; those of all cells with ``patch_discriminator``."""
        return spec.stem_width * (prod(spec.base_grid) if spec.patch_discriminator else 1)

    def forward(self, h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        h = self.activation(self.conv(self.minibatch_stddev(h)))
        return self.activation(self.to_features(h)).flatten(1)

    def logits(self, features: Float[Tensor, "n d"]) -> Tensor:
        """Return logits float ``[N]``, or ``[N, P]`` for P cells."""
        if not self.spec.patch_discriminator:
            return super().logits(features)
        grid = features.unflatten(1, (self.spec.stem_width, *self.spec.base_grid))
        logits: Tensor = self.logit_layer(grid)
        return logits.float().flatten(1)


ENDS.register(
    "pggan",
    "Dense stem, 1x1 convolutions at the image, minibatch standard deviation.",
    "Karras et al. 2018, 1710.10196",
)(
    NetworkEnds(
        stem=ProgressiveStem,
        to_image=LinearToImage,
        from_image=ActivatedFromImage,
        epilogue=ProgressiveEpilogue,
    )
)
