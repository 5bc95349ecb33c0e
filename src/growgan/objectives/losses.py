"""Adversarial losses, which are functions of D's logits alone.

Notation: real = D(x) and fake = D(G(z)) are logits, float ``[N]``; softplus(t) = log(1 + exp(t)).
For the energy-based losses D is an autoencoder, and real and fake are its reconstruction errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from growgan.objectives.options import Fraction, NonNegativeFloat, OptionGroup, with_options
from growgan.objectives.step_context import ObjectiveState
from growgan.registry import Registry

Logits = Float[Tensor, " n"]


class Loss(OptionGroup):
    """The losses of D and G. The fields are options; users set them as ``loss_options.NAME``.

    Attributes:
        needs_real_logits: Whether G's loss needs the logits of real images as well.
        uses_energy: Whether D is an autoencoder and its reconstruction errors replace logits.
        uses_logits: Whether D outputs logits; the opposite of ``uses_energy``.
        is_cross_entropy: Whether D's loss is a cross entropy, whose targets can be smoothed.
        ranks_real_above_fake: Whether an optimal D rates real images above fakes.
    """

    needs_real_logits: ClassVar[bool] = False
    uses_energy: ClassVar[bool] = False
    uses_logits: ClassVar[bool] = True
    is_cross_entropy: ClassVar[bool] = False
    ranks_real_above_fake: ClassVar[bool] = True

    def discriminator_loss(
        self, real_logits: Logits, fake_logits: Logits, state: ObjectiveState
    ) -> Float[Tensor, ""]:
        """Return D's loss, a mean over the batch."""
        raise NotImplementedError

    def generator_loss(
        self, real_logits: Logits | None, fake_logits: Logits, state: ObjectiveState
    ) -> Float[Tensor, ""]:
        """Return G's loss, a mean over the batch."""
        raise NotImplementedError

    def update_state(
        self, real_logits: Logits, fake_logits: Logits, state: ObjectiveState, num_images: int
    ) -> dict[str, Tensor]:
        """Update ``state`` after a step of D and return values to log, by name.

        ``num_images`` is the batch size. The logits may be those of one shard of the batch.
        """
        return {}

    def real_sign(self, real_logits: Logits, fake_logits: Logits) -> Logits:
        """Return 1 for each real image that D classifies as real and -1 for the others, ``[N]``."""
        return real_logits.sign()


LOSSES: Registry[type[Loss]] = Registry("loss")


