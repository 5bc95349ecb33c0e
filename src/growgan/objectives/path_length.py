"""Path length regularization of G (StyleGAN2)."""

from __future__ import annotations

from math import prod

import torch
from pydantic import Field
from torch import Tensor

from growgan.objectives.options import Fraction, NonNegativeFloat, PositiveInt
from growgan.objectives.regularizer import WeightedPenalty, disable_compile, register_regularizer
from growgan.objectives.step_context import StepContext


@register_regularizer(
    "path-length",
    "Makes a step of fixed size in w change the image by a fixed amount.",
    "Karras et al. 2020, 1912.04958",
)
class PathLengthRegularization(WeightedPenalty):
    """E (||J_wᵀ y|| - a)², y normal images, a the moving average of the norm (section 3.2).

    Each layer has its own w, and the squared norm is the mean over layers, as in the authors'
    code. Without a mapping network, w is z; labels and source images do not count.
    """

    weight: NonNegativeFloat = Field(2.0, description="Weight of the term in the loss.")
    interval: PositiveInt = Field(
        4,
        description="Number of steps between two evaluations of the term. A lazy term is weighted"
        " by its interval.",
    )
    ema_decay: Fraction = Field(
        0.99, description="Decay of the moving average of path lengths, per evaluation."
    )
    batch_fraction: Fraction = Field(
        0.5, description="Fraction of the batch on which the term is evaluated."
    )

    def generator_term(self, step: StepContext) -> Tensor:
        num_samples = max(1, round(self.batch_fraction * len(step.generator_input)))
        z = step.generator_input[:num_samples]
        with torch.autocast(z.device.type, enabled=False):
            w = step.generator.map_to_w(z.float())
        w = w if w.requires_grad else w.requires_grad_()
        w = w[:, None].expand(-1, step.generator.num_styles, -1)  # (n, layers, w)
        with disable_compile():
            images = step.generator.synthesize(w).float()
            y = step.sharded_rng.normal(*images.shape)
            y = y / prod(images.shape[2:]) ** 0.5
            (gradient,) = torch.autograd.grad((images * y).sum(), w, create_graph=True)
        gradient = gradient[..., : step.generator.spec.latent_dim].float()
        lengths = gradient.square().sum(2).mean(1).sqrt()  # (n,)
        mean = step.update_ema("path.mean", lengths.mean(), self.ema_decay)
        step.log_scalars["path_length_mean"] = mean.clone()
        return (lengths - mean).square().mean()
