"""What both players are: a stack of layers by id, with heads at the image end.

While a growth fades in, a stack has two heads: G's output is ``lerp(old_head(h),
new_head(layers(h)), alpha)``, and D's first features are blended the same way (PGGAN, figure 2).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.errors import UserError
from growgan.nets.blocks import BLOCKS, Block
from growgan.nets.forms import FORMS, Form
from growgan.nets.layers import (
    MinibatchDiscrimination,
    downsample,
)
from growgan.nets.spec import StackSpec, without_fade
from growgan.nets.wishes import label_map, with_maps


def names(spec: StackSpec) -> list[str]:
    """Return what each layer stands behind, and what the last head does: the stem, or a layer."""
    return ["stem", *(layer.id for layer in spec.layers)]


def heads(spec: StackSpec) -> list[int]:
    """Return behind how many layers there is a head, the one at the image end last."""
    places = {len(spec.kept), len(spec.layers)}
    if FORMS[spec.form].skips and spec.role == "generator":
        places |= {i for i, layer in enumerate(spec.layers) if layer.resample > 1}
    return sorted(places)


def misfit(spec: StackSpec, kind: str) -> str:
    """Return why a layer of ``kind`` cannot be in the stack of ``spec``, "" if it can."""
    if spec.role == "discriminator" or BLOCKS[kind].margin == FORMS[spec.form].margin:
        return ""
    return f"a {kind} layer has no meaning for the form '{spec.form}': their margins differ"


class Stack(nn.Module):
    """What both players share: layers and heads by id, and alpha.

    A head has the name of what it stands behind. ``alpha`` is a buffer in [0, 1]: 0 shows the old
    head alone, 1 the new one alone.
    """

    alpha: Tensor

    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        self.spec, self.names = spec, names(spec)
        self.layers: nn.ModuleDict = nn.ModuleDict()
        style = self.form.stem.style_width(spec) if spec.role == "generator" else 0
        for i, layer in enumerate(spec.layers):
            if problem := misfit(spec, layer.kind):
                raise UserError(problem)
            self.layers[layer.id] = BLOCKS[layer.kind](
                layer, spec.width_before(i), role=spec.role, rate=spec.rate, style=style
            )
        kind = self.form.to_image if spec.role == "generator" else self.form.from_image
        self.heads = nn.ModuleDict(
            {self.names[i]: kind(spec, spec.width_before(i)) for i in heads(spec)}
        )
        self.register_buffer("alpha", torch.ones(()))

    @property
    def form(self) -> Form:
        """How the stack begins and ends."""
        return FORMS[self.spec.form]

    @property
    def head(self) -> nn.Module:
        """What stands at the image end."""
        return self.heads[self.names[-1]]

    @property
    def old_head(self) -> nn.Module | None:
        """What stood there before the growth that is fading in."""
        return self.heads[self.names[len(self.spec.kept)]] if self.spec.fading else None

    @cached_property
    def mixes(self) -> bool:
        """Whether samples see each other's statistics: D gets reals and fakes apart then."""
        kinds = (nn.BatchNorm2d, MinibatchDiscrimination)
        return any(isinstance(module, kinds) for module in self.modules())

    @property
    def fade_factor(self) -> int:
        """How much larger the arriving layers make the image: a power of two."""
        return prod(layer.resample for layer in self.spec.arriving)

    @property
    def inner(self) -> dict[str, Stack]:
        """The stacks within this one, which grow with it, by name."""
        return {name: part for name, part in self.named_children() if isinstance(part, Stack)}

    def set_alpha(self, alpha: float) -> None:
        """Set how far what fades in has come, 0 to 1."""
        self.alpha.fill_(alpha)
        for part in self.inner.values():
            part.set_alpha(alpha)

    def finish_fade(self) -> None:
        """End the fade-in: drop the old head, unless its image is part of a sum; alpha is 1."""
        for part in self.inner.values():
            part.finish_fade()
        self.spec = without_fade(self.spec)
        kept = {self.names[i] for i in heads(self.spec)}
        for name in set(self.heads) - kept:
            del self.heads[name]
        self.alpha.fill_(1.0)

    def blocks(self) -> list[Block]:
        """Return the layers' modules, the one nearest the image last."""
        return [block for block in self.layers.values() if isinstance(block, Block)]

    def parameter_count(self) -> int:
        """Return the number of trainable scalars."""
        return sum(p.numel() for p in self.parameters())


class Encoder(Stack):
    """The first half of a G that is given images: its layers as D has them, from the image inward.

    What it makes of the given image at the stem and behind each layer that doubles is added there
    in G: the skips of a U-Net (Ronneberger et al. 2015, 1505.04597) as sums. What is appended or
    inserted leaves them as they are, so that a G with an encoder grows as any other. Where there
    are labels it sees them as maps (Choi et al. 2018, 1711.09020), so that details depend on them.
    """

    def __init__(self, generator: StackSpec) -> None:
        # What is normalised by a style in G is normalised without one here.
        plain = {"conditional": "batch", "virtual": "batch"}
        layers = tuple(replace(e, norm=plain.get(e.norm, e.norm)) for e in generator.layers)
        spec = StackSpec(
            "discriminator",
            generator.base,
            generator.given,
            generator.stem,
            layers,
            classes=generator.classes,
            embedding=generator.embedding,
            judging="concat" if generator.classes else "plain",
            rate=generator.rate,
            form=generator.form,
            fading=generator.fading,
        )
        heads = generator.head_factor, spec.head_factor  # that resample leave no place to add at
        if FORMS[generator.form].margin or heads != (1, 1):
            raise UserError(f"a stack of form '{generator.form}' cannot be given images")
        super().__init__(spec)
        if spec.classes:
            self.label = label_map(spec)
        doubling = [layer.id for layer in generator.layers if layer.resample > 1]
        self.shared = {"stem", *doubling}

    def forward(
        self, x: Float[Tensor, "n c h w"], label: Float[Tensor, "n k"]
    ) -> dict[str, Tensor]:
        """Return features by the name of the place of G where they are added."""
        found: dict[str, Tensor] = {}
        x = with_maps(x, self.label(label)) if self.spec.classes else x
        blocks, kept = self.blocks(), len(self.spec.kept)
        h = self.head(x)
        for i in reversed(range(len(blocks) + 1)):
            if i == kept and (old_head := self.old_head) is not None:
                old = old_head(downsample(x, self.fade_factor))
                h = torch.lerp(old, h, self.alpha.to(h.dtype))
            if self.names[i] in self.shared:
                found[self.names[i]] = h
            h = blocks[i - 1](h) if i else h
        return found
