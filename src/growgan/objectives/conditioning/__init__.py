"""What is made of labels."""

from growgan.objectives.conditioning import classifying, contrasting, judging
from growgan.objectives.conditioning.base import (
    CONDITIONINGS,
    Conditioning,
    make_conditioning,
)

__all__ = [
    "CONDITIONINGS",
    "Conditioning",
    "classifying",
    "contrasting",
    "judging",
    "make_conditioning",
]
