"""Kinds of layer."""

from growgan.nets.blocks import attention, grouped, plain, preactivation, style
from growgan.nets.blocks.base import BLOCKS, Block

__all__ = ["BLOCKS", "Block", "attention", "grouped", "plain", "preactivation", "style"]
