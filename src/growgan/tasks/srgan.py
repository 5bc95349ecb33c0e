"""Super-resolution (SRGAN: Ledig et al. 2017, 1609.04802): fine images from coarse ones.

The coarse image is given at the fine one's size, by bicubic interpolation. Latents stand for what
it does not say, so that several fine images can be drawn from one.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from growgan.errors import UserError
from growgan.tasks.base import TASKS, Images, Pairs, likeness
from growgan.tasks.pix2pix import PUBLISHED, SMALL

LEAST = 8  # pixels of the coarse image's smaller side


def coarse(images: Images, factor: int) -> tuple[Images, Images]:
    """Return images averaged over ``factor`` pixels and brought back by bicubics, and the images.

    Raises:
        UserError: the sides are no multiples of ``factor``, or too small.
    """
    height, width = images.shape[2:]
    if height % factor or width % factor or min(height, width) < LEAST * factor:
        raise UserError(
            f"images of {height}x{width} cannot be made {factor} times as coarse: their sides must "
            f"be multiples of {factor}, {LEAST * factor} pixels at least"
        )
    small = F.avg_pool2d(images.float(), factor)
    back = F.interpolate(small, scale_factor=factor, mode="bicubic", align_corners=False)
    return back.round().clamp(0, 255).to(torch.uint8), images


def bicubic(given: Images, made: Images, truth: Images) -> dict[str, float]:
    """Return how near the given image itself is: what is gained must be seen against it."""
    return {f"bicubic {name}": value for name, value in likeness(given, truth).items()}


TASKS.register("srgan", "fine images from coarse ones", "Ledig et al. 2017, 1609.04802")(
    Pairs(
        {**PUBLISHED, "stack": {**PUBLISHED["stack"], "kind": "residual"}},
        SMALL,
        {f"{factor}": partial(coarse, factor=factor) for factor in (2, 4, 8)},
        {"bicubic": bicubic},
    )
)
