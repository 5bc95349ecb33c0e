"""What a metric asks of features and images before it trusts them."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 1e75  # the fourth power of which is still a float64


def checked(features: Tensor) -> Tensor:
    """Return ``features`` as finite float64 [N, d], N >= 1."""
    return finite("features", matrix("features", features))


def matrix(name: str, features: Tensor, least: int = 1) -> Tensor:
    """Return ``features`` as they are, if they are [N, d] with N >= ``least``."""
    if features.ndim != 2 or len(features) < least:
        shape = list(features.shape)
        raise ValueError(f"{name} must be [N, d] with N of at least {least}, but is {shape}")
    return features


def pair(fake: Tensor, real: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Return ``fake`` and ``real`` as they are, if both are [N, d] of one d, N >= ``least``."""
    fake, real = matrix("fake", fake, least), matrix("real", real, least)
    if fake.shape[1] != real.shape[1]:
        shapes = f"{list(fake.shape)} and {list(real.shape)}"
        raise ValueError(f"fake and real must have features of one length, but are {shapes}")
    return fake, real


def finite(name: str, values: Tensor) -> Tensor:
    """Return ``values`` in float64; raise ValueError for NaN or infinity."""
    check_finite(name, values)
    # Apple's GPUs know no float64.
    return values.cpu().double() if values.device.type == "mps" else values.double()


def check_finite(name: str, values: Tensor) -> None:
    """Raise ValueError where ``values`` hold NaN or infinity, or what would overflow."""
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{name} must be finite, but holds {bad} NaN or infinite values")
    if values.numel() and float(values.abs().max()) > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST:g}, or sums of squares overflow")


def uint8_images(images: Tensor) -> Tensor:
    """Return ``images`` if they are a non-empty uint8 [N, C, H, W]; else raise ValueError."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
        got = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"images must be torch.uint8 [N, C, H, W], but are {got}")
    return images
