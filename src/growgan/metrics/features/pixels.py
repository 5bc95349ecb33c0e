"""Pixels as features."""

from __future__ import annotations

import torch
from torch import Tensor

from growgan.metrics.image_batches import IMAGES_PER_BATCH
from growgan.metrics.image_resize import resize_images
from growgan.metrics.validation import check_uint8_images


class PixelExtractor:
    """The pixels in [0, 1], resized to ``size`` x ``size``: d = C * size²."""

    def __init__(self, size: int = 8) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, but got {size}")
        self.size = size
        self.fingerprint = f"pixels-{size}"

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of uint8 ``images`` [N, C, H, W], float32 [N, d]."""
        check_uint8_images("images", images)
        return self.extract_float(images)

    def extract_float(self, images: Tensor) -> Tensor:
        """Return the features of ``images`` in [0, 255], of any dtype."""
        batches = [
            resize_images(batch.float(), (self.size, self.size)) / 255
            for batch in torch.split(images, IMAGES_PER_BATCH)
        ]
        return torch.cat(batches).flatten(1)
