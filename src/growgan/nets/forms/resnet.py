"""The ends of residual GANs: SNGAN, SAGAN and BigGAN (Miyato et al. 2018, 1802.05957, table 3)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.forms.base import FORMS, End, Ends, Form, Head, Stem
from growgan.nets.layers import Conv, Project, downsample
from growgan.nets.norms import BatchNorm
from growgan.nets.spec import StackSpec


class ResnetStem(Stem):
    """A linear map of z to the base grid."""

    ends: ClassVar[Ends] = {"project": (None, "stem")}

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.project = Project(spec.stem_reads, spec.stem, spec.base, gain=1.0, rate=spec.rate)

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        return self.project(self.read(w))


class NormedToImage(Head):
    """Normalisation over the batch, rectifier, 3×3 convolution, tanh."""

    def __init__(self, spec: StackSpec, width: int) -> None:
        super().__init__(spec, width)
        self.norm = BatchNorm(width)
        self.activation = nn.ReLU()
        self.conv = Conv(width, spec.channels, 3, gain=1.0, rate=spec.rate)

    def forward(
        self, h: Float[Tensor, "n d h w"], style: Tensor | None = None
    ) -> Float[Tensor, "n c h w"]:
        return torch.tanh(self.conv(self.activation(self.norm(h))))


class ResidualFromImage(Head):
    """A residual layer that halves the image, and does not rectify it first."""

    def __init__(self, spec: StackSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv1 = Conv(spec.seen, width, 3, rate=spec.rate)
        self.activation = nn.ReLU()
        self.conv2 = Conv(width, width, 3, rate=spec.rate)
        self.skip = Conv(spec.seen, width, 1, gain=1.0, rate=spec.rate)

    def forward(self, x: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "n d h w"]:
        h = self.conv2(self.activation(self.conv1(x)))
        return downsample(h) + self.skip(downsample(x))


class ConvFromImage(Head):
    """A 3×3 convolution."""

    def __init__(self, spec: StackSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = Conv(spec.seen, width, 3, rate=spec.rate)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return self.conv(x)


class PooledEnd(End):
    """Rectified features summed over the grid, and a linear map to the logit."""

    ends: ClassVar[Ends] = {"output": ("stem", None)}

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.activation = nn.ReLU()
        if spec.has_logit:
            self.output = Conv(spec.stem, 1, 1, gain=1.0, rate=spec.rate)

    def forward(self, h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.activation(h).sum((2, 3))


FORMS.register(
    "resnet", "linear stem, residual head of D, sum over the grid", "Miyato et al. 2018, 1802.05957"
)(Form(ResnetStem, NormedToImage, ResidualFromImage, PooledEnd, widens=False))
FORMS.register("deep", "as resnet, D's head one convolution", "Brock et al. 2019, 1809.11096")(
    Form(ResnetStem, NormedToImage, ConvFromImage, PooledEnd, widens=False)
)
