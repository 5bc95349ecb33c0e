"""R3GAN's ends: weighted sums of learnt grids (Huang et al. 2024, 2501.05441, section 4)."""

from __future__ import annotations

from math import prod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.forms.base import FORMS, End, Ends, Form, Head, Stem
from growgan.nets.forms.progressive import ToImage
from growgan.nets.layers import Conv
from growgan.nets.spec import StackSpec


class BasisStem(Stem):
    """A learnt grid a channel, times a linear map of z."""

    ends: ClassVar[Ends] = {}

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.basis = nn.Parameter(torch.randn(spec.stem, *spec.base))
        self.linear = Conv(spec.stem_reads, spec.stem, 1, gain=1.0, rate=spec.rate, bias=False)

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        return self.linear(self.read(w)[:, :, None, None]) * self.basis


class LinearToImage(ToImage):
    """A 1×1 convolution to image channels, linear, without bias."""

    bias = False


class LinearFromImage(Head):
    """A 1×1 convolution from image channels, linear, without bias."""

    def __init__(self, spec: StackSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = Conv(spec.seen, width, 1, gain=1.0, rate=spec.rate, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return self.conv(x)


class BasisEnd(End):
    """Inner products with a learnt grid a channel, and a linear map to the logit."""

    ends: ClassVar[Ends] = {}

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.basis = nn.Parameter(torch.randn(spec.stem, *spec.base) / prod(spec.base) ** 0.5)
        if spec.has_logit:
            self.output = Conv(spec.stem, 1, 1, gain=1.0, rate=spec.rate, bias=False)

    def forward(self, h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return (h * self.basis).sum((2, 3))


FORMS.register("basis", "sums of learnt grids, linear heads", "Huang et al. 2024, 2501.05441")(
    Form(BasisStem, LinearToImage, LinearFromImage, BasisEnd, widens=False)
)
