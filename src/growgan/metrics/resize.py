"""How images are brought to a network's input size: the filter alone moves an FID by a fifth."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from growgan.registry import Registry

Resize = Callable[[Tensor, int], Tensor]

RESIZES: Registry[Resize] = Registry("resize")

_PAPER = "Parmar et al. 2022, 2104.11222"


@RESIZES.register("clean", "antialiased bicubic on floats, as Clean-FID's", _PAPER)
def clean(images: Tensor, size: int) -> Tensor:
    """Return ``images`` [N, C, H, W] in [0, 255] as float32 [N, C, size, size], antialiased.

    Pillow's bicubic (a = -1/2) on each channel as floats, to 0.01 of 255; clamped, as Clean-FID's
    code does since 2022, and not rounded. Clean-FID: arXiv 2104.11222, section 3.
    """
    resized = F.interpolate(
        images.float(), size=(size, size), mode="bicubic", align_corners=False, antialias=True
    )
    return resized.clamp(0, 255)


@RESIZES.register("legacy-pytorch", "bilinear, not antialiased, as pytorch-fid's", _PAPER)
def legacy_pytorch(images: Tensor, size: int) -> Tensor:
    """Return ``images`` [N, C, H, W] as float32 [N, C, size, size], with aliases where shrunk."""
    return F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False)


@RESIZES.register("legacy-tensorflow", "the network's own, as in the first FID code", _PAPER)
def legacy_tensorflow(images: Tensor, size: int) -> Tensor:
    """Return ``images`` [N, C, H, W] as they are: the network resizes them itself to ``size``."""
    return images
