"""The two players, built from their specs: ``Generator`` and ``Discriminator``.

While a growth fades in, a stack has two heads: G's output is ``lerp(old_head(h),
new_head(layers(h)), alpha)``, and D's first features are blended the same way (PGGAN, figure 2).
"""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.config import Rate
from growgan.nets.blocks import BLOCKS, Block
from growgan.nets.layers import (
    ACTIVATIONS,
    Conv,
    MinibatchDeviation,
    PixelNorm,
    Project,
    channels_last,
    downsample,
    upsample,
)
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
        self.head = self._head(spec.width_before(len(spec.layers)))
        self.old_head = self._head(spec.width_before(len(spec.kept))) if spec.fading else None
        self.register_buffer("alpha", torch.ones(()))

    def _head(self, width: int) -> nn.Module:
        raise TypeError("a Stack is a Generator or a Discriminator")

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
    """z float ``[N, latent]`` to images float ``[N, C, H, W]``, about [-1, 1] (linear head).

    z is normalised to length sqrt(latent), then projected to the base grid (PGGAN, appendix A).
    """

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.norm_latent = PixelNorm()
        # sqrt(2)/4: the published gain of the dense stem.
        self.project = Project(spec.latent, spec.stem, spec.base, gain=2**0.5 / 4, rate=spec.rate)
        self.stem_activation = ACTIVATIONS["leaky_relu"]()
        self.stem_norm = PixelNorm()

    def _head(self, width: int) -> nn.Module:
        spec = self.spec
        return Conv(width, spec.channels, 1, gain=1.0, rate=spec.rate)

    def embed(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n z"]:
        """Return what images are a smooth function of: z on its sphere."""
        return self.norm_latent(z)

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n c h w"]:
        return self.synthesise(self.embed(z))

    def synthesise(self, w: Float[Tensor, "n z"]) -> Float[Tensor, "n c h w"]:
        """Return the images of what :meth:`embed` gave."""
        h = self.stem_norm(self.stem_activation(self.project(w)))
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
                latent=encoder.stem,
                rate=encoder.rate,
                fading=encoder.fading,
            )
        )


class FromImage(nn.Module):
    """D's head: a 1×1 convolution from image channels to features, and the activation."""

    def __init__(self, channels: int, width: int, rate: Rate) -> None:
        super().__init__()
        self.conv = Conv(channels, width, 1, rate=rate)
        self.activation = ACTIVATIONS["leaky_relu"]()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return self.activation(self.conv(x))


class Discriminator(Stack):
    """Images float ``[N, C, H, W]`` in [-1, 1] to logits float ``[N]``.

    With ``spec.energy`` it is an autoencoder instead, and gives the mean |x - decoder(features)| of
    each image (BEGAN, Berthelot et al. 2017; EBGAN, Zhao et al. 2017).

    The stem adds the minibatch deviation, convolves, and maps the base grid to features with a
    valid convolution; :meth:`features` and :meth:`judge` are apart for those who need features.
    """

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        group = spec.deviation_group
        self.deviation = MinibatchDeviation(group) if group else nn.Identity()
        extra, rate = int(group > 0), spec.rate
        self.mix = Conv(spec.stem + extra, spec.stem, 3, rate=rate)
        self.collect = Conv(spec.stem, spec.stem, spec.base, padding=0, rate=rate)
        self.activation = ACTIVATIONS["leaky_relu"]()
        if spec.energy:
            self.decoder = Decoder(spec)
        else:
            self.output = Conv(spec.stem, 1, 1, gain=1.0, rate=rate)

    def _head(self, width: int) -> nn.Module:
        return FromImage(self.spec.channels, width, self.spec.rate)

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
        h = self.activation(self.mix(self.deviation(h)))
        return self.activation(self.collect(h)).flatten(1)

    def judge(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the logits of features."""
        return self.output(features[:, :, None, None]).float().flatten()

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
