"""Base class and registry of conditionings.

A conditioning decides how D's logits use a label (``logit_conditioning``), which linear heads D
has besides its logit (``linear_heads``), and which terms both losses gain. It sees features and
labels. The blocks of G decide how G uses a label (:mod:`growgan.nets.ends`).

Notation: φ are D's features, y is the one-hot label, CE is the cross entropy. A row whose label is
all zeros has no label; terms that need one leave it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from growgan.config import LogitConditioningKind
from growgan.errors import UserError
from growgan.nets.conditioning import one_hot
from growgan.objectives.options import OptionGroup, with_options
from growgan.objectives.step_context import StepContext
from growgan.registry import Registry

Vectors = Float[Tensor, "n d"]


class Conditioning(OptionGroup):
    """The use of labels. Users set the fields as ``conditioning_options.NAME``.

    Attributes:
        logit_conditioning: How D's logits use the label; see
            :class:`growgan.nets.networks.Discriminator`.
        needs_labels: Whether the images must have labels.
        generator_conditioned: Whether G receives the label.
        needs_source: Whether G maps source images to images.
        discriminator_sees_source: Whether D receives the source image, if there is one.
    """

    label_noise: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Fraction of the labels that are wrong. G's labels are then corrupted in the"
        " same way before D sees them, so that G learns the correct ones (RCGAN, Thekumparampil et"
        " al. 2018, 1811.03205).",
    )

    logit_conditioning: ClassVar[LogitConditioningKind] = "none"
    needs_labels: ClassVar[bool] = True
    generator_conditioned: ClassVar[bool] = True
    needs_source: ClassVar[bool] = False
    discriminator_sees_source: ClassVar[bool] = True

    def linear_heads(self, num_classes: int) -> dict[str, int]:
        """Return names and output sizes of the linear heads that D needs besides its logit."""
        return {}

    @property
    def class_embedding_dim(self) -> int:
        """Length of the learned embedding of each class in D, or 0 for none."""
        return 0

    def code_sizes(self) -> tuple[int, int]:
        """Return the number of categories and of continuous codes that replace labels."""
        return 0, 0

    def transform_generator_input(self, step: StepContext) -> Tensor:
        """Return G's input with labels that may have been corrupted to those that D sees.

        All wrong labels are equally likely, so the corruption is the same in both directions.
        """
        labels = step.labels
        if not self.label_noise or labels.shape[1] < 2:
            return step.generator_input
        num_samples, num_classes = labels.shape
        uniform = step.sharded_rng.uniform(2 * num_samples).view(2, num_samples)
        offset = 1 + (uniform[0] * (num_classes - 1)).long()
        other_class = (labels.argmax(1) + offset) % num_classes
        is_wrong = (uniform[1] < self.label_noise) & (labels.sum(1) > 0)
        corrected = torch.where(is_wrong[:, None], one_hot(other_class, num_classes), labels)
        latent_dim = (
            step.generator_input.shape[1] - num_classes - step.source.numel() // num_samples
        )
        return torch.cat([step.generator_input[:, :latent_dim], corrected, step.source], 1)

    def discriminator_terms(self, step: StepContext) -> dict[str, Tensor]:
        """Return weighted terms of D's loss by name."""
        return {}

    def generator_terms(self, step: StepContext) -> dict[str, Tensor]:
        """Return weighted terms of G's loss by name."""
        return {}


CONDITIONINGS: Registry[type[Conditioning]] = Registry("conditioning")


def linear_head_output(step: StepContext, head_name: str, features: Vectors) -> Tensor:
    """Return the output of D's linear head ``head_name`` for ``features``, float32."""
    values: Tensor = step.discriminator.linear_heads[head_name](features)
    return values.float()


def cross_entropy_per_sample(logits: Vectors, targets: Vectors) -> tuple[Tensor, Tensor]:
    """Return each row's cross entropy, and 1 for rows with a label and 0 for the others.

    The cross entropy of a row without a label is 0.
    """
    is_labeled = targets.sum(1)
    return -(F.log_softmax(logits.float(), 1) * targets).sum(1), is_labeled


def cross_entropy(logits: Vectors, targets: Vectors) -> Tensor:
    """Return the mean cross entropy of the rows that have a label."""
    return mean_over_labeled(*cross_entropy_per_sample(logits, targets))


def mean_over_labeled(values: Float[Tensor, " n"], is_labeled: Float[Tensor, " n"]) -> Tensor:
    """Return the mean of ``values`` over labeled rows; the other values must be 0.

    Each shard of a batch divides by its own number of labels. With partly labeled data the mean
    over shards therefore differs slightly from the mean over the whole batch.
    """
    return values.sum() / is_labeled.sum().clamp(min=1)


def make_conditioning(name: str, options: Mapping[str, Any]) -> Conditioning:
    """Return the conditioning ``name`` with ``options``.

    Raises:
        UserError: The name or an option is unknown, or a value is not valid.
    """
    conditioning = with_options(CONDITIONINGS[name](), options, "conditioning_options")
    if conditioning.label_noise and not conditioning.needs_labels:
        raise UserError(
            "setting 'conditioning_options.label_noise' has no effect: conditioning"
            f" '{name}' uses no labels"
        )
    if conditioning.label_noise and not conditioning.generator_conditioned:
        raise UserError(
            "setting 'conditioning_options.label_noise' has no effect: conditioning"
            f" '{name}' gives G no labels"
        )
    return conditioning
