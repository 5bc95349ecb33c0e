"""Conditioning of D and of both losses on labels and source images."""

# Importing these modules registers their conditionings.
from growgan.objectives.conditioning import classification, contrastive  # noqa: F401
from growgan.objectives.conditioning.base import (
    CONDITIONINGS,
    Conditioning,
    make_conditioning,
)
from growgan.objectives.conditioning.logit_conditioning import LogitConditioning

__all__ = ["CONDITIONINGS", "Conditioning", "LogitConditioning", "make_conditioning"]
