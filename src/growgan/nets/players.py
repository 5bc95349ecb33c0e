"""The two players, built from their specs: ``Generator`` and ``Discriminator``."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from growgan.errors import UserError
from growgan.nets.filters import smooth_upsample
from growgan.nets.forms import FORMS
from growgan.nets.layers import Dense, MinibatchDiscrimination, channels_last, downsample, upsample
from growgan.nets.modifier import Modifier
from growgan.nets.norms import VirtualNorm
from growgan.nets.pretrained import Pretrained
from growgan.nets.spec import StackSpec
from growgan.nets.stack import Encoder, Stack
from growgan.nets.wishes import apart, label_map, labelled, one_hot, with_maps

DETAIL = 4  # pixels a side of a given image, for each place of D's base


class Generator(Stack, Pretrained):
    """z float ``[N, inputs]`` to images float ``[N, C, H, W]``, about [-1, 1]."""

    reference: Tensor  # latents [64, latent], where a norm needs them

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.stem = self.form.stem(spec)
        self.label = label_map(spec)
        if spec.encodes:
            self.encoder = Encoder(spec)
        if spec.difference:  # at first the given image is left as it is
            for value in self.head.parameters():
                nn.init.zeros_(value)
        if any(layer.norm == "virtual" for layer in spec.layers):
            if spec.given:
                raise UserError(
                    "norm 'virtual' has no meaning where images are made from images: "
                    "its reference is latents alone"
                )
            count = VirtualNorm.REFERENCES
            labels = one_hot(torch.arange(count), spec.classes)
            self.register_buffer(
                "reference", torch.cat([torch.randn(count, spec.latent), labels], 1)
            )
        styled = [block.styled for block in self.blocks()]
        self.places = [sum(styled[:i]) for i in range(len(styled) + 1)]
        if spec.modifier:
            self.requires_grad_(False)
            self.modifier = Modifier(spec.latent, spec.classes, spec.modifier)
            self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.spec.modifier:  # what is frozen keeps its running statistics
            for name, part in self.named_children():
                part.train(mode and name == "modifier")
        return self

    @property
    def styles(self) -> int:
        """How many styles one image has."""
        return self.places[-1] + 1

    @cached_property
    def noisy(self) -> bool:
        """Whether images depend on more than z while it trains: on torch's own random numbers."""
        return self.spec.mixing > 0 or any(block.noisy for block in self.blocks())

    def embed(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n w"]:
        """Return what images are a smooth function of: z on its sphere, or what is made of it.

        Where there are classes the label stands behind the latents, one number a class: 1 for its
        own, all 0 for none, and anything between for a mixture. A given image comes last; what is
        made of z is followed by both as they are then, since the encoder sees both.
        """
        if self.spec.given:
            own = self.spec.latent + self.spec.classes
            return torch.cat([self._embedded(z[:, :own]), z[:, self.spec.latent :]], 1)
        return self._embedded(z)

    def _embedded(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n w"]:
        if not self.spec.classes:
            return self.stem.embed(z, None)
        z, label = z.split([self.spec.latent, self.spec.classes], 1)
        if self.spec.modifier:
            return self.stem.embed(self.modifier(z, label), None)
        return self.stem.embed(z, self.label(label))

    def labelled(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n z"]:
        """Return latents with labels that take turns, where there are classes."""
        return labelled(self.spec, z)

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n c h w"]:
        w = self.embed(z)
        return self.synthesise(self._mixed(z, w) if self.training and self.spec.mixing else w)

    def synthesise(self, w: Tensor) -> Float[Tensor, "n c h w"]:
        """Return the images of what :meth:`embed` gave: [n, z], or [n, styles, z] for a mix."""
        if hasattr(self, "reference"):
            known = self.embed(self.reference)
            w = torch.cat([known if w.ndim == 2 else known[:, None].expand(-1, self.styles, -1), w])
            return self._synthesise(w)[known.shape[0] :]
        return self._synthesise(w)

    def _synthesise(self, w: Tensor) -> Tensor:
        if not self.spec.given:
            return self._drawn(w, {})
        w, wish = w.split([w.shape[-1] - self.spec.wish, self.spec.wish], -1)
        label, given = apart(self.spec, wish if wish.ndim == 2 else wish[:, 0])
        image = self._drawn(w, self.encoder(given, label))
        return image + given[:, -self.spec.channels :] if self.spec.difference else image

    def _drawn(self, w: Tensor, skips: dict[str, Tensor]) -> Tensor:
        """Return what the layers make, with what the encoder adds at the places that it names."""
        h = self.stem(w if w.ndim == 2 else w[:, 0])
        image, old = None, None
        kept = len(self.spec.kept)
        for i, block in enumerate(self.blocks()):
            h = h + skips[self.names[i]] if self.names[i] in skips else h
            if self.names[i] in self.heads:
                image = self._image(image, h, w, i)
                old = image if i == kept else old
            h = block(h, self._style(w, i))
        h = h + skips[self.names[-1]] if self.names[-1] in skips else h
        image = self._image(image, h, w, len(self.names) - 1)
        if old is None:
            return image
        return torch.lerp(upsample(old, self.fade_factor), image, self.alpha)

    def _image(self, before: Tensor | None, h: Tensor, w: Tensor, place: int) -> Tensor:
        """Return the image of features ``h`` behind so many layers."""
        image = self.heads[self.names[place]](h, self._style(w, place)).float()
        if self.form.skips and before is not None and before.shape != image.shape:
            image = image + smooth_upsample(before)
        return image

    def _style(self, w: Tensor, place: int) -> Tensor:
        index = self.places[place]
        return self.stem.style(w if w.ndim == 2 else w[:, index], index)

    def _mixed(self, z: Float[Tensor, "n z"], w: Float[Tensor, "n w"]) -> Float[Tensor, "n s w"]:
        """Give some images the styles of another from a random place on (style mixing)."""
        latents, label = z[:, : self.spec.latent], z[:, self.spec.latent :]
        other = self.embed(torch.cat([torch.randn_like(latents), label], 1))
        cut = torch.randint(1, self.styles + 1, (len(w), 1, 1), device=w.device)
        cut = torch.where(torch.rand_like(w[:, :1, None]) < self.spec.mixing, cut, self.styles)
        place = torch.arange(self.styles, device=w.device).view(-1, 1)
        return torch.where(place < cut, w[:, None], other[:, None])


class Decoder(Generator):
    """The second half of an autoencoder: from the features of a D back to its images."""

    def __init__(self, encoder: StackSpec) -> None:
        # Where D's head halves the image and G's does not double it, the stem is larger.
        form = FORMS[encoder.form].decoder or encoder.form
        more = encoder.head_factor // replace(encoder, role="generator", form=form).head_factor
        super().__init__(
            StackSpec(
                "generator",
                (encoder.base[0] * more, encoder.base[1] * more),
                encoder.channels,
                encoder.stem,
                encoder.layers,
                latent=FORMS[encoder.form].end.width(encoder),
                rate=encoder.rate,
                form=form,
                fading=encoder.fading,
            )
        )


class Discriminator(Stack):
    """Images float ``[N, C, H, W]`` in [-1, 1] to logits float ``[N]``, or ``[N, P]`` of P patches.

    Where that is told it also gets what each was made for, float ``[N, wish]``: a label, then a
    given image.

    With ``spec.energy`` it is an autoencoder instead, and gives the mean |x - decoder(features)| of
    each image (BEGAN, Berthelot et al. 2017; EBGAN, Zhao et al. 2017).

    :meth:`features` and :meth:`judge` are apart for those who need features.
    """

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        self.end = self.form.end(spec)
        if spec.judging == "concat":
            self.label = label_map(spec)
        width = self.form.end.width(spec)
        self.patched = spec.patches and spec.judging in ("projection", "heads", "image")
        reads, sizes = spec.stem if self.patched else width, dict(spec.readouts)
        if spec.judging == "image":
            sizes["c"] = spec.given * DETAIL**2 * (1 if self.patched else prod(spec.base))
        self.readouts = nn.ModuleDict(
            {name: Dense(reads, size, rate=spec.rate) for name, size in sizes.items()}
        )
        if spec.proxies:
            self.proxies = nn.Parameter(torch.randn(spec.classes, spec.proxies))
        if spec.energy:
            self.decoder = Decoder(spec)
        if spec.kernels:
            self.discrimination = MinibatchDiscrimination(width, spec.kernels, spec.rate)
            self.closeness = Dense(spec.kernels, 1, rate=spec.rate)

    def features(
        self, x: Float[Tensor, "n c h w"], y: Float[Tensor, "n k"] | None = None
    ) -> Float[Tensor, "n d"]:
        """Return the features that the logit is a linear map of."""
        if self.spec.given:
            assert y is not None
            y, given = apart(self.spec, y)
            if self.spec.judging != "image":
                x = torch.cat([x, given.to(x.dtype)], 1)
        if self.spec.judging == "concat":
            assert y is not None
            x = with_maps(x, self.label(y))
        blocks, kept = self.blocks(), len(self.spec.kept)
        h = self.head(x)
        for block in reversed(blocks[kept:]):
            h = block(h)
        if (old_head := self.old_head) is not None:
            old = old_head(downsample(x, self.fade_factor))
            h = torch.lerp(old, h, self.alpha.to(h.dtype))
        for block in reversed(blocks[:kept]):
            h = block(h)
        return self.end(h)

    def judge(
        self, features: Float[Tensor, "n d"], y: Float[Tensor, "n k"] | None = None
    ) -> Float[Tensor, " n"]:
        """Return the logits of features, float [N], or [N, P] of P patches.

        To the logit of all classes comes that of their own: the projection <v_y, features>
        (Miyato & Koyama 2018), the difference of two such (Han et al. 2021), or the latter alone.
        Or it is log Σ_k exp of the scores of the classes (Salimans et al. 2016, section 5).
        Where patches are judged each has a projection, or a logit of its class, of its own. Of a
        given image c it is <V c, features>, c averaged to ``DETAIL`` pixels a side and place.
        """
        logits = self.end.judge(features) if self.spec.has_logit else features.new_zeros(())
        if self.spec.judging == "image":
            assert y is not None
            read = self._placewise(features)
            own = self.readouts["c"](read).float() * self._detail(y)
            logits = _added(logits, own.sum(-1))
        y = None if y is None else y[:, : self.spec.classes]
        if self.spec.judging in ("projection", "heads", "difference"):
            assert y is not None
            own = self.readouts["p"](self._placewise(features)).float()
            if self.spec.judging == "difference":
                own = own - self.readouts["q"](features).float()
            logits = _added(logits, (own * (y[:, None] if self.patched else y)).sum(-1))
        if self.spec.judging == "classes":  # one class more, of fakes, has the score 0
            logits = _added(logits, self.readouts["p"](features).float().logsumexp(1))
        if self.spec.kernels:  # beside the others, as if features had been appended
            logits = _added(logits, self.closeness(self.discrimination(features)).flatten())
        return logits

    def _placewise(self, features: Float[Tensor, "n d"]) -> Tensor:
        """Return features as readouts see them: [N, P, stem] where patches are judged."""
        return features.unflatten(1, (self.spec.stem, -1)).mT if self.patched else features

    def _detail(self, y: Float[Tensor, "n k"]) -> Tensor:
        """Return what of the given images each place is compared with: [N, P, D], or [N, D]."""
        _, given = apart(self.spec, y)
        height, width = (DETAIL * side for side in self.spec.base)
        cells = F.pixel_unshuffle(F.adaptive_avg_pool2d(given.float(), (height, width)), DETAIL)
        return cells.flatten(2).mT if self.patched else cells.flatten(1)

    def forward(
        self, x: Float[Tensor, "n c h w"], y: Float[Tensor, "n k"] | None = None
    ) -> Float[Tensor, " n"]:
        features = self.features(x, y)
        if not self.spec.energy:
            return self.judge(features, y)
        return (x - self.decoder(features)).abs().float().mean((1, 2, 3))


def _added(logits: Tensor, each: Tensor) -> Tensor:
    """Return logits, where they are of patches, with what is one number an image added to all."""
    return logits + (each[:, None] if logits.ndim > each.ndim else each)


def build(spec: StackSpec, seed: int | None = None) -> Generator | Discriminator:
    """Build the stack of ``spec``; with ``seed`` its random weights are a function of it."""
    player = Generator if spec.role == "generator" else Discriminator
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return channels_last(player(spec))
