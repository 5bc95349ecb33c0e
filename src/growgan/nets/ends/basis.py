"""R3GAN's ends: weighted sums of learned grids (Huang et al. 2024, 2501.05441, section 4)."""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.ends.base import ENDS, DiscriminatorEpilogue, FromImage, NetworkEnds, Stem
from growgan.nets.ends.progressive import LinearToImage
from growgan.nets.layers import ScaledConv2d
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec


class BasisStem(Stem):
    """A learned grid for each channel, times a linear map of the latent."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.basis = nn.Parameter(torch.randn(spec.stem_width, *spec.base_grid))
        self.linear = ScaledConv2d(
            spec.stem_input_dim,
            spec.stem_width,
            1,
            gain=1.0,
            weight_spec=spec.weight_spec,
            bias=False,
        )

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        return self.linear(self.stem_input(w)[:, :, None, None]) * self.basis


class BiaslessToImage(LinearToImage):
    """A 1×1 convolution to image channels without bias."""

    has_bias = False


class BiaslessFromImage(FromImage):
    """A 1×1 convolution from image channels without bias or activation."""

    def __init__(self, spec: DiscriminatorSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = ScaledConv2d(
            spec.from_image_channels,
            width,
            1,
            gain=1.0,
            weight_spec=spec.weight_spec,
            bias=False,
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return self.conv(x)


class BasisEpilogue(DiscriminatorEpilogue):
    """The inner product with a learned grid for each channel, and a linear map to the logit."""

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__(spec)
        grid_size = prod(spec.base_grid)
        self.basis = nn.Parameter(torch.randn(spec.stem_width, *spec.base_grid) / grid_size**0.5)
        if spec.has_logit:
            self.logit_layer = ScaledConv2d(
                spec.stem_width, 1, 1, gain=1.0, weight_spec=spec.weight_spec, bias=False
            )

    def forward(self, h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return (h * self.basis).sum((2, 3))


ENDS.register(
    "r3gan",
    "Sums of learned grids, 1x1 convolutions without bias at the image.",
    "Huang et al. 2024, 2501.05441",
)(
    NetworkEnds(
        stem=BasisStem,
        to_image=BiaslessToImage,
        from_image=BiaslessFromImage,
        epilogue=BasisEpilogue,
        can_widen=False,
    )
)
