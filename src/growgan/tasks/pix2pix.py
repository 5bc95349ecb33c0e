"""pix2pix (Isola et al. 2017, 1611.07004): images from images, learnt from pairs.

G is a U-Net whose given image enters at every resolution, D judges patches of the image beside the
given one, and G's loss has 100 times the mean absolute error beside D's verdict.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from growgan.errors import UserError
from growgan.tasks.base import TASKS, Images, Pairs, gray

EDGE = 0.25  # of the largest gradient there can be, from which on a pixel is an edge
INK = 0.5  # of the way between an image's darkest and lightest


def colourise(images: Images) -> tuple[Images, Images]:
    """Return the lumas of images, and the images."""
    if images.shape[1] < 3:
        raise UserError("images without colours cannot teach how to colour")
    return gray(images), images


def from_edges(images: Images) -> tuple[Images, Images]:
    """Return where images change (Sobel's filters), black on white, and the images."""
    luma = gray(images).float() / 255
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).view(1, 1, 3, 3) / 4
    padded = F.pad(luma, (1, 1, 1, 1), mode="replicate")
    x, y = F.conv2d(padded, across), F.conv2d(padded, across.transpose(2, 3))
    drawn = torch.hypot(x, y) > EDGE
    return (~drawn).to(torch.uint8) * 255, images


def mask(images: Images) -> Images:
    """Return what is drawn, white on black: where an image is nearer to its middle than its rim.

    The rim is the mean of the outermost pixels; what differs from it by more than half of the
    largest difference is drawn.
    """
    luma = gray(images).float()
    inside = torch.ones_like(luma[:1], dtype=torch.bool)
    inside[..., 1:-1, 1:-1] = False
    rim = luma[:, inside[0]].mean(1).view(-1, 1, 1, 1)
    away = (luma - rim).abs()
    most = away.amax((1, 2, 3), keepdim=True).clamp(min=1)
    return (away > INK * most).to(torch.uint8) * 255


def from_mask(images: Images) -> tuple[Images, Images]:
    """Return where something is drawn, and the images."""
    return mask(images), images


def to_mask(images: Images) -> tuple[Images, Images]:
    """Return the images, and where something is drawn in them."""
    return images, mask(images)


def overlap(given: Images, made: Images, truth: Images) -> dict[str, float]:
    """Return the mean over both classes of intersection over union, where the truth is a mask."""
    if not bool(((truth == 0) | (truth == 255)).all()):
        return {}
    a, b = made[:, :1] > 127, truth[:, :1] > 127
    ratios = [float((x & y).sum() / (x | y).sum().clamp(min=1)) for x, y in ((a, b), (~a, ~b))]
    return {"miou": sum(ratios) / 2}


# As published, but for batches of one and dropout in place of latents: here z is given to the
# innermost features, and batch norm sees several images.
PUBLISHED: dict[str, Any] = {
    "conditioning": "image",
    "policy": "fixed",
    "loss": "non-saturating",
    "regularisers": {"l1": {"weight": 100.0}},
    "batch": 16,
    "anneal": 0.5,
    "optimiser": {"lr": 2e-4, "beta1": 0.5, "beta2": 0.999, "epsilon": 1e-8, "decay": None},
    "stack": {
        "patches": True,
        "kind": "strided",
        "norm": "batch",
        "discriminator_norm": "batch",
        "latent": 64,
        "width": 512,
        "taper": 1,
        "deviation_group": 0,
        "rate": "normal",
    },
}
SMALL: dict[str, Any] = {
    "conditioning": "image",
    "regularisers": {"r1": {}, "l1": {"weight": 10.0}},
    "stack": {"patches": True, "latent": 16, "deviation_group": 0, "taper": 4},
}

TASKS.register("pix2pix", "images from images, from pairs", "Isola et al. 2017, 1611.07004")(
    Pairs(
        PUBLISHED,
        SMALL,
        {"colour": colourise, "edges": from_edges, "mask": from_mask, "segment": to_mask},
        {"overlap": overlap},
        folders=True,
    )
)
