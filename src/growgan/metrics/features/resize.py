"""Resize images to the input size of a network. The filter can change an FID by a fifth."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from growgan.registry import Registry

ResizeFn = Callable[[Tensor, int], Tensor]

RESIZE_METHODS: Registry[ResizeFn] = Registry("resize")

_CLEAN_FID_PAPER = "Parmar et al. 2022, 2104.11222"


@RESIZE_METHODS.register(
    "clean", "Antialiased bicubic resizing without rounding, as in Clean-FID.", _CLEAN_FID_PAPER
)
def resize_clean(images: Tensor, size: int) -> Tensor:
    """Return ``images`` [N, C, H, W] in [0, 255] as float32 [N, C, size, size].

    The filter is Pillow's antialiased bicubic (a = -1/2) on each channel, matched to 0.01 of 255.
    The result is clamped, as in Clean-FID's code since 2022, and not rounded. Clean-FID: arXiv
    2104.11222, section 3.
    """
    resized = F.interpolate(
        images.float(), size=(size, size), mode="bicubic", align_corners=False, antialias=True
    )
    return resized.clamp(0, 255)


@RESIZE_METHODS.register(
    "legacy-pytorch",
    "Bilinear resizing without antialiasing, as in pytorch-fid.",
    _CLEAN_FID_PAPER,
)
def resize_legacy_pytorch(images: Tensor, size: int) -> Tensor:
    """Return ``images`` [N, C, H, W] as float32 [N, C, size, size]; downscaling causes aliasing."""
    return F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False)


@RESIZE_METHODS.register(
    "legacy-tensorflow",
    "Resizing inside the Inception network, as in the original FID code.",
    _CLEAN_FID_PAPER,
)
def resize_legacy_tensorflow(images: Tensor, size: int) -> Tensor:
    """Return ``images`` [N, C, H, W] unchanged: the network itself resizes them to ``size``."""
    return images
