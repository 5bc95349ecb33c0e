"""Adversarial losses: functions of logits and nothing else.

Notation: real = D(x) and fake = D(G(z)), logits float ``[N]``; softplus(t) = log(1 + exp(t)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from growgan.registry import Registry

Logits = Float[Tensor, " n"]


class Loss(Protocol):
    """What the two players minimise.

    Attributes:
        paired: True if G's loss needs the logits of reals too.
    """

    paired: bool

    def discriminator(self, real: Logits, fake: Logits) -> Float[Tensor, ""]:
        """Return D's loss, a batch mean."""

    def generator(self, real: Logits | None, fake: Logits) -> Float[Tensor, ""]:
        """Return G's loss, a batch mean."""


LOSSES: Registry[Loss] = Registry("loss")


def _register(name: str, summary: str, paper: str, loss: Loss) -> None:
    LOSSES.register(name, summary, paper)(loss)


@dataclass(frozen=True)
class NonSaturating:
    """L_D = E softplus(-real) + E softplus(fake); L_G = E softplus(-fake)."""

    paired = False

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator(self, real: Logits | None, fake: Logits) -> Tensor:
        return F.softplus(-fake).mean()


@dataclass(frozen=True)
class Wasserstein:
    """L_D = E fake - E real; L_G = -E fake. Needs a gradient penalty or clipping."""

    paired = False

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        return fake.mean() - real.mean()

    def generator(self, real: Logits | None, fake: Logits) -> Tensor:
        return -fake.mean()


@dataclass(frozen=True)
class Relativistic:
    """L_D = E softplus(-(real - fake)); L_G = E softplus(-(fake - real)), pairs by position."""

    paired = True

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        return F.softplus(fake - real).mean()

    def generator(self, real: Logits | None, fake: Logits) -> Tensor:
        if real is None:
            raise TypeError("the relativistic loss needs the logits of reals for G too")
        return F.softplus(real - fake).mean()


_register("non-saturating", "-log D for both players", "Goodfellow et al. 2014", NonSaturating())
_register("wasserstein", "difference of mean critics", "Arjovsky et al. 2017", Wasserstein())
_register(
    "relativistic", "each fake against a real (RpGAN)", "Jolicoeur-Martineau 2018", Relativistic()
)
