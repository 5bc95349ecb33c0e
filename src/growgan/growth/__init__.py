"""Growth: which layer, how large, on which player, decided from how training goes."""

from growgan.growth.model import Model
from growgan.growth.run import Run, grow

__all__ = ["Model", "Run", "grow"]
