"""Adversarial losses: functions of logits and nothing else.

Notation: real = D(x) and fake = D(G(z)), logits float ``[N]``; softplus(t) = log(1 + exp(t)).
For the losses of energies D is an autoencoder, and real and fake are its reconstruction errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from growgan.objectives.options import Share, with_options
from growgan.objectives.step import Memory
from growgan.registry import Registry

Logits = Float[Tensor, " n"]


@dataclass(frozen=True)
class Loss:
    """What the two players minimise. Fields are options, by ``loss_options.NAME``.

    Attributes:
        paired: True if G's loss needs the logits of reals too.
        energies: True if D must be an autoencoder, whose errors take the place of logits.
        logits: True if it need not, for regularisers that require it.
        logistic: True if D's loss is a cross entropy, whose targets can be smoothed.
        ranks: True if a good D puts reals above fakes.
    """

    paired: ClassVar[bool] = False
    energies: ClassVar[bool] = False
    logits: ClassVar[bool] = True
    logistic: ClassVar[bool] = False
    ranks: ClassVar[bool] = True

    def discriminator(self, real: Logits, fake: Logits, memory: Memory) -> Float[Tensor, ""]:
        """Return D's loss, a batch mean."""
        raise NotImplementedError

    def generator(self, real: Logits | None, fake: Logits, memory: Memory) -> Float[Tensor, ""]:
        """Return G's loss, a batch mean."""
        raise NotImplementedError

    def curves(self, real: Logits, fake: Logits, memory: Memory, images: int) -> dict[str, Tensor]:
        """Return what is worth a curve beside the loss, after updating what it remembers.

        ``images`` are those of the whole step, of which these logits may be a share.
        """
        return {}

    def sure(self, real: Logits, fake: Logits) -> Logits:
        """Return 1 for each real that D takes for one, and -1 for the others, float ``[N]``."""
        return real.sign()


LOSSES: Registry[type[Loss]] = Registry("loss")


@LOSSES.register(
    "minimax", "log D against log (1 - D), as written", "Goodfellow et al. 2014, 1406.2661"
)
@dataclass(frozen=True)
class Minimax(Loss):
    """L_D = E softplus(-real) + E softplus(fake); L_G = -E softplus(fake)."""

    logistic = True

    def discriminator(self, real: Logits, fake: Logits, memory: Memory) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator(self, real: Logits | None, fake: Logits, memory: Memory) -> Tensor:
        return -F.softplus(fake).mean()


@LOSSES.register("non-saturating", "-log D for both players", "Goodfellow et al. 2014, 1406.2661")
@dataclass(frozen=True)
class NonSaturating(Minimax):
    """L_D = E softplus(-real) + E softplus(fake); L_G = E softplus(-fake)."""

    def generator(self, real: Logits | None, fake: Logits, memory: Memory) -> Tensor:
        return F.softplus(-fake).mean()


@LOSSES.register("least-squares", "logits drawn to 1 and 0", "Mao et al. 2017, 1611.04076")
@dataclass(frozen=True)
class LeastSquares(Loss):
    """L_D = ½ E (real - 1)² + ½ E fake²; L_G = ½ E (fake - 1)²."""

    def sure(self, real: Logits, fake: Logits) -> Logits:
        return (real - 0.5).sign()

    def discriminator(self, real: Logits, fake: Logits, memory: Memory) -> Tensor:
        return 0.5 * ((real - 1).square().mean() + fake.square().mean())

    def generator(self, real: Logits | None, fake: Logits, memory: Memory) -> Tensor:
        return 0.5 * (fake - 1).square().mean()


@LOSSES.register("wasserstein", "difference of mean critics", "Arjovsky et al. 2017, 1701.07875")
@dataclass(frozen=True)
class Wasserstein(Loss):
    """L_D = E fake - E real; L_G = -E fake. Needs a gradient penalty or clipping."""

    def sure(self, real: Logits, fake: Logits) -> Logits:
        return (real - fake).sign()

    def discriminator(self, real: Logits, fake: Logits, memory: Memory) -> Tensor:
        return fake.mean() - real.mean()

    def generator(self, real: Logits | None, fake: Logits, memory: Memory) -> Tensor:
        return -fake.mean()


@LOSSES.register(
    "hinge",
    "margins of 1 on both sides",
    "Lim & Ye 2017, 1705.02894; Miyato et al. 2018, 1802.05957",
)
@dataclass(frozen=True)
class Hinge(Loss):
    """L_D = E relu(1 - real) + E relu(1 + fake); L_G = -E fake."""

    def discriminator(self, real: Logits, fake: Logits, memory: Memory) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator(self, real: Logits | None, fake: Logits, memory: Memory) -> Tensor:
        return -fake.mean()


