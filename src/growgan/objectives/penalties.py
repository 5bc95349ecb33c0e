"""Terms that keep D smooth: penalties on its gradient, and on its outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from growgan.objectives.options import Share
from growgan.objectives.regulariser import Penalty, gradient_square, regulariser, term
from growgan.objectives.step import Step

# Where a pixel is the mean of four finer ones, its gradient is the sum of theirs and the square of
# the norm four times as large: a stack that grows needs a weight that grows with the pixels, as
# StyleGAN2-ADA's rule of thumb has it (Karras et al. 2020, 2006.06676, appendix C).
LAZY = {"weight": 2e-3, "every": 16, "per_pixel": True}


@term("r1", "gradient penalty on reals", "Mescheder et al. 2018, 1801.04406", **LAZY)
def r1(step: Step) -> Tensor:
    """½ E ||∇D(x)||² on reals (Mescheder et al. 2018, equation 9, without γ)."""
    return 0.5 * gradient_square(step.judge, step.real).mean()


@term("r2", "gradient penalty on fakes", "Mescheder et al. 2018, 1801.04406", **LAZY)
def r2(step: Step) -> Tensor:
    """½ E ||∇D(x)||² on fakes (Mescheder et al. 2018, equation 10, without γ)."""
    return 0.5 * gradient_square(step.judge, step.fake).mean()


@term(
    "gp",
    "gradient norm 1 between reals and fakes",
    "Gulrajani et al. 2017, 1704.00028",
    weight=10.0,
)
def gradient_penalty(step: Step) -> Tensor:
    """E (||∇D(x̂)|| - 1)², x̂ uniform on lines between reals and fakes (Gulrajani et al. 2017)."""
    return (_norm(step, _between(step)) - 1).square().mean()


@term("maxgp", "largest gradient between reals and fakes", "Zhou et al. 2019, 1902.05687")
def largest_gradient(step: Step) -> Tensor:
    """max ||∇D(x̂)||² over the batch, x̂ as for "gp"."""
    return gradient_square(step.judge, _between(step)).max()


@term("dragan", "gradient norm 1 around reals", "Kodali et al. 2017, 1705.07215", weight=10.0)
def gradient_around_reals(step: Step) -> Tensor:
    """E (||∇D(x + ½ std(x) u)|| - 1)², u uniform in [0, 1], std over the batch of reals."""
    real = step.real.float()
    noise = step.chance.uniform(*real.shape)
    return (_norm(step, real + 0.5 * real.std() * noise) - 1).square().mean()


@term(
    "drift", "keeps D's outputs on reals near zero", "Karras et al. 2018, 1710.10196", weight=1e-3
)
def drift(step: Step) -> Tensor:
    """E D(x)² on reals, which keeps the critic near zero (Karras et al. 2018, appendix A.1)."""
    return step.real_logits.square().mean()


@term(
    "l1",
    "fakes near what they should be",
    "Isola et al. 2017, 1611.07004",
    weight=100.0,
    player="generator",
    paired=True,
)
def absolute_error(step: Step) -> Tensor:
    """E |G(c, z) - x|, where x is what c should become (Isola et al. 2017, equation 3)."""
    return (step.fake.float() - step.real.float()).abs().mean()


@regulariser("smoothing", "one-sided label smoothing to 0.9", "Salimans et al. 2016, 1606.03498")
@dataclass(frozen=True)
class LabelSmoothing(Penalty):
    """E real: added with weight s to a cross entropy, it moves the reals' target from 1 to 1 - s.

    (1 - s) softplus(-t) + s softplus(t) = softplus(-t) + s t.
    """

    weight: float = 0.1

    requires = "logistic"

    def discriminator(self, step: Step) -> Tensor:
        return step.real_logits.mean()


@regulariser("lecam", "logits held to each other's averages", "Tseng et al. 2021, 2104.03310")
@dataclass(frozen=True)
class LeCam(Penalty):
    """E relu(D(x) - ema_fake)² + E relu(ema_real - D(G))² (Tseng et al. 2021, 2104.03310).

    Attributes:
        decay: of the two averages, a step.
        start: steps before it acts.
    """

    weight: float = 0.3
    decay: Share = 0.99
    start: int = 1000

    requires = "logits"

    def discriminator(self, step: Step) -> Tensor | None:
        real = step.average("lecam.real", step.real_logits.mean(), self.decay)
        fake = step.average("lecam.fake", step.fake_logits.mean(), self.decay)
        if step.index < self.start:
            return None
        above = F.relu(step.real_logits - fake).square().mean()
        return above + F.relu(real - step.fake_logits).square().mean()


def _between(step: Step) -> Tensor:
    """Return points that are uniform on the lines between reals and fakes."""
    t = step.chance.uniform(len(step.real), 1, 1, 1)
    return torch.lerp(step.real.float(), step.fake.detach().float(), t)


def _norm(step: Step, x: Tensor) -> Tensor:
    return (gradient_square(step.judge, x) + 1e-12).sqrt()
