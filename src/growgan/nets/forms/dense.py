"""The ends of the first GAN (Goodfellow et al. 2014): features and images are vectors."""

from __future__ import annotations

from math import prod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from growgan.nets.forms.base import FORMS, End, Ends, Form, Head, Stem
from growgan.nets.layers import ACTIVATIONS, Conv, Project
from growgan.nets.spec import StackSpec


class DenseStem(Stem):
    """A linear map of z and a rectifier; features are [N, width, 1, 1]."""

    ends: ClassVar[Ends] = {"project": (None, "stem")}

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.project = Project(spec.stem_reads, spec.stem, (1, 1), gain=2**0.5, rate=spec.rate)
        self.activation = ACTIVATIONS["leaky_relu"]()

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c 1 1"]:
        return self.activation(self.project(self.read(w)))


class DenseToImage(Head):
    """A linear map to all pixels, and tanh."""

    def __init__(self, spec: StackSpec, width: int) -> None:
        super().__init__(spec, width)
        self.size = (spec.channels, *spec.base)
        self.conv = Conv(width, prod(self.size), 1, gain=1.0, rate=spec.rate)

    def forward(
        self, h: Float[Tensor, "n d 1 1"], style: Tensor | None = None
    ) -> Float[Tensor, "n c h w"]:
        return torch.tanh(self.conv(h)).view(-1, *self.size)


class DenseFromImage(Head):
    """A linear map of all pixels, and a leaky rectifier."""

    def __init__(self, spec: StackSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = Conv(spec.seen * prod(spec.base), width, 1, rate=spec.rate)
        self.activation = ACTIVATIONS["leaky_relu"]()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d 1 1"]:
        return self.activation(self.conv(x.flatten(1)[:, :, None, None]))


class DenseEnd(End):
    """A linear map to the logit."""

    ends: ClassVar[Ends] = {"output": ("stem", None)}

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        if spec.has_logit:
            self.output = Conv(spec.stem, 1, 1, gain=1.0, rate=spec.rate)

    def forward(self, h: Float[Tensor, "n c 1 1"]) -> Float[Tensor, "n d"]:
        return h.flatten(1)


FORMS.register("dense", "vectors of features, tanh", "Goodfellow et al. 2014, 1406.2661")(
    Form(DenseStem, DenseToImage, DenseFromImage, DenseEnd)
)
