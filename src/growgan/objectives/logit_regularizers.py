"""Regularizers of D's logits."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from growgan.objectives.losses import Loss
from growgan.objectives.options import Fraction, NonNegativeFloat, NonNegativeInt
from growgan.objectives.regularizer import WeightedPenalty, register_regularizer, register_term
from growgan.objectives.step_context import StepContext


@register_term(
    "drift",
    "Keeps D's outputs on real images near zero.",
    "Karras et al. 2018, 1710.10196",
    weight=1e-3,
)
def drift(step: StepContext) -> Tensor:
    """E D(x)² on real images (Karras et al. 2018, appendix A.1)."""
    return step.real_logits.square().mean()


@register_regularizer(
    "label-smoothing",
    "One-sided label smoothing: D's target for real images is 0.9.",
    "Salimans et al. 2016, 1606.03498",
)
class LabelSmoothing(WeightedPenalty):
    """E D(x): with weight s, it moves the target of real images in a cross entropy to 1 - s.

    (1 - s) softplus(-t) + s softplus(t) = softplus(-t) + s t.
    """

    weight: NonNegativeFloat = Field(
        0.1, description="How far the target of real images is below 1."
    )

    def supports_loss(self, loss: type[Loss]) -> bool:
        return loss.is_cross_entropy

    def discriminator_term(self, step: StepContext) -> Tensor:
        return step.real_logits.mean()


@register_regularizer(
    "lecam",
    "Keeps real logits near the mean fake logit and vice versa; for small datasets.",
    "Tseng et al. 2021, 2104.03310",
)
class LeCam(WeightedPenalty):
    """E relu(D(x) - ema_fake)² + E relu(ema_real - D(G(z)))² (Tseng et al. 2021)."""

    weight: NonNegativeFloat = Field(0.3, description="Weight of the term in the loss.")
    ema_decay: Fraction = Field(
        0.99, description="Decay per step of the two moving averages of logits."
    )
    start_step: NonNegativeInt = Field(1000, description="First step at which the term is used.")

    def supports_loss(self, loss: type[Loss]) -> bool:
        return loss.uses_logits

    def discriminator_term(self, step: StepContext) -> Tensor | None:
        real = step.update_ema("lecam.real", step.real_logits.mean(), self.ema_decay)
        fake = step.update_ema("lecam.fake", step.fake_logits.mean(), self.ema_decay)
        if step.index < self.start_step:
            return None
        real_excess = F.relu(step.real_logits - fake).square().mean()
        return real_excess + F.relu(real - step.fake_logits).square().mean()
