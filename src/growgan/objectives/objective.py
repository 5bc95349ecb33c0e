"""The objective: a loss, regularizers, an augmentation and a conditioning, as named terms.

The names of the terms are the names in the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from growgan.config import Settings
from growgan.errors import UserError
from growgan.objectives.augmentation import (
    AdaptiveProbability,
    DiscriminatorAugmentation,
    make_augmentation,
)
from growgan.objectives.conditioning import Conditioning, LogitConditioning, make_conditioning
from growgan.objectives.losses import LOSSES, Loss, make_loss
from growgan.objectives.regularizer import Penalty, Regularizer, make_regularizer
from growgan.objectives.step_context import StepContext


@dataclass(frozen=True)
class Objective:
    """The losses of D and G with everything that changes a training step.

    Attributes:
        loss: The adversarial loss.
        regularizers: Regularizers by name.
        augmentation: Augmentation of every image that D sees.
        conditioning: The use of labels and source images.
        critic_steps: Number of steps of D for each step of G.
    """

    loss: Loss
    regularizers: Mapping[str, Regularizer] = field(default_factory=dict)
    augmentation: DiscriminatorAugmentation = field(default_factory=DiscriminatorAugmentation)
    conditioning: Conditioning = field(default_factory=Conditioning)
    critic_steps: int = 1

    @property
    def needs_real_logits(self) -> bool:
        """Whether G's loss needs the logits of real images."""
        return self.loss.needs_real_logits

    def bind_augmentation(self, step: StepContext) -> None:
        """Set ``step.augment`` to this objective's augmentation."""
        if type(self.augmentation) is not DiscriminatorAugmentation:
            step.augment = partial(self.augmentation.augment, step=step)

    def prepare_generator_input(self, step: StepContext) -> None:
        """Replace ``step.generator_input`` by the one that both networks train on."""
        step.generator_input = self.conditioning.transform_generator_input(step)
        for regularizer in self.regularizers.values():
            step.generator_input = regularizer.transform_generator_input(step)

    def prepare_discriminator_batch(self, step: StepContext) -> None:
        """Replace ``step.real`` and ``step.fake`` by the images that D trains on."""
        step.raw_fake = step.fake
        for regularizer in (*self.regularizers.values(), self.augmentation):
            step.real, step.fake = regularizer.transform_batch(step)

    def discriminator_terms(self, step: StepContext) -> dict[str, Tensor]:
        """Return the terms of D's loss by name; their sum is the loss."""
        loss = self.loss.discriminator_loss(
            step.real_logits, step.fake_logits, step.objective_state
        )
        terms = {"loss_discriminator": loss, **self.conditioning.discriminator_terms(step)}
        if isinstance(self.conditioning, LogitConditioning) and self.conditioning.mismatch_weight:
            terms["mismatch"] = self.conditioning.mismatch_weight * self._mismatch_loss(
                self.conditioning, step
            )
        for name, penalty, weight in self._due_penalties(step, step.index):
            value = penalty.discriminator_term(step)
            if value is not None:
                terms[name] = value * weight
        return terms

    def _mismatch_loss(self, conditioning: LogitConditioning, step: StepContext) -> Tensor:
        """Return D's loss where images with the condition of another row count as fakes.

        D compares them with the real images once more, so that real and fake images have the same
        weight (Reed et al. 2016, algorithm 1). Otherwise all logits would fall under losses that
        depend only on differences, such as the relativistic one.
        """
        num_samples = len(step.real)
        if num_samples < 2:
            return torch.zeros((), device=step.real.device)  # There is no other row.
        # A cyclic shift by 1 to N - 1 rows leaves no row its own condition.
        shift = int(torch.randint(1, num_samples, (), generator=step.rng, device=step.real.device))
        condition, is_mismatch = conditioning.mismatched_condition(step, shift)
        total = torch.zeros((), device=step.real.device)
        for images in (step.real, step.fake):
            # Call D even if no row is left: its synchronized norms wait for every process.
            logits = step.discriminator(step.augment(images.detach()), condition)[is_mismatch]
            if len(logits):
                real_logits = step.real_logits[is_mismatch]
                total = total + self.loss.discriminator_loss(
                    real_logits, logits, dict(step.objective_state)
                )
        return total / 2

    def generator_terms(self, step: StepContext) -> dict[str, Tensor]:
        """Return the terms of G's loss by name; their sum is the loss."""
        logits = step.fake_logits
        for regularizer in self.regularizers.values():
            logits = regularizer.select_logits(step, logits)
        real_logits = step.real_logits[: len(logits)] if self.loss.needs_real_logits else None
        loss = self.loss.generator_loss(real_logits, logits, step.objective_state)
        terms = {"loss_generator": loss, **self.conditioning.generator_terms(step)}
        update_index = step.index // self.critic_steps
        for name, penalty, weight in self._due_penalties(step, update_index):
            value = penalty.generator_term(step)
            if value is not None:
                terms[f"{name}_generator" if penalty.has_both_terms else name] = value * weight
        return terms

    def after_update(self, network: nn.Module, step: StepContext) -> None:
        """Run everything that follows the update of ``network``."""
        if network is step.discriminator:
            real_logits, fake_logits = step.real_logits.detach(), step.fake_logits.detach()
            num_images = len(step.real) * step.shard.count
            step.log_scalars |= self.loss.update_state(
                real_logits, fake_logits, step.objective_state, num_images
            )
        for regularizer in self.regularizers.values():
            regularizer.after_update(network, step)
        if network is step.discriminator and isinstance(self.augmentation, AdaptiveProbability):
            real_sign = self.loss.real_sign(real_logits, fake_logits).mean()
            self.augmentation.adapt_probability(step, real_sign)

    def _due_penalties(
        self, step: StepContext, update_index: int
    ) -> Iterator[tuple[str, Penalty, float]]:
        """Yield name, penalty and weight of the penalties that act in this update of a network.

        A lazy penalty acts in every k-th update with k times its weight (Karras et al. 2020,
        1912.04958, section 3.1).
        """
        resolution = (step.real.shape[2], step.real.shape[3])
        for name, regularizer in self.regularizers.items():
            if not isinstance(regularizer, Penalty) or update_index % regularizer.interval:
                continue
            if weight := regularizer.weight_at(resolution):
                yield name, regularizer, weight * regularizer.interval


