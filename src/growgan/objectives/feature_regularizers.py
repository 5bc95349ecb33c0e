"""Terms of G's loss that compare D's features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from growgan.objectives.regularizer import WeightedPenalty, register_regularizer, register_term
from growgan.objectives.step_context import StepContext


@register_regularizer(
    "feature-matching",
    "Matches the mean of D's features of fake images to that of real images.",
    "Salimans et al. 2016, 1606.03498",
)
class FeatureMatching(WeightedPenalty):
    """G: ||E f(x) - E f(G(z))||² / d, where f are the d features before D's logit layer."""

    replace_loss: bool = Field(
        False,
        description="Train G with this term alone, as published (section 3.1). The log still shows"
        " the value of G's loss.",
    )

    def select_logits(self, step: StepContext, logits: Tensor) -> Tensor:
        # Keep the value of the loss and make its gradient zero.
        return logits.detach() + 0 * logits if self.replace_loss else logits

    def generator_term(self, step: StepContext) -> Tensor:
        with torch.no_grad():
            real = step.augmented_features(step.real).float().mean(0)
        fake = step.augmented_features(step.fake).float().mean(0)
        return (real - fake).square().mean()


@register_term(
    "pulling-away",
    "Pushes D's features of different fakes apart.",
    "Zhao et al. 2017, 1609.03126",
    applies_to="generator",
    weight=0.1,
)
def pulling_away(step: StepContext) -> Tensor:
    """Mean squared cosine between the features of two different fakes (equation 4)."""
    features = F.normalize(step.augmented_features(step.fake).float(), dim=1)
    cosines = (features @ features.T).square()
    n = len(features)
    return (cosines.sum() - cosines.diagonal().sum()) / max(1, n * (n - 1))
