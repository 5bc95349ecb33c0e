"""Super-resolution (SRGAN: Ledig et al. 2017, 1609.04802): fine images from coarse ones.

The coarse image is given at the fine one's size, by bicubic interpolation. Latents stand for what
it does not say, so that several fine images can be drawn from one. It is trained as pix2pix is, and
not as in the paper, whose G is given small images and no latents, whose content loss is of VGG's
features with an adversarial weight of 1e-3, and whose D does not see the coarse image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from growgan.data import ImageSet, default_cache
from growgan.errors import UserError
from growgan.growth.run import Run
from growgan.metrics.distances import frechet_of_samples
from growgan.metrics.domain import LEAST_IMAGES
from growgan.metrics.features import domain_extractor
from growgan.tasks.base import (
    MEASURED,
    SHOWN,
    TASKS,
    Images,
    Pairs,
    draw,
    labels_for,
    likeness,
    made_of,
    recognised,
    some,
    visible,
)
from growgan.tasks.pix2pix import PUBLISHED, SMALL

LEAST = 8  # pixels of the coarse image's smaller side
TRIES = 4  # fine images of one coarse image, on the sheet and for their deviation


@dataclass(frozen=True)
class Finer(Pairs):
    """``srgan:FACTOR``; more figures than of other pairs, for several fine images are right."""

    sheet: ClassVar[str] = (
        "Rows: what is given, what is made of it by four latents, and what it should be."
    )

    def show(self, run: Run, kind: str, seen: ImageSet, new: ImageSet) -> dict[str, float]:
        """Return how near fine images are to the true ones, one by one and as a set (FD).

        And, where there are labels, how many a classifier knows; the same of the bicubic ones. Of
        several images of one coarse image, the mean deviation of a pixel, in 1/255.
        """
        rows = some(new, MEASURED)
        assert rows.given is not None
        given = torch.from_numpy(np.array(rows.given))
        figures, made = self.compared(run.best, rows)
        figures |= recognised(seen, rows, {"": made, "bicubic ": given})
        figures |= distances(seen, rows, {"": made, "bicubic ": given})
        first, labels = given[:SHOWN].repeat(TRIES, 1, 1, 1), labels_for(run.best, rows)
        again = None if labels is None else labels[:SHOWN] * TRIES
        tries = made_of(run.best, first, again).view(TRIES, -1, *made.shape[1:])
        figures["deviation of samples"] = float(tries.float().std(0).mean())
        lines = [given[:SHOWN].numpy(), *tries.numpy(), np.array(rows.images[:SHOWN])]
        draw(run, [visible(line, rows.channels) for line in lines])
        return figures


def distances(seen: ImageSet, rows: ImageSet, sets: dict[str, Images]) -> dict[str, float]:
    """Return the Fréchet distance of each set from true images, by features learnt from others.

    Nothing is said of sets too small for it.
    """
    if len(rows) < LEAST_IMAGES:
        return {}
    extractor = domain_extractor(
        np.array(seen.images), seen.labels, fingerprint=seen.fingerprint, cache=default_cache()
    )

    def features(images: Images) -> Tensor:
        return extractor(images)

    true = features(torch.from_numpy(np.array(rows.images)))
    return {f"{name}fd": frechet_of_samples(features(each), true) for name, each in sets.items()}


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
    Finer(
        {**PUBLISHED, "stack": {**PUBLISHED["stack"], "kind": "residual"}},
        SMALL,
        {f"{factor}": partial(coarse, factor=factor) for factor in (2, 4, 8)},
        {"bicubic": bicubic},
    )
)
