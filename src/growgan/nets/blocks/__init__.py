"""Kinds of layer."""

from growgan.nets.blocks import aliasfree, attention, grouped, plain, preactivation, style
from growgan.nets.blocks.base import BLOCKS, Block

__all__ = [
    "BLOCKS",
    "Block",
    "aliasfree",
    "attention",
    "grouped",
    "plain",
    "preactivation",
    "style",
]
