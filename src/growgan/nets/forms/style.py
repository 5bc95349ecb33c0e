"""StyleGAN2's ends: a learnt constant, styles, and an image that is a sum over all sizes."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.forms.base import FORMS, Ends, Form, Head, Stem
from growgan.nets.forms.progressive import FromImage, ProgressiveEnd
from growgan.nets.layers import ACTIVATIONS, Conv, Dense
from growgan.nets.norms import PixelNorm
from growgan.nets.spec import StackSpec

SPEED = 0.01  # of the mapping network, beside all else
MEMORY = 0.998  # of the mean style, a batch


class StyleStem(Stem):
    """A learnt constant for the base grid, and a mapping of z to the style of all layers."""

    ends: ClassVar[Ends] = {}

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.norm_latent = PixelNorm()
        self.mapping = nn.ModuleList(
            Dense(
                spec.latent + spec.label_width * (i == 0),
                spec.latent,
                gain=2**0.5,
                rate=spec.rate,
                speed=SPEED,
            )
            for i in range(spec.mapping)
        )
        self.activation = ACTIVATIONS["leaky_relu"]()
        self.constant = nn.Parameter(torch.randn(spec.stem, *spec.base))
        self.register_buffer("mean", torch.zeros(self.style_width(spec)))

    def embed(self, z: Float[Tensor, "n z"], label: Tensor | None) -> Float[Tensor, "n w"]:
        w = self.norm_latent(z)
        if label is not None:
            w = torch.cat([w, self.norm_latent(label)], 1)
        for layer in self.mapping:
            w = self.activation(layer(w))
        if self.training:
            self.mean.lerp_(w.detach().float().mean(0), 1 - MEMORY)
        return w

    def style(self, w: Float[Tensor, "n w"], index: int) -> Float[Tensor, "n w"]:
        return w

    @staticmethod
    def style_width(spec: StackSpec) -> int:
        return spec.latent if spec.mapping else spec.latent + spec.label_width

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        return self.constant.to(w.dtype).expand(w.shape[0], *self.constant.shape)


class StyledToImage(Head):
    """A 1×1 convolution to image channels, scaled by the style, linear."""

    def __init__(self, spec: StackSpec, width: int) -> None:
        super().__init__(spec, width)
        self.affine = Dense(StyleStem.style_width(spec), width, rate=spec.rate, bias=1.0)
        self.conv = Conv(width, spec.channels, 1, gain=1.0, rate=spec.rate)

    def forward(
        self, h: Float[Tensor, "n d h w"], style: Tensor | None = None
    ) -> Float[Tensor, "n c h w"]:
        return self.conv(h * self.affine(style).to(h.dtype)[:, :, None, None])


FORMS.register("style", "a constant, styles, a sum of images", "Karras et al. 2020, 1912.04958")(
    Form(
        StyleStem,
        StyledToImage,
        FromImage,
        ProgressiveEnd,
        widens=False,
        skips=True,
        decoder="progressive",
    )
)
