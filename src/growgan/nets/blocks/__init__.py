"""Layer types of G and D."""

from growgan.nets.blocks import alias_free, attention, basic, grouped, preactivation, style
from growgan.nets.blocks.base import BLOCKS, Block

__all__ = [
    "BLOCKS",
    "Block",
    "alias_free",
    "attention",
    "basic",
    "grouped",
    "preactivation",
    "style",
]
