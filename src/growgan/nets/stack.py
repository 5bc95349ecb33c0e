"""The two players, built from their specs: ``Generator`` and ``Discriminator``.

While a growth fades in, a stack has two heads: G's output is ``lerp(old_head(h),
new_head(layers(h)), alpha)``, and D's first features are blended the same way (PGGAN, figure 2).
"""

from __future__ import annotations

from functools import cached_property
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.blocks import BLOCKS, Block
from growgan.nets.forms import FORMS, Form, Head
from growgan.nets.layers import BatchNorm, channels_last, downsample, upsample
from growgan.nets.spec import StackSpec, without_fade


class Stack(nn.Module):
    """What both players share: layers by id, the head, the fading head and alpha.

    ``alpha`` is a buffer in [0, 1]: 0 shows the old head alone, 1 the new one alone.
    """

    alpha: Tensor

    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        self.spec = spec
        self.layers: nn.ModuleDict = nn.ModuleDict()
        for i, layer in enumerate(spec.layers):
            block = BLOCKS[layer.kind]
            inner = spec.width_before(i)
            self.layers[layer.id] = block(layer, inner, role=spec.role, rate=spec.rate)
        head = self.head_kind
        self.head = head(spec, spec.width_before(len(spec.layers)))
        self.old_head = head(spec, spec.width_before(len(spec.kept))) if spec.fading else None
        self.register_buffer("alpha", torch.ones(()))

    @property
    def form(self) -> Form:
        """How the stack begins and ends."""
        return FORMS[self.spec.form]

    @property
    def head_kind(self) -> type[Head]:
        """What stands at the image end."""
        generates = self.spec.role == "generator"
        return self.form.to_image if generates else self.form.from_image

    @cached_property
    def mixes(self) -> bool:
        """Whether samples see each other's statistics: D gets reals and fakes apart then."""
        return any(isinstance(module, BatchNorm) for module in self.modules())

    @property
    def fade_factor(self) -> int:
        """How much larger the arriving layers make the image: a power of two."""
        return prod(layer.resample for layer in self.spec.arriving)

    def set_alpha(self, alpha: float) -> None:
        """Set how far what fades in has come, 0 to 1."""
        self.alpha.fill_(alpha)

    def finish_fade(self) -> None:
        """End the fade-in: drop the old head and set alpha to 1."""
        self.spec = without_fade(self.spec)
        self.old_head = None
        self.alpha.fill_(1.0)

    def blocks(self) -> list[Block]:
        """Return the layers' modules, the one nearest the image last."""
        return [block for block in self.layers.values() if isinstance(block, Block)]

    def parameter_count(self) -> int:
        """Return the number of trainable scalars."""
        return sum(p.numel() for p in self.parameters())


class Generator(Stack):
    """z float ``[N, latent]`` to images float ``[N, C, H, W]``, about [-1, 1]."""

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.stem = self.form.stem(spec)

    def embed(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n z"]:
        """Return what images are a smooth function of: z on its sphere, or what is made of it."""
        return self.stem.embed(z)

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n c h w"]:
        return self.synthesise(self.embed(z))

    def synthesise(self, w: Float[Tensor, "n z"]) -> Float[Tensor, "n c h w"]:
        """Return the images of what :meth:`embed` gave."""
        h = self.stem(w)
        blocks = self.blocks()
        kept = len(self.spec.kept)
        for block in blocks[:kept]:
            h = block(h)
        if self.old_head is None:
            return self.head(h).float()
        old = upsample(self.old_head(h), self.fade_factor).float()
        for block in blocks[kept:]:
            h = block(h)
        return torch.lerp(old, self.head(h).float(), self.alpha)


class Decoder(Generator):
    """The second half of an autoencoder: from the features of a D back to its images."""

    def __init__(self, encoder: StackSpec) -> None:
        super().__init__(
            StackSpec(
                "generator",
                encoder.base,
                encoder.channels,
                encoder.stem,
                encoder.layers,
                latent=FORMS[encoder.form].end.width(encoder),
                rate=encoder.rate,
                form=encoder.form,
                fading=encoder.fading,
            )
        )


class Discriminator(Stack):
    """Images float ``[N, C, H, W]`` in [-1, 1] to logits float ``[N]``.

    With ``spec.energy`` it is an autoencoder instead, and gives the mean |x - decoder(features)| of
    each image (BEGAN, Berthelot et al. 2017; EBGAN, Zhao et al. 2017).

    :meth:`features` and :meth:`judge` are apart for those who need features.
    """

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.end = self.form.end(spec)
        if spec.energy:
            self.decoder = Decoder(spec)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Return the features that the logit is a linear map of."""
        blocks, kept = self.blocks(), len(self.spec.kept)
        h = self.head(x)
        for block in reversed(blocks[kept:]):
            h = block(h)
        if self.old_head is not None:
            old = self.old_head(downsample(x, self.fade_factor))
            h = torch.lerp(old, h, self.alpha.to(h.dtype))
        for block in reversed(blocks[:kept]):
            h = block(h)
        return self.end(h)

    def judge(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the logits of features."""
        return self.end.judge(features)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        features = self.features(x)
        if not self.spec.energy:
            return self.judge(features)
        return (x - self.decoder(features)).abs().float().mean((1, 2, 3))

    def set_alpha(self, alpha: float) -> None:
        super().set_alpha(alpha)
        if self.spec.energy:
            self.decoder.set_alpha(alpha)

    def finish_fade(self) -> None:
        super().finish_fade()
        if self.spec.energy:
            self.decoder.finish_fade()


def build(spec: StackSpec, seed: int | None = None) -> Generator | Discriminator:
    """Build the stack of ``spec``; with ``seed`` its random weights are a function of it."""
    player = Generator if spec.role == "generator" else Discriminator
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return channels_last(player(spec))