def make_objective(settings: Settings) -> Objective:
    """Return the objective that the settings describe.

    Raises:
        UserError: A name or an option is unknown, a value is not valid, or parts cannot be
            combined.
    """
    loss = make_loss(settings.loss, settings.loss_options)
    regularizers = {
        name: make_regularizer(name, options) for name, options in settings.regularizers.items()
    }
    _check_regularizers(settings, regularizers)
    augmentation = make_augmentation(settings.augmentation, settings.augmentation_options)
    conditioning = make_conditioning(settings.conditioning, settings.conditioning_options)
    if settings.conditioning != "none" and loss.uses_energy:
        raise UserError(
            f"conditioning '{settings.conditioning}' cannot be combined with loss"
            f" '{settings.loss}', whose discriminator outputs reconstruction errors and no logits"
        )
    return Objective(
        loss=loss,
        regularizers=regularizers,
        augmentation=augmentation,
        conditioning=conditioning,
        critic_steps=settings.critic_steps,
    )


def _check_regularizers(settings: Settings, regularizers: Mapping[str, Regularizer]) -> None:
    """Raise a :class:`UserError` if a regularizer cannot be combined with the other settings."""
    for name, regularizer in regularizers.items():
        if not regularizer.supports_loss(LOSSES[settings.loss]):
            compatible = [entry.name for entry in LOSSES if regularizer.supports_loss(entry.value)]
            raise UserError(
                f"regularizer '{name}' cannot be combined with loss '{settings.loss}';"
                f" compatible losses: {', '.join(compatible)}"
            )
    if "replay" in regularizers and settings.conditioning in (
        "source-concat",
        "source-projection",
        "infogan",
    ):
        raise UserError(
            "regularizer 'replay' cannot be combined with conditioning"
            f" '{settings.conditioning}': replayed fakes have another condition"
        )
    parametrization = settings.network.for_role("discriminator").parametrization
    if "clip" in regularizers and parametrization == "spectral_norm":
        raise UserError(
            f"regularizer 'clip' has no effect with parametrization '{parametrization}' of the"
            " discriminator, which divides each weight by its largest singular value; set"
            " network.discriminator_parametrization"
        )
