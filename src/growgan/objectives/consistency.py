"""Consistency regularization: D and G should change little under small changes of their input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from growgan.objectives.augmentation import shift_images
from growgan.objectives.options import NonNegativeFloat
from growgan.objectives.regularizer import WeightedPenalty, register_regularizer, register_term
from growgan.objectives.step_context import ShardedRng, StepContext

MAX_SHIFT_FRACTION = 0.125  # largest shift as a fraction of the side: 4 pixels at 32x32


def flip_and_shift(images: Tensor, rng: ShardedRng) -> Tensor:
    """Return each image randomly flipped and shifted by up to an eighth, with reflected borders."""
    n, _, h, w = images.shape
    flip = rng.uniform(n, 1, 1, 1) < 0.5
    images = torch.where(flip, images.flip(3), images)
    dy, dx = max(1, round(MAX_SHIFT_FRACTION * h)), max(1, round(MAX_SHIFT_FRACTION * w))
    mode = "reflect" if min(h, w) > max(dy, dx) else "replicate"
    padded = F.pad(images, (dx, dx, dy, dy), mode=mode)
    down = dy - rng.integers(0, 2 * dy + 1, n, 1, 1, 1)
    right = dx - rng.integers(0, 2 * dx + 1, n, 1, 1, 1)
    return shift_images(padded, down, right)[:, :, dy : dy + h, dx : dx + w]


def _squared_logit_difference(step: StepContext, images: Tensor, logits: Tensor) -> Tensor:
    return (logits - step.logits(flip_and_shift(images, step.sharded_rng))).square().mean()


@register_term(
    "cr",
    "Makes D's logit of a real image invariant to flips and shifts.",
    "Zhang et al. 2020, 1910.12027",
    weight=10.0,
)
def consistency_regularization(step: StepContext) -> Tensor:
    """E |D(x) - D(T(x))|² on real images; T flips and shifts."""
    return _squared_logit_difference(step, step.real, step.logits(step.real))


@register_term(
    "bcr",
    "Consistency regularization (cr) on real and fake images.",
    "Zhao et al. 2021, 2002.04724",
    weight=10.0,
)
def balanced_consistency_regularization(step: StepContext) -> Tensor:
    """E |D(x) - D(T(x))|² on real images plus the same on fakes."""
    fake = step.fake.detach()
    fake_term = _squared_logit_difference(step, fake, step.logits(fake))
    return consistency_regularization(step) + fake_term


@register_regularizer(
    "zcr",
    "Makes D invariant to small changes of z, and G sensitive to them.",
    "Zhao et al. 2021, 2002.04724",
)
class LatentConsistency(WeightedPenalty):
    """D: E |D(G(z)) - D(G(z + σ ε))|²; G: -E |G(z) - G(z + σ ε)|², a mean over pixels."""

    weight: NonNegativeFloat = Field(5.0, description="Weight of D's term in its loss.")
    generator_weight: NonNegativeFloat = Field(
        0.1, description="Weight of G's term, relative to that of D's term."
    )
    noise_std: NonNegativeFloat = Field(
        0.07, description="Standard deviation σ of the noise added to z."
    )

    has_both_terms = True

    def discriminator_term(self, step: StepContext) -> Tensor:
        with torch.no_grad():
            raw_fake = step.raw_fake if len(step.raw_fake) else step.fake
            fake, neighbor = self._perturbed_pair(step, raw_fake)
        return (step.logits(fake) - step.logits(neighbor)).square().mean()

    def generator_term(self, step: StepContext) -> Tensor:
        fake, neighbor = self._perturbed_pair(step, step.fake)
        return -self.generator_weight * (fake - neighbor).square().mean()

    def _perturbed_pair(self, step: StepContext, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return G(z) and G(z + σ ε), with the same noise and without style mixing."""
        z, condition = step.latents_and_condition
        shifted = z + self.noise_std * step.sharded_rng.normal(*z.shape)
        neighbor_input = torch.cat([shifted, condition], 1)
        if step.generator.is_stochastic:
            return (
                _synthesize_without_mixing(step, step.generator_input),
                _synthesize_without_mixing(step, neighbor_input),
            )
        return fake, step.generator(neighbor_input)


def _synthesize_without_mixing(step: StepContext, generator_input: Tensor) -> Tensor:
    """Return G's images, each with one style and with noise that depends on the step alone."""
    with torch.random.fork_rng([generator_input.device] if generator_input.is_cuda else []):
        torch.manual_seed(step.rng.initial_seed())
        return step.generator.synthesize(step.generator.map_to_w(generator_input))