@LOSSES.register(
    "minimax",
    "Cross entropy, which D minimizes and G maximizes.",
    "Goodfellow et al. 2014, 1406.2661",
)
class Minimax(Loss):
    """L_D = E softplus(-real) + E softplus(fake); L_G = -E softplus(fake)."""

    is_cross_entropy = True

    def discriminator_loss(
        self, real_logits: Logits, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()

    def generator_loss(
        self, real_logits: Logits | None, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return -F.softplus(fake_logits).mean()


@LOSSES.register(
    "non-saturating",
    "Cross entropy; G minimizes -log D of its fakes.",
    "Goodfellow et al. 2014, 1406.2661",
)
class NonSaturating(Minimax):
    """L_D = E softplus(-real) + E softplus(fake); L_G = E softplus(-fake)."""

    def generator_loss(
        self, real_logits: Logits | None, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return F.softplus(-fake_logits).mean()


@LOSSES.register(
    "least-squares", "Squared error of logits to targets 1 and 0.", "Mao et al. 2017, 1611.04076"
)
class LeastSquares(Loss):
    """L_D = ½ E (real - 1)² + ½ E fake²; L_G = ½ E (fake - 1)²."""

    def real_sign(self, real_logits: Logits, fake_logits: Logits) -> Logits:
        return (real_logits - 0.5).sign()

    def discriminator_loss(
        self, real_logits: Logits, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return 0.5 * ((real_logits - 1).square().mean() + fake_logits.square().mean())

    def generator_loss(
        self, real_logits: Logits | None, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return 0.5 * (fake_logits - 1).square().mean()


@LOSSES.register(
    "wasserstein",
    "Difference of mean critic outputs (WGAN); needs a gradient penalty or clipping.",
    "Arjovsky et al. 2017, 1701.07875",
)
class Wasserstein(Loss):
    """L_D = E fake - E real; L_G = -E fake."""

    def real_sign(self, real_logits: Logits, fake_logits: Logits) -> Logits:
        return (real_logits - fake_logits).sign()

    def discriminator_loss(
        self, real_logits: Logits, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return fake_logits.mean() - real_logits.mean()

    def generator_loss(
        self, real_logits: Logits | None, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return -fake_logits.mean()


@LOSSES.register(
    "hinge",
    "Hinge loss with a margin of 1 on both sides.",
    "Lim & Ye 2017, 1705.02894; Miyato et al. 2018, 1802.05957",
)
class Hinge(Loss):
    """L_D = E relu(1 - real) + E relu(1 + fake); L_G = -E fake."""

    def discriminator_loss(
        self, real_logits: Logits, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()

    def generator_loss(
        self, real_logits: Logits | None, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return -fake_logits.mean()


@LOSSES.register(
    "positive-unlabeled",
    "Hinge loss that treats a fraction of the fakes as real.",
    "Guo et al. 2020, 2011.13684",
)
class PositiveUnlabeled(Hinge):
    """L_D = (1 + π) E relu(1 - real) + relu(E relu(1 + fake) - π E relu(1 + real)).

    L_G = -E fake. D treats the fakes as unlabeled data: a fraction π of them is as good as real
    (Guo et al. 2020). π may grow as G improves (for classes: Lee et al. 2021, 2112.10930). At
    π = 1, D no longer penalizes fakes that may be real.
    """

    prior: Fraction = Field(
        0.1, description="Initial fraction π of fakes that are as good as real; 1/n for n classes."
    )
    ramp_images: NonNegativeFloat = Field(
        0.0,
        description="Number of training images over which π grows to 1. If 0, π is constant.",
    )

    def current_prior(self, real_logits: Logits, state: ObjectiveState) -> Float[Tensor, ""]:
        """Return π, a scalar on the device of ``real_logits``."""
        num_images = state.setdefault("pu.images", torch.zeros((), device=real_logits.device))
        if self.ramp_images > 0:
            progress = num_images / self.ramp_images
        else:
            progress = torch.zeros_like(num_images)
        return (self.prior + (1 - self.prior) * progress).clamp(max=1)

    def discriminator_loss(
        self, real_logits: Logits, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        prior = self.current_prior(real_logits, state)
        negative = F.relu(1 + fake_logits).mean() - prior * F.relu(1 + real_logits).mean()
        return (1 + prior) * F.relu(1 - real_logits).mean() + F.relu(negative)

    def update_state(
        self, real_logits: Logits, fake_logits: Logits, state: ObjectiveState, num_images: int
    ) -> dict[str, Tensor]:
        """Count the images and return π."""
        prior = self.current_prior(real_logits, state)
        state["pu.images"].add_(num_images)
        return {"pu_prior": prior}


@LOSSES.register(
    "relativistic",
    "Cross entropy of the difference between a real and a fake logit (RpGAN).",
    "Jolicoeur-Martineau 2018, 1807.00734",
)
class Relativistic(Loss):
    """L_D = E softplus(-(real - fake)); L_G = E softplus(-(fake - real)), paired row by row."""

    needs_real_logits = True

    def real_sign(self, real_logits: Logits, fake_logits: Logits) -> Logits:
        return (real_logits - fake_logits).sign()

    def discriminator_loss(
        self, real_logits: Logits, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return F.softplus(fake_logits - real_logits).mean()

    def generator_loss(
        self, real_logits: Logits | None, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        if real_logits is None:
            raise TypeError("the relativistic loss of G needs real_logits, but got None")
        return F.softplus(real_logits - fake_logits).mean()


@LOSSES.register(
    "began",
    "Reconstruction errors of an autoencoder, kept in a fixed ratio (BEGAN).",
    "Berthelot et al. 2017, 1703.10717",
)
class BoundaryEquilibrium(Loss):
    """L_D = E real - k E fake; L_G = E fake; k integrates λ_k (γ E real - E fake)."""

    gamma: Fraction = Field(
        0.5,
        description="Target ratio γ of the fakes' error to the real images' error. A higher ratio"
        " gives more diversity.",
    )
    k_learning_rate: NonNegativeFloat = Field(1e-3, description="Step size λ_k of the control k.")

    uses_energy = True
    uses_logits = False
    ranks_real_above_fake = False  # In equilibrium, fakes have γ times the error of real images.

    def discriminator_loss(
        self, real_logits: Logits, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        k = state.setdefault("began.k", torch.zeros((), device=real_logits.device))
        return real_logits.mean() - k * fake_logits.mean()

    def generator_loss(
        self, real_logits: Logits | None, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return fake_logits.mean()

    def update_state(
        self, real_logits: Logits, fake_logits: Logits, state: ObjectiveState, num_images: int
    ) -> dict[str, Tensor]:
        """Update k; return it and the convergence measure E real + |γ E real - E fake|."""
        balance = (self.gamma * real_logits.mean() - fake_logits.mean()).detach()
        k = state.setdefault("began.k", torch.zeros((), device=real_logits.device))
        k.add_(self.k_learning_rate * balance).clamp_(0, 1)
        return {
            "began_k": k.clone(),
            "began_convergence": real_logits.detach().mean() + balance.abs(),
        }

    def real_sign(self, real_logits: Logits, fake_logits: Logits) -> Logits:
        return (fake_logits - real_logits).sign()


@LOSSES.register(
    "ebgan",
    "Reconstruction errors of an autoencoder with a margin (EBGAN).",
    "Zhao et al. 2017, 1609.03126",
)
class EnergyBased(Loss):
    """L_D = E real + E relu(m - fake); L_G = E fake. The error is mean |x - D(x)|."""

    margin: NonNegativeFloat = Field(
        0.5, description="Margin m: D does not push the error of fakes beyond it."
    )

    uses_energy = True
    uses_logits = False

    def discriminator_loss(
        self, real_logits: Logits, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return real_logits.mean() + F.relu(self.margin - fake_logits).mean()

    def generator_loss(
        self, real_logits: Logits | None, fake_logits: Logits, state: ObjectiveState
    ) -> Tensor:
        return fake_logits.mean()

    def real_sign(self, real_logits: Logits, fake_logits: Logits) -> Logits:
        return (fake_logits - real_logits).sign()


def make_loss(name: str, options: Mapping[str, float]) -> Loss:
    """Return the loss ``name`` with ``options``.

    Raises:
        UserError: The name or an option is unknown, or a value is not valid.
    """
    return with_options(LOSSES[name](), options, "loss_options")
