"""pix2pix (Isola et al. 2017, 1611.07004): images from images, learnt from pairs.

G is a U-Net whose given image enters at every resolution, D has a logit for each place of its base
grid, and G's loss has 100 times the mean absolute error beside D's verdict. That grid is an eighth
as fine as the images, and each of its places sees 54 pixels, where the paper's see 70 of 256: of a
small image that is all of it, and a larger ``stack.base`` makes the patches smaller.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from growgan.errors import UserError
from growgan.tasks.base import TASKS, Images, Pairs, gray

EDGE = 0.25  # of the largest gradient there can be, from which on a pixel is an edge
INK = 0.5  # of the way between an image's darkest and lightest
MOST = 20  # colours that a map of classes may have


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
    """Return what is drawn, white on black: a threshold of the image, and no truth beside it.

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
    """Return the mean over classes of intersection over union, where the truth is a map of classes.

    Each of its colours is a class, up to ``MOST``; a pixel that is made is of the nearest one.
    """
    base = 256 ** torch.arange(truth.shape[1]).view(1, -1, 1, 1)
    flat, wanted = torch.unique((truth.long() * base).sum(1), return_inverse=True)
    if len(flat) > MOST:
        return {}
    colours = (flat[:, None] // base.flatten()) % 256  # [K, C]
    least, found = None, torch.zeros_like(wanted)
    for k, colour in enumerate(colours):
        away = (made.int() - colour.int().view(1, -1, 1, 1)).square().sum(1)
        nearer = torch.ones_like(found, dtype=torch.bool) if least is None else away < least
        least = away if least is None else torch.minimum(least, away)
        found[nearer] = k
    count = len(flat)
    shared = torch.bincount(wanted[wanted == found], minlength=count)
    union = torch.bincount(wanted.flatten(), minlength=count)
    union = union + torch.bincount(found.flatten(), minlength=count) - shared
    return {"miou": float((shared / union).mean())}


# As published, but for batches of one and dropout in place of latents: here z is given to the
# innermost features, and batch norm sees several images.
PUBLISHED: dict[str, Any] = {
    "conditioning": "image",
    "score": {"kind": "pairs"},
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
        "discriminator_taper": 1,
        "deviation_group": 0,
        "rate": "normal",
    },
}
# Two layers a resolution, since what is given is added behind the first, and as wide at the image
# end as anywhere: details are copied there. Small batches, since steps count more than images. A D
# that R1 holds as firmly as without pairs has no say beside L1.
SMALL: dict[str, Any] = {
    "conditioning": "image",
    "score": {"kind": "pairs"},
    "regularisers": {"r1": {"weight": 2e-4}, "l1": {"weight": 10.0}},
    "batch": 16,
    "stack": {
        "patches": True,
        "latent": 16,
        "deviation_group": 0,
        "convolutions": 2,
        "width": 16,
        "discriminator_width": 16,
        "taper": 8,
    },
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
