"""Gradient penalties on D."""

from __future__ import annotations

from math import prod
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from growgan.errors import UserError
from growgan.objectives.options import NonNegativeFloat, PositiveInt
from growgan.objectives.regularizer import (
    Penalty,
    register_regularizer,
    register_term,
    squared_gradient_norm,
)
from growgan.objectives.step_context import StepContext

GAMMA_PER_PIXEL = 0.002  # default of R1 and R2: gamma 2 at 32x32 pixels


class ZeroCenteredGradientPenalty(Penalty):
    """γ/2 E ||∇D(x)||² (Mescheder et al. 2018, 1801.04406, equations 9 and 10).

    By default γ grows with the number of pixels. If each pixel of an image is the mean of four
    pixels of a finer image, its gradient is the sum of theirs, and the squared norm is four times
    as large. A growing GAN therefore needs a γ in proportion to the pixels, as in the rule of
    thumb of StyleGAN2-ADA (Karras et al. 2020, 2006.06676, appendix C).
    """

    gamma: NonNegativeFloat | None = Field(
        None,
        description="Weight γ of γ/2 E ||∇D||², as published, at every resolution. If null,"
        " gamma_per_pixel determines it.",
    )
    gamma_per_pixel: NonNegativeFloat = Field(
        GAMMA_PER_PIXEL,
        description="γ divided by the number of pixels of an image, for a γ that grows with the"
        " resolution.",
    )
    interval: PositiveInt = Field(
        16,
        description="Number of steps between two evaluations of the term. A lazy term is weighted"
        " by its interval.",
    )

    penalized: ClassVar[Literal["real", "fake"]] = "real"

    @model_validator(mode="after")
    def _refuse_two_weights(self) -> ZeroCenteredGradientPenalty:
        if self.gamma is not None and self.gamma_per_pixel != GAMMA_PER_PIXEL:
            name = "r1" if self.penalized == "real" else "r2"
            raise UserError(
                f"setting 'regularizers.{name}.gamma_per_pixel' has no effect while gamma is"
                f" {self.gamma:g}; set 'regularizers.{name}.gamma' to null to use it"
            )
        return self

    def weight_at(self, resolution: tuple[int, int]) -> float:
        return self.gamma_per_pixel * prod(resolution) if self.gamma is None else self.gamma

    def discriminator_term(self, step: StepContext) -> Tensor:
        images = step.real if self.penalized == "real" else step.fake
        return 0.5 * squared_gradient_norm(step.augmented_logits, images).mean()


@register_regularizer("r1", "Gradient penalty on real images.", "Mescheder et al. 2018, 1801.04406")
class R1(ZeroCenteredGradientPenalty):
    """γ/2 E ||∇D(x)||² on real images (equation 9)."""

    penalized = "real"


@register_regularizer("r2", "Gradient penalty on fake images.", "Mescheder et al. 2018, 1801.04406")
class R2(ZeroCenteredGradientPenalty):
    """γ/2 E ||∇D(x)||² on fake images (equation 10)."""

    penalized = "fake"


@register_term(
    "gp",
    "Pulls the gradient norm to 1 between real and fake images (WGAN-GP).",
    "Gulrajani et al. 2017, 1704.00028",
    weight=10.0,
)
def gradient_penalty(step: StepContext) -> Tensor:
    """E (||∇D(x̂)|| - 1)², x̂ uniform on lines between real and fake images (equation 3)."""
    return (_gradient_norm(step, _interpolate_real_fake(step)) - 1).square().mean()


@register_term(
    "max-gp",
    "Penalizes the largest gradient between real and fake images.",
    "Zhou et al. 2019, 1902.05687",
)
def max_gradient_penalty(step: StepContext) -> Tensor:
    """max ||∇D(x̂)||² over the batch, x̂ as in :func:`gradient_penalty`."""
    return squared_gradient_norm(step.augmented_logits, _interpolate_real_fake(step)).max()


@register_term(
    "dragan",
    "Pulls the gradient norm to 1 around real images.",
    "Kodali et al. 2017, 1705.07215",
    weight=10.0,
)
def dragan_penalty(step: StepContext) -> Tensor:
    """E (||∇D(x + ½ std(x) u)|| - 1)², u uniform in [0, 1], std over the batch of real images."""
    real = step.real.float()
    noise = step.sharded_rng.uniform(*real.shape)
    return (_gradient_norm(step, real + 0.5 * real.std() * noise) - 1).square().mean()


def _interpolate_real_fake(step: StepContext) -> Tensor:
    """Return points drawn uniformly on the lines between real and fake images, [N, C, H, W]."""
    t = step.sharded_rng.uniform(len(step.real), 1, 1, 1)
    return torch.lerp(step.real.float(), step.fake.detach().float(), t)


def _gradient_norm(step: StepContext, images: Tensor) -> Tensor:
    return (squared_gradient_norm(step.augmented_logits, images) + 1e-12).sqrt()