@LOSSES.register(
    "positive-unlabelled",
    "hinge; fakes hold a share of good ones",
    "Guo et al. 2020, 2011.13684",
)
@dataclass(frozen=True)
class PositiveUnlabelled(Hinge):
    """L_D = (1 + π) E relu(1 - real) + relu(E relu(1 + fake) - π E relu(1 + real)).

    L_G = -E fake. D takes fakes for a mixture with a share π of what might be real (Guo et al.
    2020, 2011.13684), which may grow as G gets better (of classes: Lee et al. 2021, 2112.10930). At
    π = 1 nothing that might be real is held against a fake.

    Attributes:
        prior: π at first: that of one class in n is 1 / n.
        ramp: images after which π has grown to 1; with 0 it stays.
    """

    prior: Share = 0.1
    ramp: float = 0.0

    def share(self, real: Logits, memory: Memory) -> Float[Tensor, ""]:
        """Return π."""
        seen = memory.setdefault("pu.images", torch.zeros((), device=real.device))
        grown = seen / self.ramp if self.ramp > 0 else torch.zeros_like(seen)
        return (self.prior + (1 - self.prior) * grown).clamp(max=1)

    def discriminator(self, real: Logits, fake: Logits, memory: Memory) -> Tensor:
        share = self.share(real, memory)
        unlabelled = F.relu(1 + fake).mean() - share * F.relu(1 + real).mean()
        return (1 + share) * F.relu(1 - real).mean() + F.relu(unlabelled)

    def curves(self, real: Logits, fake: Logits, memory: Memory, images: int) -> dict[str, Tensor]:
        """Count the images, and return π."""
        share = self.share(real, memory)
        memory["pu.images"].add_(images)
        return {"pu_share": share}


@LOSSES.register(
    "relativistic", "each fake against a real (RpGAN)", "Jolicoeur-Martineau 2018, 1807.00734"
)
@dataclass(frozen=True)
class Relativistic(Loss):
    """L_D = E softplus(-(real - fake)); L_G = E softplus(-(fake - real)), pairs by position."""

    paired = True

    def sure(self, real: Logits, fake: Logits) -> Logits:
        return (real - fake).sign()

    def discriminator(self, real: Logits, fake: Logits, memory: Memory) -> Tensor:
        return F.softplus(fake - real).mean()

    def generator(self, real: Logits | None, fake: Logits, memory: Memory) -> Tensor:
        if real is None:
            raise TypeError("the relativistic loss needs the logits of reals for G too")
        return F.softplus(real - fake).mean()


@LOSSES.register("began", "energies in equilibrium", "Berthelot et al. 2017, 1703.10717")
@dataclass(frozen=True)
class Equilibrium(Loss):
    """L_D = E real - k E fake; L_G = E fake; k follows γ E real - E fake.

    Attributes:
        gamma: γ, the energy of fakes beside that of reals: more of it is more diversity.
        step: λ_k, by how much k moves.
    """

    gamma: Share = 0.5
    step: float = 1e-3

    energies, logits = True, False
    ranks = False  # in equilibrium fakes have γ times the energy of reals

    def discriminator(self, real: Logits, fake: Logits, memory: Memory) -> Tensor:
        k = memory.setdefault("began.k", torch.zeros((), device=real.device))
        return real.mean() - k * fake.mean()

    def generator(self, real: Logits | None, fake: Logits, memory: Memory) -> Tensor:
        return fake.mean()

    def curves(self, real: Logits, fake: Logits, memory: Memory, images: int) -> dict[str, Tensor]:
        """Move k, and return it with the measure of convergence E real + |γ E real - E fake|."""
        balance = (self.gamma * real.mean() - fake.mean()).detach()
        k = memory.setdefault("began.k", torch.zeros((), device=real.device))
        k.add_(self.step * balance).clamp_(0, 1)
        return {"began_k": k.clone(), "began_convergence": real.detach().mean() + balance.abs()}

    def sure(self, real: Logits, fake: Logits) -> Logits:
        return (fake - real).sign()


@LOSSES.register("ebgan", "energies with a margin", "Zhao et al. 2017, 1609.03126")
@dataclass(frozen=True)
class EnergyBased(Loss):
    """L_D = E real + E relu(m - fake); L_G = E fake.

    Attributes:
        margin: m, the energy beyond which fakes are left alone; energies are mean |x - D(x)|.
    """

    margin: float = 0.5

    energies, logits = True, False

    def discriminator(self, real: Logits, fake: Logits, memory: Memory) -> Tensor:
        return real.mean() + F.relu(self.margin - fake).mean()

    def generator(self, real: Logits | None, fake: Logits, memory: Memory) -> Tensor:
        return fake.mean()

    def sure(self, real: Logits, fake: Logits) -> Logits:
        return (fake - real).sign()


def make_loss(name: str, options: Mapping[str, float]) -> Loss:
    """Return the loss ``name`` with ``options``; raise a :class:`UserError` for unknown ones."""
    return with_options(LOSSES[name](), options, "loss_options")
