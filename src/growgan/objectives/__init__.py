"""Losses, regularizers, augmentations and conditionings.

A loss sees logits, a conditioning sees features and labels, and a regularizer sees a training
step. None depends on another, so they can be combined.
"""

# Importing these modules registers their regularizers.
from growgan.objectives import (  # noqa: F401
    consistency,
    feature_regularizers,
    gradient_penalties,
    logit_regularizers,
    path_length,
    reconstruction,
    sampling_tricks,
    weight_regularizers,
)
from growgan.objectives.augmentation import (
    AUGMENTATIONS,
    DiscriminatorAugmentation,
    make_augmentation,
)
from growgan.objectives.losses import LOSSES, Loss, make_loss
from growgan.objectives.objective import Objective, make_objective
from growgan.objectives.regularizer import (
    REGULARIZERS,
    Regularizer,
    make_regularizer,
    target_based_regularizers,
)
from growgan.objectives.step_context import ObjectiveState, StepContext

__all__ = [
    "AUGMENTATIONS",
    "LOSSES",
    "REGULARIZERS",
    "DiscriminatorAugmentation",
    "Loss",
    "Objective",
    "ObjectiveState",
    "Regularizer",
    "StepContext",
    "make_augmentation",
    "make_loss",
    "make_objective",
    "make_regularizer",
    "target_based_regularizers",
]
