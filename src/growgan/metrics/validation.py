"""Checks of features and images that several metrics share."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_ABS_VALUE = 1e75  # the fourth power of this is still a finite float64


def check_matrix(name: str, features: Tensor, min_rows: int = 1) -> None:
    """Raise ValueError unless ``features`` is [N, d] with N >= ``min_rows``."""
    if features.ndim != 2 or len(features) < min_rows:
        raise ValueError(
            f"{name} must be [N, d] with N >= {min_rows}, but got shape {list(features.shape)}"
        )


def check_same_width(min_rows: int = 1, **feature_sets: Tensor) -> None:
    """Raise ValueError unless each named set is [N, d], N >= ``min_rows``, with the same d."""
    for name, features in feature_sets.items():
        check_matrix(name, features, min_rows)
    widths = [features.shape[1] for features in feature_sets.values()]
    if len(set(widths)) > 1:
        names = ", ".join(feature_sets)
        raise ValueError(f"{names} must have the same number of features d, but got d = {widths}")


def check_finite(name: str, values: Tensor) -> None:
    """Raise ValueError if ``values`` holds NaN, infinity, or a number too large to square."""
    if not bool(torch.isfinite(values).all()):
        num_bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{name} must be finite, but holds {num_bad} NaN or infinite values")
    if values.numel() and float(values.abs().max()) > MAX_ABS_VALUE:
        raise ValueError(
            f"{name} must be at most {MAX_ABS_VALUE:g} in absolute value, or sums of squares"
            " overflow"
        )


def to_finite_float64(name: str, values: Tensor) -> Tensor:
    """Return ``values`` as float64; raise ValueError if they hold NaN or infinity."""
    check_finite(name, values)
    # Apple GPUs do not support float64.
    return values.cpu().double() if values.device.type == "mps" else values.double()


def check_uint8_images(name: str, images: Tensor | NDArray[Any]) -> None:
    """Raise ValueError unless ``images`` is uint8 [N, C, H, W] and not empty."""
    dtype = str(images.dtype).removeprefix("torch.")
    if dtype != "uint8" or images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{name} must be uint8 [N, C, H, W] and not empty, but got {dtype} {list(images.shape)}"
        )
