"""Reconstruction losses of image-to-image tasks."""

from __future__ import annotations

from torch import Tensor

from growgan.objectives.regularizer import register_term
from growgan.objectives.step_context import StepContext


@register_term(
    "l1",
    "Mean absolute difference between each fake and its target image; for paired data.",
    "Isola et al. 2017, 1611.07004",
    weight=100.0,
    applies_to="generator",
    needs_target=True,
)
def l1_loss(step: StepContext) -> Tensor:
    """E |G(c, z) - x|, where x is the target of the source image c (equation 3)."""
    return (step.fake.float() - step.real.float()).abs().mean()
