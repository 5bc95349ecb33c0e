"""Growth: which layer, how large, on which player, decided from how training goes."""

from growgan.growth.run import Model, Run, grow

__all__ = ["Model", "Run", "grow"]
