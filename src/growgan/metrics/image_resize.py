"""Resize images by area averaging."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from growgan.data.images import ImageSet
from growgan.files import hash_json
from growgan.metrics.image_batches import iterate_batches


def resize_images(images: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Resize float ``images`` [N, C, H, W] to ``resolution`` (h, w).

    Downscaling averages areas; upscaling is bilinear.
    """
    height, width = images.shape[2:]
    if (height, width) == resolution:
        return images
    if resolution[0] <= height and resolution[1] <= width:
        return F.interpolate(images, size=resolution, mode="area")
    one_side_shrinks = resolution[0] < height or resolution[1] < width
    return F.interpolate(
        images, size=resolution, mode="bilinear", align_corners=False, antialias=one_side_shrinks
    )


def downscale_uint8(images: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Return uint8 ``images`` [N, C, H, W], area-averaged down to ``resolution`` and rounded."""
    return resize_images(images.float(), resolution).round().to(torch.uint8)


def downscale_image_set(image_set: ImageSet, resolution: tuple[int, int]) -> ImageSet:
    """Return the images, and their source images if any, area-averaged down to ``resolution``.

    The new fingerprint depends on the resolution; a set without a fingerprint keeps none.
    """
    if image_set.resolution == resolution:
        return image_set

    def downscale(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        batches = [downscale_uint8(batch, resolution).numpy() for batch in iterate_batches(images)]
        return np.concatenate(batches)

    fingerprint = image_set.fingerprint and hash_json(image_set.fingerprint, "area", *resolution)
    source_images = image_set.source_images
    return replace(
        image_set,
        images=downscale(image_set.images),
        source_images=None if source_images is None else downscale(source_images),
        fingerprint=fingerprint,
    )
