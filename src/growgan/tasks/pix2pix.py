"""pix2pix: image-to-image translation from pairs (Isola et al. 2017, 1611.07004).

G is a U-Net that reads the source image at every resolution. D is a patch discriminator. The loss
of G adds the mean absolute error to the adversarial loss, with a weight of 100.

D outputs a logit for each cell of its base grid, which is 8 times coarser than the images. A logit
sees 54x54 pixels; in the paper it sees 70x70 of 256x256. In small images that is the whole image. A
larger ``network.base_grid`` makes the patches smaller.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from growgan.errors import UserError
from growgan.tasks.base import TASKS
from growgan.tasks.evaluation import ImagesNCHW, to_grayscale
from growgan.tasks.paired import PairedTranslationTask

EDGE_THRESHOLD_FRACTION = 0.25  # of the largest possible gradient; edges are above
FOREGROUND_THRESHOLD_FRACTION = 0.5  # of an image's largest difference from its border
MAX_SEGMENTATION_CLASSES = 20  # distinct colors in the target images


def gray_to_color_pair(images: ImagesNCHW) -> tuple[ImagesNCHW, ImagesNCHW]:
    """Return the luma of the images, and the images."""
    if images.shape[1] < 3:
        raise UserError(
            f"task 'pix2pix:color' needs color images, but these have {images.shape[1]} channel(s)"
        )
    return to_grayscale(images), images


def edges_to_image_pair(images: ImagesNCHW) -> tuple[ImagesNCHW, ImagesNCHW]:
    """Return the edges (Sobel filter), black on white, and the images."""
    luma = to_grayscale(images).float() / 255
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).view(1, 1, 3, 3) / 4
    padded = F.pad(luma, (1, 1, 1, 1), mode="replicate")
    dx, dy = F.conv2d(padded, sobel), F.conv2d(padded, sobel.transpose(2, 3))
    is_edge = torch.hypot(dx, dy) > EDGE_THRESHOLD_FRACTION
    return (~is_edge).to(torch.uint8) * 255, images


def foreground_mask(images: ImagesNCHW) -> ImagesNCHW:
    """Return the foreground of each image, white on black, found by a threshold.

    A pixel is foreground if its difference from the mean of the border pixels exceeds half of the
    image's largest difference.
    """
    luma = to_grayscale(images).float()
    is_border = torch.ones_like(luma[:1], dtype=torch.bool)
    is_border[..., 1:-1, 1:-1] = False
    border_mean = luma[:, is_border[0]].mean(1).view(-1, 1, 1, 1)
    difference = (luma - border_mean).abs()
    largest = difference.amax((1, 2, 3), keepdim=True).clamp(min=1)
    return (difference > FOREGROUND_THRESHOLD_FRACTION * largest).to(torch.uint8) * 255


def mask_to_image_pair(images: ImagesNCHW) -> tuple[ImagesNCHW, ImagesNCHW]:
    """Return the foreground masks, and the images."""
    return foreground_mask(images), images


def image_to_mask_pair(images: ImagesNCHW) -> tuple[ImagesNCHW, ImagesNCHW]:
    """Return the images, and their foreground masks."""
    return images, foreground_mask(images)


def mean_iou(source: ImagesNCHW, generated: ImagesNCHW, target: ImagesNCHW) -> dict[str, float]:
    """Return the mean intersection over union over classes, or nothing if there are no classes.

    Each color of the target images is a class. Generated pixels belong to the nearest color. More
    than ``MAX_SEGMENTATION_CLASSES`` colors are not taken for classes.
    """
    base = 256 ** torch.arange(target.shape[1]).view(1, -1, 1, 1)
    color_codes, target_classes = torch.unique((target.long() * base).sum(1), return_inverse=True)
    num_classes = len(color_codes)
    if num_classes > MAX_SEGMENTATION_CLASSES:
        return {}
    colors = (color_codes[:, None] // base.flatten()) % 256  # [K, C]
    nearest_distance, generated_classes = None, torch.zeros_like(target_classes)
    for k, color in enumerate(colors):
        distance = (generated.int() - color.int().view(1, -1, 1, 1)).square().sum(1)
        if nearest_distance is None:
            nearest_distance = distance
            continue
        generated_classes[distance < nearest_distance] = k
        nearest_distance = torch.minimum(nearest_distance, distance)
    hits = target_classes[target_classes == generated_classes]
    intersection = torch.bincount(hits, minlength=num_classes)
    union = torch.bincount(target_classes.flatten(), minlength=num_classes)
    union += torch.bincount(generated_classes.flatten(), minlength=num_classes) - intersection
    return {"miou": float((intersection / union).mean())}


# Two differences from the paper: batches hold 16 images instead of 1, so that batch norm sees
# several images, and a latent enters the innermost features instead of dropout.
PIX2PIX_PUBLISHED: dict[str, Any] = {
    "conditioning": "source-concat",
    "score": {"kind": "energy-score"},
    "policy": "fixed",
    "loss": "non-saturating",
    "regularizers": {"l1": {"weight": 100.0}},
    "batch_size": 16,
    "lr_cooldown": 0.5,
    "optimizer": {"lr": 2e-4, "beta1": 0.5, "beta2": 0.999, "eps": 1e-8, "lr_decay_images": None},
    "network": {
        "patch_discriminator": True,
        "block": "strided",
        "norm": "batch",
        "discriminator_norm": "batch",
        "latent_dim": 64,
        "width": 512,
        "full_width_scale": 1,
        "discriminator_full_width_scale": 1,
        "mbstd_group_size": 0,
        "init": "normal",
        "parametrization": "none",
        "lr_scaling": "none",
    },
}
# Two layers per resolution, because the source image is added after the first one. The full width
# up to the image resolution, because details are copied there. Small batches, because the number of
# steps matters more than the number of images. A small weight of R1, because with the usual weight
# D has almost no effect next to the L1 loss.
PIX2PIX_SMALL: dict[str, Any] = {
    "conditioning": "source-concat",
    "score": {"kind": "energy-score"},
    "regularizers": {"r1": {"gamma": 2e-4}, "l1": {"weight": 10.0}},
    "batch_size": 16,
    "network": {
        "patch_discriminator": True,
        "latent_dim": 16,
        "mbstd_group_size": 0,
        "layers_per_resolution": 2,
        "width": 16,
        "discriminator_width": 16,
        "full_width_scale": 8,
    },
}

TASKS.register("pix2pix", "Translate images, trained on pairs.", "Isola et al. 2017, 1611.07004")(
    PairedTranslationTask(
        published_overrides=PIX2PIX_PUBLISHED,
        small_overrides=PIX2PIX_SMALL,
        pair_functions={
            "color": gray_to_color_pair,
            "edges": edges_to_image_pair,
            "mask": mask_to_image_pair,
            "segment": image_to_mask_pair,
        },
        metrics=(mean_iou,),
        accepts_target_set=True,
    )
)
