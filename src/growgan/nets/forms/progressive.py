"""PGGAN's ends (Karras et al. 2018, appendix A): what growgan's own stacks begin and end with."""

from __future__ import annotations

from math import prod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.forms.base import FORMS, End, Ends, Form, Head, Stem
from growgan.nets.layers import ACTIVATIONS, Conv, MinibatchDeviation, Project
from growgan.nets.norms import PixelNorm
from growgan.nets.spec import StackSpec


class ProgressiveStem(Stem):
    """z, brought to length sqrt(latent), is projected to the base grid."""

    ends: ClassVar[Ends] = {"project": (None, "stem")}

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.norm_latent = PixelNorm()
        # sqrt(2)/4: the published gain of the dense stem.
        self.project = Project(
            spec.stem_reads, spec.stem, spec.base, gain=2**0.5 / 4, rate=spec.rate
        )
        self.activation = ACTIVATIONS["leaky_relu"]()
        self.norm = PixelNorm()

    def embed(self, z: Float[Tensor, "n z"], label: Tensor | None) -> Float[Tensor, "n w"]:
        return super().embed(self.norm_latent(z), label)

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        return self.norm(self.activation(self.project(self.read(w))))


class ToImage(Head):
    """A 1×1 convolution to image channels, linear."""

    bias: ClassVar[bool] = True

    def __init__(self, spec: StackSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = Conv(width, spec.channels, 1, gain=1.0, rate=spec.rate, bias=self.bias)

    def forward(
        self, h: Float[Tensor, "n d h w"], style: Tensor | None = None
    ) -> Float[Tensor, "n c h w"]:
        return self.conv(h)


class FromImage(Head):
    """A 1×1 convolution from image channels to features, and the activation."""

    def __init__(self, spec: StackSpec, width: int) -> None:
        super().__init__(spec, width)
        self.conv = Conv(spec.seen, width, 1, rate=spec.rate)
        self.activation = ACTIVATIONS["leaky_relu"]()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return self.activation(self.conv(x))


class ProgressiveEnd(End):
    """Minibatch deviation, a convolution, and a valid one from the base grid to features.

    With ``spec.patches`` the second keeps the grid, and each place of it has a logit of its own
    (PatchGAN: Isola et al. 2017, 1611.07004).
    """

    ends: ClassVar[Ends] = {
        "mix": ("stem", "stem"),
        "collect": ("stem", "stem"),
        "output": ("stem", None),
    }

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        group = spec.deviation_group
        self.deviation = MinibatchDeviation(group) if group else nn.Identity()
        self.extra = {"mix": int(group > 0)}
        self.mix = Conv(spec.stem + self.extra["mix"], spec.stem, 3, rate=spec.rate)
        size, padding = (3, None) if spec.patches else (spec.base, 0)
        self.collect = Conv(spec.stem, spec.stem, size, padding=padding, rate=spec.rate)
        self.activation = ACTIVATIONS["leaky_relu"]()
        if spec.has_logit:
            self.output = Conv(spec.stem, 1, 1, gain=1.0, rate=spec.rate)

    @staticmethod
    def width(spec: StackSpec) -> int:
        return spec.stem * (prod(spec.base) if spec.patches else 1)

    def forward(self, h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        h = self.activation(self.mix(self.deviation(h)))
        return self.activation(self.collect(h)).flatten(1)

    def judge(self, features: Float[Tensor, "n d"]) -> Tensor:
        if not self.spec.patches:
            return super().judge(features)
        grid = features.unflatten(1, (self.spec.stem, *self.spec.base))
        logits: Tensor = self.output(grid)
        return logits.float().flatten(1)


FORMS.register(
    "progressive", "dense stem, linear 1x1 heads, minibatch deviation", "Karras 2018, 1710.10196"
)(Form(ProgressiveStem, ToImage, FromImage, ProgressiveEnd))
