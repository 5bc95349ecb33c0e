"""The whole objective: a loss, any set of regularisers and an augmentation, as named terms.

The names of the terms are the names in the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from growgan.config import SPECTRAL, Settings
from growgan.errors import UserError
from growgan.objectives.augment import Adaptive, Augmentation, make_augmentation
from growgan.objectives.conditioning import Conditioning, make_conditioning
from growgan.objectives.losses import LOSSES, Loss, make_loss
from growgan.objectives.regulariser import Penalty, Regulariser, make_regulariser
from growgan.objectives.step import Step


@dataclass(frozen=True)
class Objective:
    """What each player minimises at each step, and what else is done to a step.

    Args:
        loss: what the players play for.
        regularisers: by name.
        augmentation: of all that D sees.
        conditioning: what is made of labels.
        critic_steps: steps of D for one of G.
    """

    loss: Loss
    regularisers: Mapping[str, Regulariser] = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=Augmentation)
    conditioning: Conditioning = field(default_factory=Conditioning)
    critic_steps: int = 1

    @property
    def paired(self) -> bool:
        """Whether G's loss needs the logits of reals."""
        return self.loss.paired

    def prepare(self, step: Step) -> None:
        """Give ``step`` what all its users need: how images are augmented."""
        if type(self.augmentation) is not Augmentation:
            step.augment = partial(self.augmentation.images, step=step)

    def latents(self, step: Step) -> Tensor:
        """Return the latents that both players train on."""
        step.latents = self.conditioning.latents(step)
        for each in self.regularisers.values():
            step.latents = each.latents(step)
        return step.latents

    def presented(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the reals and fakes that D trains on."""
        step.made = step.fake
        for each in self._hands():
            step.real, step.fake = each.presented(step)
        return step.real, step.fake

    def discriminator(self, step: Step) -> dict[str, Tensor]:
        """Return D's terms; their sum is its loss."""
        loss = self.loss.discriminator(step.real_logits, step.fake_logits, step.memory)
        terms = {"loss_discriminator": loss, **self.conditioning.discriminator(step)}
        if weight := getattr(self.conditioning, "contrary", 0.0):
            terms["contrary"] = weight * self._contrary(step)
        for name, each, strength in self._due(step, step.index):
            value = each.discriminator(step)
            if value is not None:
                terms[name] = value * strength
        return terms

    def _contrary(self, step: Step) -> Tensor:
        """Return D's loss on images made for something else, as if these were fakes.

        Reals are held against them once more, so that they weigh as much as all that is fake (Reed
        et al. 2016, algorithm 1); without that a loss that only sees differences, as the
        relativistic one, would let all logits fall.

        No image keeps its row's label and given image (a derangement), or the first channels of it
        where these alone are turned. Where nothing is given, rows are left out that share a label,
        or one of which has none: it may be the same.
        """
        n = len(step.real)
        if n < 2:
            return torch.zeros((), device=step.real.device)  # there is no other row
        turn = int(torch.randint(1, n, (), generator=step.rng, device=step.real.device))
        (right,) = step.labels_of(step.real)
        wrong = right.roll(turn, 0)
        if channels := getattr(self.conditioning, "turned", 0):
            start = step.labels.shape[1]
            end = start + channels * step.real[0, 0].numel()
            wrong = torch.cat([right[:, :start], wrong[:, start:end], right[:, end:]], 1)
        labels, turned = step.labels, step.labels.roll(turn, 0)
        known = (labels.sum(1) > 0.5) & (turned.sum(1) > 0.5)
        other = known & ((turned * labels).sum(1) < 0.5) | bool(step.given.numel())
        total = torch.zeros((), device=step.real.device)
        for images in (step.real, step.fake):
            # Also where no row is left: of several processes' D each must take part in its norms.
            logits = step.discriminator(step.augment(images.detach()), wrong)[other]
            if len(logits):
                real = step.real_logits[other]
                total = total + self.loss.discriminator(real, logits, dict(step.memory))
        return total / 2

    def generator(self, step: Step) -> dict[str, Tensor]:
        """Return G's terms; their sum is its loss."""
        logits = step.fake_logits
        for each in self.regularisers.values():
            logits = each.kept(step, logits)
        real = step.real_logits if self.loss.paired else None
        if real is not None and len(real) != len(logits):
            real = real[: len(logits)]
        terms = {"loss_generator": self.loss.generator(real, logits, step.memory)}
        terms |= self.conditioning.generator(step)
        for name, each, strength in self._due(step, step.index // self.critic_steps):
            value = each.generator(step)
            if value is not None:
                terms[f"{name}_generator" if each.both else name] = value * strength
        return terms

    def after(self, player: nn.Module, step: Step) -> None:
        """Let everything act on ``player``, which has just moved."""
        if player is step.discriminator:
            logits = step.real_logits.detach(), step.fake_logits.detach()
            images = len(step.real) * step.place[1]
            step.curves |= self.loss.curves(*logits, step.memory, images)
            if isinstance(self.augmentation, Adaptive):
                step.sure = self.loss.sure(*logits).mean()
        for each in self._hands():
            each.after(player, step)

    def _hands(self) -> Iterator[Regulariser]:
        yield from self.regularisers.values()
        yield self.augmentation

    def _due(self, step: Step, turn: int) -> Iterator[tuple[str, Penalty, float]]:
        """Yield what acts at a player's ``turn``; a lazy term acts every k-th, k times as strong.

        Karras et al. 2020, section 4.
        """
        size = (step.real.shape[2], step.real.shape[3])
        for name, each in self.regularisers.items():
            if isinstance(each, Penalty) and each.weight and turn % each.every == 0:
                yield name, each, each.strength(size) * each.every


def make_objective(settings: Settings) -> Objective:
    """Return the objective that ``settings`` name.

    Raises:
        UserError: an unknown name or option, or a combination that has no meaning.
    """
    loss = make_loss(settings.loss, settings.loss_options)
    regularisers = {
        name: make_regulariser(name, options) for name, options in settings.regularisers.items()
    }
    _check_regularisers(settings, loss, regularisers)
    augmentation = make_augmentation(settings.augment, settings.augment_options)
    conditioning = make_conditioning(settings.conditioning, settings.conditioning_options)
    if settings.conditioning != "none" and loss.energies:
        raise UserError(
            f"conditioning '{settings.conditioning}' has no meaning for the loss "
            f"'{settings.loss}', whose D gives errors and no logits"
        )
    return Objective(loss, regularisers, augmentation, conditioning, settings.critic_steps)


def _check_regularisers(
    settings: Settings, loss: Loss, regularisers: Mapping[str, Regulariser]
) -> None:
    """Raise a :class:`UserError` where one of them has no meaning beside the other settings."""
    for name, each in regularisers.items():
        if each.requires is not None and not getattr(loss, each.requires):
            fit = [e.name for e in LOSSES if getattr(e.value, each.requires)]
            raise UserError(
                f"regulariser '{name}' has no meaning for the loss '{settings.loss}'; "
                f"it is for: {', '.join(fit)}"
            )
    if (
        settings.conditioning in ("image", "image-projection", "infogan")
        and "replay" in regularisers
    ):
        raise UserError(
            f"regulariser 'replay' has no meaning for the conditioning '{settings.conditioning}': "
            "old fakes were made for something else"
        )
    rate = settings.stack.of("discriminator").rate
    if "clip" in regularisers and rate in SPECTRAL:
        raise UserError(
            f"regulariser 'clip' has no meaning for D's rate '{rate}', which divides each weight "
            "by its largest singular value however small it is; set stack.discriminator_rate"
        )
