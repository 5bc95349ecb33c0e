"""How D is told about labels, and what both players learn from them.

A conditioning says how D's logits use a label (``judging``), which further linear maps of its
features there are (``readouts``), and which terms both losses gain. It sees features and labels,
and never images. G's side is a matter of its stack (:mod:`growgan.nets.forms`).

Notation: φ features, y the label (one number a class), f the features of fakes, CE cross entropy.
A row whose label is all zeros has none, and is left out of terms that need one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from growgan.errors import UserError
from growgan.nets import spec as specs
from growgan.nets.wishes import one_hot
from growgan.objectives.options import Share, with_options
from growgan.objectives.step import Step
from growgan.registry import Registry

Rows = Float[Tensor, "n d"]


@dataclass(frozen=True)
class Conditioning:
    """What D does with labels; fields are options, by ``conditioning_options.NAME``.

    Attributes:
        judging: how logits use the label, see :class:`growgan.nets.players.Discriminator`.
        labelled: whether the images must have labels.
        told: whether G is called with a label.
        given: whether images must be made from images.
        beside: whether D sees an image beside the one that it was made from, where there is one.
        noise: share of the labels that are wrong, by chance: G's labels then pass the same
            channel before D sees them, so that G learns the right ones (RCGAN, Thekumparampil et
            al. 2018, 1811.03205).
    """

    noise: Share = 0.0

    judging: ClassVar[specs.Judging] = "plain"
    labelled: ClassVar[bool] = True
    told: ClassVar[bool] = True
    given: ClassVar[bool] = False
    beside: ClassVar[bool] = True

    def readouts(self, classes: int) -> dict[str, int]:
        """Return the names and sizes of the linear maps of features that it needs."""
        return {}

    @property
    def proxies(self) -> int:
        """Length of the learnt direction of each class; 0: it needs none."""
        return 0

    def codes(self) -> tuple[int, int]:
        """Return how many classes, and how many numbers, it makes up itself."""
        return 0, 0

    def latents(self, step: Step) -> Tensor:
        """Return the latents, in which labels are those that may have become the ones D sees.

        Where each label is as likely to become any other the channel is the same both ways.
        """
        y = step.labels
        if not self.noise or y.shape[1] < 2:
            return step.latents
        n, classes = y.shape
        drawn = step.chance.uniform(2 * n).view(2, n)
        turned = (y.argmax(1) + 1 + (drawn[0] * (classes - 1)).long()) % classes
        wrong = (drawn[1] < self.noise) & (y.sum(1) > 0)
        told = torch.where(wrong[:, None], one_hot(turned, classes), y)
        latent = step.latents.shape[1] - classes - step.given.numel() // n
        return torch.cat([step.latents[:, :latent], told, step.given], 1)

    def discriminator(self, step: Step) -> dict[str, Tensor]:
        """Return terms of D's loss, weighted."""
        return {}

    def generator(self, step: Step) -> dict[str, Tensor]:
        """Return terms of G's loss, weighted."""
        return {}


CONDITIONINGS: Registry[type[Conditioning]] = Registry("conditioning")


def scores(step: Step, name: str, features: Rows) -> Tensor:
    """Return what D's readout ``name`` makes of features, float32."""
    values: Tensor = step.discriminator.readouts[name](features)
    return values.float()


def cross_entropies(logits: Rows, y: Rows) -> tuple[Tensor, Tensor]:
    """Return each row's cross entropy, 0 where there is no label, and 1 where there is one."""
    known = y.sum(1)
    return -(F.log_softmax(logits.float(), 1) * y).sum(1), known


def cross_entropy(logits: Rows, y: Rows) -> Tensor:
    """Return the mean cross entropy of the rows that have a label."""
    return mean_of_known(*cross_entropies(logits, y))


def mean_of_known(each: Float[Tensor, " n"], known: Float[Tensor, " n"]) -> Tensor:
    """Return the mean of the rows that have a label; what the others hold must be 0.

    A batch that goes through in parts divides each by the number of its own: where some labels
    are unknown that is a mean of means, in which a row counts more the fewer its part has.
    """
    return each.sum() / known.sum().clamp(min=1)


def make_conditioning(name: str, options: Mapping[str, float]) -> Conditioning:
    """Return the conditioning ``name`` with ``options``.

    Raises:
        UserError: an unknown name or option, or a value out of range.
    """
    made = with_options(CONDITIONINGS[name](), options, "conditioning_options")
    if made.noise and not made.labelled:
        raise UserError(f"conditioning '{name}' uses no labels, so none of them can be wrong")
    if made.noise and not made.told:
        raise UserError(f"conditioning '{name}' tells G no labels, so none can be wrong there")
    if made.noise >= 1:
        raise UserError(f"setting 'conditioning_options.noise' must be below 1, not {made.noise}")
    return made
