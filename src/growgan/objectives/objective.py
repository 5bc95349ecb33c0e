"""The whole objective: an adversarial loss and any set of regularisers, as named terms.

The names of the terms are the names in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from growgan.objectives.losses import LOSSES
from growgan.objectives.regularisers import REGULARISERS, Step


@dataclass(frozen=True)
class Objective:
    """What each player minimises at each step.

    Args:
        loss: a name in ``LOSSES``.
        regularisers: name in ``REGULARISERS`` to (weight, every); a weight of None is the
            registered one at the resolution that D judges.
    """

    loss: str
    regularisers: Mapping[str, tuple[float | None, int]]

    @property
    def paired(self) -> bool:
        """Whether G's loss needs the logits of reals."""
        return LOSSES[self.loss].paired

    def discriminator(self, step: Step, index: int) -> dict[str, Tensor]:
        """Return D's terms at step ``index``; their sum is its loss."""
        loss = LOSSES[self.loss]
        terms = {"loss_discriminator": loss.discriminator(step.real_logits, step.fake_logits)}
        for name, (weight, every) in self.regularisers.items():
            # A lazy term acts every k-th step, k times as strong (Karras et al. 2020, section 4).
            if weight != 0 and index % every == 0:
                usual = REGULARISERS[name]
                size = (step.real.shape[2], step.real.shape[3])
                strength = usual.weight_at(size) if weight is None else weight
                terms[name] = usual.term(step) * (strength * every)
        return terms

    def generator(self, real_logits: Tensor | None, fake_logits: Tensor) -> dict[str, Tensor]:
        """Return G's terms; their sum is its loss."""
        return {"loss_generator": LOSSES[self.loss].generator(real_logits, fake_logits)}
