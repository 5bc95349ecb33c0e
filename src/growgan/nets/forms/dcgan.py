"""DCGAN's ends (Radford et al. 2016, 1511.06434): strided convolutions to and from the image."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.forms.base import FORMS, End, Ends, Form, Head, Stem
from growgan.nets.layers import ACTIVATIONS, Conv, Project
from growgan.nets.norms import BatchNorm
from growgan.nets.spec import StackSpec
from growgan.nets.strided import StridedConv


class DcganStem(Stem):
    """z projected to the base grid, normalised over the batch, rectified."""

    ends: ClassVar[Ends] = {"project": (None, "stem"), "norm": (None, "stem")}

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.project = Project(spec.stem_reads, spec.stem, spec.base, gain=2**0.5, rate=spec.rate)
        self.norm = BatchNorm(spec.stem)
        self.activation = nn.ReLU()

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        return self.activation(self.norm(self.project(self.read(w))))


class StridedToImage(Head):
    """A transposed convolution that doubles the size, and tanh."""

    def __init__(self, spec: StackSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = StridedConv(width, spec.channels, 4, doubles=True, rate=spec.rate)

    def forward(
        self, h: Float[Tensor, "n d h w"], style: Tensor | None = None
    ) -> Float[Tensor, "n c h2 w2"]:
        return torch.tanh(self.conv(h))


class StridedFromImage(Head):
    """A convolution that halves the size, and a leaky rectifier."""

    def __init__(self, spec: StackSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = StridedConv(spec.seen, width, 4, doubles=False, rate=spec.rate)
        self.activation = ACTIVATIONS["leaky_relu"]()

    def forward(self, x: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "n d h w"]:
        return self.activation(self.conv(x))


class DcganEnd(End):
    """One valid convolution from the base grid to the logit."""

    ends: ClassVar[Ends] = {"output": ("stem", None)}

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        if spec.has_logit:
            self.output = Conv(spec.stem, 1, spec.base, gain=1.0, rate=spec.rate, padding=0)

    @staticmethod
    def width(spec: StackSpec) -> int:
        return spec.stem * spec.base[0] * spec.base[1]

    def forward(self, h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return h.movedim(1, -1).flatten(1)  # a view: channels come last

    def judge(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        grid = features.view(len(features), *self.spec.base, self.spec.stem)
        return self.output(grid.movedim(-1, 1)).float().flatten()


FORMS.register(
    "dcgan", "strided heads, tanh, one convolution to the logit", "Radford et al. 2016, 1511.06434"
)(Form(DcganStem, StridedToImage, StridedFromImage, DcganEnd))
