"""The ends of networks: stem and image head of G, image head and epilogue of D."""

from growgan.nets.ends import basis, dcgan, dense, fourier, progressive, resnet, style
from growgan.nets.ends.base import (
    ENDS,
    DiscriminatorEpilogue,
    FromImage,
    NetworkEnds,
    Stem,
    ToImage,
)

__all__ = [
    "ENDS",
    "DiscriminatorEpilogue",
    "FromImage",
    "NetworkEnds",
    "Stem",
    "ToImage",
    "basis",
    "dcgan",
    "dense",
    "fourier",
    "progressive",
    "resnet",
    "style",
]
