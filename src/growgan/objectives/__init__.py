"""Losses see logits, regularisers see a step; none knows the others, so they combine freely."""

from growgan.objectives import consistency, penalties, tricks, weights
from growgan.objectives.augment import AUGMENTATIONS, Augmentation, make_augmentation
from growgan.objectives.losses import LOSSES, Loss, make_loss
from growgan.objectives.objective import Objective, make_objective
from growgan.objectives.regulariser import REGULARISERS, Regulariser, make_regulariser, paired
from growgan.objectives.step import Memory, Step

__all__ = [
    "AUGMENTATIONS",
    "LOSSES",
    "REGULARISERS",
    "Augmentation",
    "Loss",
    "Memory",
    "Objective",
    "Regulariser",
    "Step",
    "consistency",
    "make_augmentation",
    "make_loss",
    "make_objective",
    "make_regulariser",
    "paired",
    "penalties",
    "tricks",
    "weights",
]
