"""Regularizers that change the batch: G's inputs, D's images, or the samples G learns from."""

from __future__ import annotations

from math import ceil

import torch
from pydantic import Field
from torch import Tensor

from growgan.objectives.options import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from growgan.objectives.regularizer import Regularizer, register_regularizer
from growgan.objectives.step_context import StepContext


@register_regularizer(
    "top-k",
    "Trains G only on the fakes that D finds most realistic.",
    "Sinha et al. 2020, 2002.06224",
)
class TopK(Regularizer):
    """G's loss uses the k fakes that D rates most real; k decays from the whole batch."""

    decay: Fraction = Field(0.99, description="Factor by which k falls every images_per_decay.")
    min_fraction: Fraction = Field(0.5, description="Smallest k, as a fraction of the batch.")
    images_per_decay: PositiveInt = Field(
        50_000, description="Number of training images after which k falls once."
    )

    def select_logits(self, step: StepContext, logits: Tensor) -> Tensor:
        fraction = max(self.decay ** (step.images_seen / self.images_per_decay), self.min_fraction)
        # A patch discriminator has several logits per image: rank images by their mean.
        scores = step.realness_sign * logits.detach().view(len(logits), -1).mean(1)
        return logits[scores.topk(max(1, ceil(fraction * len(logits)))).indices]


@register_regularizer(
    "latent-optimization",
    "Moves z toward what D rates as real before each step (LOGAN).",
    "Wu et al. 2019, 1912.00953",
)
class LatentOptimization(Regularizer):
    """z + α g / (β + ||g||²), where g = ∇_z D(G(z)) is treated as a constant.

    If D outputs reconstruction errors, g = -∇_z D(G(z)). The condition is not moved.
    """

    step_size: NonNegativeFloat = Field(0.9, description="Step size α of the update of z.")
    damping: PositiveFloat = Field(
        5.0, description="Damping β, added to the squared gradient norm."
    )

    def transform_generator_input(self, step: StepContext) -> Tensor:
        with torch.enable_grad(), torch.autocast(step.generator_input.device.type, enabled=False):
            z, condition = (part.detach().float() for part in step.latents_and_condition)
            z.requires_grad_()
            fakes = step.generator(torch.cat([z, condition], 1))
            realness = step.realness_sign * step.augmented_logits(fakes).sum()
            (gradient,) = torch.autograd.grad(realness, z)
        squared_norm = gradient.square().sum(1, keepdim=True)
        optimized = z.detach() + self.step_size * gradient / (self.damping + squared_norm)
        return torch.cat([optimized, condition], 1)


@register_regularizer(
    "replay",
    "Replaces half of D's fakes by fakes of earlier steps.",
    "Shrivastava et al. 2017, 1612.07828",
)
class ReplayBuffer(Regularizer):
    """A fraction of D's fakes comes from a buffer of earlier fakes (Shrivastava et al. 2017).

    A replayed fake replaces a new one of the same label, and the new one takes its place in the
    buffer, so that fakes D has not seen yet are kept (as in CycleGAN's code, 1703.10593).
    """

    buffer_size: PositiveInt = Field(1024, description="Number of fakes in the buffer.")
    replay_fraction: Fraction = Field(
        0.5, description="Fraction of D's fakes that comes from the buffer."
    )

    def transform_batch(self, step: StepContext) -> tuple[Tensor, Tensor]:
        fake = step.fake.detach()
        # Store G's unchanged images, even if other regularizers change what D sees.
        raw_fake = step.raw_fake if len(step.raw_fake) else fake
        labels = step.labels if step.labels.numel() else fake.new_zeros(len(fake), 0)
        buffer = step.objective_state.get("replay.fakes")
        buffer_labels = step.objective_state.get("replay.labels")
        if buffer is None or buffer_labels is None or buffer.shape[1:] != fake.shape[1:]:
            # Start over at a new resolution.
            buffer, buffer_labels = fake[:0].clone(), labels[:0]
        presented, num_free = fake, self.buffer_size - len(buffer)
        if len(buffer):
            num_replayed = round(self.replay_fraction * len(fake))
            rows, slots = _match_by_label(labels[:num_replayed], buffer_labels, step)
            presented = fake.index_copy(0, rows, buffer[slots])
            if num_free <= 0:
                buffer = buffer.index_copy(0, slots, raw_fake[rows])
        if num_free > 0:
            buffer = torch.cat([buffer, raw_fake[:num_free]])
            buffer_labels = torch.cat([buffer_labels, labels[:num_free]])
        step.objective_state["replay.fakes"] = buffer
        step.objective_state["replay.labels"] = buffer_labels
        return step.real, presented


def _match_by_label(
    labels: Tensor, buffer_labels: Tensor, step: StepContext
) -> tuple[Tensor, Tensor]:
    """Assign to each row a different random slot of the buffer that has the same label.

    Args:
        labels: Labels of the rows, [n, k].
        buffer_labels: Labels of the slots, [m, k].
        step: Provides random numbers.

    Returns:
        Rows and their slots. Rows without a free slot of their label are left out.
    """
    order = torch.rand(len(buffer_labels), generator=step.rng, device=step.rng.device).argsort()
    # The i-th row with a label gets the i-th slot with this label, in random order.
    rank = (labels[:, None] == labels[None]).all(2).tril(-1).sum(1)
    same_label = (labels[:, None] == buffer_labels[order][None]).all(2)  # (n, m)
    match = same_label & (same_label.cumsum(1) == rank[:, None] + 1)
    rows = match.any(1).nonzero()[:, 0]
    return rows, order[match[rows].int().argmax(1)]


@register_regularizer(
    "dat", "Trains D on adversarially perturbed images.", "Li et al. 2020, 2008.09041"
)
class DirectAdversarialTraining(Regularizer):
    """x' = x - clip(∇_x |mean D(x) - mean D(G)|, -1, 1), and likewise for fakes.

    The means are over the whole batch. D sees only the perturbed images, clipped to [-1, 1].
    """

    def transform_batch(self, step: StepContext) -> tuple[Tensor, Tensor]:
        real, fake = step.real.float(), step.fake.detach().float()
        with torch.autocast(real.device.type, enabled=False):
            with torch.no_grad():
                real_mean = step.augmented_logits(real).mean()
                fake_mean = step.augmented_logits(fake).mean()
            return (
                _adversarial_images(step, real, fake_mean),
                _adversarial_images(step, fake, real_mean),
            )


def _adversarial_images(step: StepContext, images: Tensor, target_logit: Tensor) -> Tensor:
    """Return ``images`` moved so that D's mean logit of them approaches ``target_logit``."""
    x = images.detach().requires_grad_()
    with torch.enable_grad():
        gap = (step.augmented_logits(x).mean() - target_logit).abs()
        # The mean over a shard is its part of the mean over the batch.
        (gradient,) = torch.autograd.grad(gap / step.shard.count, x)
    return (images - gradient.clamp(-1, 1)).clamp(-1, 1)
