"""Terms that keep D (or G) well behaved. Each is one function of a :class:`Step`.

Gradient penalties run in float32 outside autocast: they differentiate a gradient, and bfloat16
keeps too few digits for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from growgan.nets.stack import Discriminator, Generator
from growgan.registry import Registry


@dataclass
class Step:
    """One training step, as a regulariser sees it.

    Attributes:
        real: images float ``[N, C, H, W]`` in [-1, 1].
        fake: G's images for ``latents``, same shape; detached while D trains.
        real_logits, fake_logits: D's outputs for them, float ``[N]``.
        rng: the step's own random numbers, on the device of the images.
    """

    generator: Generator
    discriminator: Discriminator
    real: Float[Tensor, "n c h w"]
    fake: Float[Tensor, "n c h w"]
    latents: Float[Tensor, "n z"]
    rng: torch.Generator
    real_logits: Float[Tensor, " n"]
    fake_logits: Float[Tensor, " n"]


@dataclass(frozen=True)
class Regulariser:
    """A term of D's loss with its usual weight.

    Attributes:
        term: the unweighted term, a scalar.
        weight: what it is multiplied by unless the settings say otherwise.
        every: compute it at every k-th step, k times as strong (lazily).
        per_pixel: True if the weight is for an image of one pixel, and grows with their number.
    """

    term: Callable[[Step], Tensor]
    weight: float
    every: int = 1
    per_pixel: bool = False

    def weight_at(self, resolution: tuple[int, int]) -> float:
        """Return the usual weight for images of this height and width."""
        return self.weight * (prod(resolution) if self.per_pixel else 1)


REGULARISERS: Registry[Regulariser] = Registry("regulariser")


def gradient_square(discriminator: Discriminator, x: Tensor) -> Float[Tensor, " n"]:
    """Return ||∇_x D(x)||² for each image, in float32, differentiable again."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
        return gradient.square().sum((1, 2, 3))


def r1(step: Step) -> Tensor:
    """½ E ||∇D(x)||² on reals (Mescheder et al. 2018, equation 9, without γ)."""
    return 0.5 * gradient_square(step.discriminator, step.real).mean()


def r2(step: Step) -> Tensor:
    """½ E ||∇D(x)||² on fakes (Mescheder et al. 2018, equation 10, without γ)."""
    return 0.5 * gradient_square(step.discriminator, step.fake).mean()


def gradient_penalty(step: Step) -> Tensor:
    """E (||∇D(x̂)|| - 1)², x̂ uniform on lines between reals and fakes (Gulrajani et al. 2017)."""
    shape = (len(step.real), 1, 1, 1)
    t = torch.rand(shape, generator=step.rng, device=step.real.device)
    mixed = torch.lerp(step.real.float(), step.fake.detach().float(), t)
    norm = (gradient_square(step.discriminator, mixed) + 1e-12).sqrt()
    return (norm - 1).square().mean()


def drift(step: Step) -> Tensor:
    """E D(x)² on reals, which keeps the critic near zero (Karras et al. 2018, appendix A.1)."""
    return step.real_logits.square().mean()


# Where a pixel is the mean of four finer ones, its gradient is the sum of theirs and the square of
# the norm four times as large: a stack that grows needs a weight that grows with the pixels, as
# StyleGAN2-ADA's rule of thumb has it (Karras et al. 2020, 2006.06676, appendix C).
REGULARISERS.register("r1", "gradient penalty on reals", "Mescheder et al. 2018")(
    Regulariser(r1, weight=2e-3, every=16, per_pixel=True)
)
REGULARISERS.register("r2", "gradient penalty on fakes", "Mescheder et al. 2018")(
    Regulariser(r2, weight=2e-3, every=16, per_pixel=True)
)
REGULARISERS.register("gp", "gradient norm 1 between reals and fakes", "Gulrajani et al. 2017")(
    Regulariser(gradient_penalty, weight=10.0)
)
REGULARISERS.register("drift", "keeps D's outputs on reals near zero", "Karras et al. 2018")(
    Regulariser(drift, weight=0.001)
)
