"""Presets: published architectures with their settings."""

from growgan.nets.presets import dcgan, gan, pggan, r3gan, resnet, stylegan2, stylegan3
from growgan.nets.presets.base import PRESETS, Preset

__all__ = [
    "PRESETS",
    "Preset",
    "dcgan",
    "gan",
    "pggan",
    "r3gan",
    "resnet",
    "stylegan2",
    "stylegan3",
]
