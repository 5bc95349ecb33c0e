"""One training step, as everything that has a say in it sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from growgan.nets.players import Discriminator, Generator

Memory = dict[str, Tensor]


def unchanged(images: Tensor) -> Tensor:
    """Return ``images`` as they are."""
    return images


@dataclass(frozen=True)
class Chance:
    """Random numbers for the rows of a batch, or of one share of it.

    A share draws what the whole batch would, and keeps its own rows, so that a batch in shares
    trains as the whole one does.

    Attributes:
        rng: where they come from.
        rows: images of this share.
        place: which share it is, and of how many.
    """

    rng: torch.Generator
    rows: int
    place: tuple[int, int] = (0, 1)

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1); ``shape`` begins with the rows, once or several times."""
        return self._own(torch.rand, shape)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers; ``shape`` as for :meth:`uniform`."""
        return self._own(torch.randn, shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Return whole numbers from ``low`` to ``high`` - 1; ``shape`` as for :meth:`uniform`."""
        return self._own(partial(torch.randint, low, high), shape)

    def _own(self, make: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        share, shares = self.place
        sets, rest = divmod(shape[0], self.rows)
        how = {"generator": self.rng, "device": self.rng.device}
        if shares == 1 or rest:
            return make(shape, **how)
        whole = make((shares * shape[0], *shape[1:]), **how)
        return whole.view(sets, shares, self.rows, *shape[1:])[:, share].reshape(shape)


@dataclass
class Step:
    """One training step of one player.

    Attributes:
        real: images float ``[N, C, H, W]`` in [-1, 1].
        fake: G's images for ``latents``, same shape; detached while D trains.
        latents: float ``[N, inputs]``: latents, labels, given images.
        labels: float ``[N, classes]``, one number a class, all 0 for none; of reals and of fakes,
            row by row; [N, 0] where labels are not used.
        given: float ``[N, G*H*W]``, the images that reals and fakes are made from, row by row;
            [N, 0] where there are none.
        rng: the step's own random numbers, on the device of the images.
        real_features, fake_features: D's features of them, float ``[N, D]``; while G trains, those
            of fakes alone.
        real_logits, fake_logits: D's outputs for them, float ``[N]``; while G trains, those of
            reals are there only for losses that pair.
        index: steps taken before by this lineage; ``images``: images it has seen.
        memory: tensors that stay from step to step, are saved with the pair and inherited by its
            children. A name begins with its owner's ("lecam.real").
        augment: what images pass before D sees them; differentiable.
        curves: values for the log that are no terms of a loss, by name.
        sure: mean sign of D's verdicts on reals, 1 if it knows them all; after D's step alone.
        place: which share of the batch this is, and of how many.
        made: the fakes as G made them, whatever D is shown; empty while ``fake`` holds them.
    """

    generator: Generator
    discriminator: Discriminator
    real: Float[Tensor, "n c h w"]
    fake: Float[Tensor, "n c h w"]
    latents: Float[Tensor, "n z"]
    rng: torch.Generator
    real_logits: Float[Tensor, " n"]
    fake_logits: Float[Tensor, " n"]
    labels: Float[Tensor, "n k"] = field(default_factory=lambda: torch.empty(0))
    given: Float[Tensor, "n g"] = field(default_factory=lambda: torch.empty(0))
    real_features: Float[Tensor, "n d"] = field(default_factory=lambda: torch.empty(0))
    fake_features: Float[Tensor, "n d"] = field(default_factory=lambda: torch.empty(0))
    index: int = 0
    images: int = 0
    memory: Memory = field(default_factory=dict)
    augment: Callable[[Tensor], Tensor] = unchanged
    curves: dict[str, Tensor] = field(default_factory=dict)
    sure: Tensor | None = None
    place: tuple[int, int] = (0, 1)
    made: Float[Tensor, "n c h w"] = field(default_factory=lambda: torch.empty(0))

    @property
    def up(self) -> int:
        """1 where a higher output of D is more real, -1 where it is an error."""
        return -1 if self.discriminator.spec.energy else 1

    @property
    def apart(self) -> tuple[Float[Tensor, "n z"], Float[Tensor, "n rest"]]:
        """The latents themselves, and what stands behind them: labels, given images."""
        size = self.generator.spec.latent
        return self.latents[:, :size], self.latents[:, size:]

    @property
    def chance(self) -> Chance:
        """The step's random numbers, row by row."""
        return Chance(self.rng, len(self.real), self.place)

    def judge(self, images: Tensor) -> Float[Tensor, " n"]:
        """Return D's logits of ``images``, augmented as D sees all images."""
        return self.verdict(self.augment(images))

    def verdict(self, images: Tensor) -> Float[Tensor, " n"]:
        """Return D's logits of ``images`` as they are, each row with its label."""
        return self.discriminator(images, *self.labels_of(images))

    def features(self, images: Tensor) -> Float[Tensor, "n d"]:
        """Return D's features of ``images``, augmented as D sees all images."""
        return self.discriminator.features(self.augment(images), *self.labels_of(images))

    def labels_of(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what ``images`` are made for, the batch's once or several times, or nothing."""
        known = [each for each in (self.labels, self.given) if each.numel()]
        if self.given.numel() and not self.discriminator.spec.given:
            known.pop()  # D does not see it
        if not known:
            return ()
        return (torch.cat(known, 1).repeat(len(images) // len(self.real), 1),)

    def recall(self, name: str, default: float = 0.0) -> Tensor:
        """Return the scalar ``name`` from memory, ``default`` where there is none yet."""
        if name not in self.memory:
            self.memory[name] = torch.full((), default, device=self.real.device)
        return self.memory[name]

    def average(self, name: str, value: Tensor, decay: float) -> Tensor:
        """Move the running average ``name`` towards ``value`` by 1 - ``decay``; return it.

        The first value is taken as it is. Shares of a batch move it as their mean would.
        """
        value = value.detach().float()
        count, batch, before = (f"{name}.{each}" for each in ("count", "batch", "before"))
        # Step and shares of it so far: on the CPU, so that nobody waits for a GPU.
        index, shares = self.memory.get(count, torch.tensor([-1, 0])).tolist()
        if index == self.index:
            value = torch.lerp(self.memory[batch], value, 1 / (shares + 1))
        else:
            shares = 0
            if name in self.memory:
                self.memory[before] = self.memory[name].clone()
        self.memory[count] = torch.tensor([self.index, shares + 1])
        self.memory[batch] = value.clone()
        start = self.memory.get(before, value)
        self.memory[name] = torch.lerp(start, value, 1 - decay)
        return self.memory[name]
