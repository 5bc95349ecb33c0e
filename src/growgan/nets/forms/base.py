"""What a form is: how a stack begins and ends, beside its layers.

A form is four parts: G's stem and head, D's head and end. With the kinds of layers
(:mod:`growgan.nets.blocks`) forms make up every architecture; a new one is one file here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.spec import StackSpec
from growgan.registry import Registry

Ends = Mapping[str, tuple[str | None, str | None]]


class Part(nn.Module):
    """A part at one end of a stack.

    Attributes:
        ends: for each of its linear maps the width that it reads and the one that it writes:
            "stem", or None for one that does not grow.
        extra: for those that read more maps than their width has, how many more.
    """

    ends: ClassVar[Ends] = {}
    extra: Mapping[str, int] = {}

    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        self.spec = spec


class Stem(Part):
    """G's small end.

    Attributes:
        mean: running mean of what :meth:`embed` gives, where a mapping network makes it.
    """

    mean: Tensor

    def embed(self, z: Float[Tensor, "n z"], label: Tensor | None) -> Float[Tensor, "n w"]:
        """Return what images are a smooth function of: latents, then the embedded label."""
        return z if label is None else torch.cat([z, label], 1)

    def read(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n r"]:
        """Return what the map to the base grid reads: the first piece of z, and the label."""
        z, label = w[:, : self.spec.chunk or self.spec.latent], w[:, self.spec.latent :]
        return torch.cat([z, label], 1) if self.spec.classes and self.spec.label_stem else z

    def style(self, w: Float[Tensor, "n w"], index: int) -> Float[Tensor, "n s"]:
        """Return the style of the layer in place ``index`` among those that use one.

        With ``spec.chunk`` z is cut into pieces of that length: the first is for the stem, each
        other is for one layer (hierarchical latents: Brock et al. 2019, appendix B).
        """
        spec = self.spec
        z, label = w[:, : spec.latent], w[:, spec.latent :]
        if spec.chunk:
            pieces = z.split(spec.chunk, 1)[: spec.latent // spec.chunk]
            # A stack that has outgrown its latents begins again with the first layer's.
            z = pieces[1 + index % (len(pieces) - 1)] if len(pieces) > 1 else pieces[0]
        if not spec.classes:
            return z
        return torch.cat([z, label], 1) if spec.latent_style else label

    @staticmethod
    def style_width(spec: StackSpec) -> int:
        """Return the length of a style."""
        return spec.style_width

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        """Return the features at the base grid."""
        raise NotImplementedError


class End(Part):
    """D's small end.

    Attributes:
        output: the linear map of features [N, D, 1, 1] to the logit.
    """

    output: nn.Module

    def forward(self, h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Return the features that the logit is a linear map of."""
        raise NotImplementedError

    @staticmethod
    def width(spec: StackSpec) -> int:
        """Return how many features there are."""
        return spec.stem

    def judge(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the logits of features."""
        logits: Tensor = self.output(features[:, :, None, None])
        return logits.float().flatten()


class Head(nn.Module):
    """The image end of one player: to ``width`` channels from an image, or back.

    It is called with images, or in G with features and a style, which it may use.
    """

    def __init__(self, spec: StackSpec, width: int) -> None:
        super().__init__()


@dataclass(frozen=True)
class Form:
    """The parts of both players' stacks.

    Attributes:
        widens: whether their channels can be duplicated without a change of what they compute.
        skips: whether G's images are sums: each size has a head of its own, whose image is doubled
            and added to the next one's (Karras et al. 2020, section 4.1).
        margin: pixels on each side of G's grids that belong to no image.
        decoder: name of the form of a D's decoder, where it is another one.
    """

    stem: type[Stem]
    to_image: type[Head]
    from_image: type[Head]
    end: type[End]
    widens: bool = True
    skips: bool = False
    margin: int = 0
    decoder: str = ""


FORMS: Registry[Form] = Registry("form")
