"""Super-resolution (SRGAN: Ledig et al. 2017, 1609.04802).

The low-resolution image enters G at the full resolution, upscaled by bicubic interpolation. The
latent represents the detail that is missing, so G can generate several images from one source.

The training is that of pix2pix and differs from the paper. In the paper G reads the small image and
no latent, the content loss compares VGG features with an adversarial weight of 1e-3, and D does not
see the source image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from growgan.data import ImageSet, default_cache
from growgan.errors import UserError
from growgan.metrics.features.own import load_or_train_own_extractor
from growgan.metrics.features.own_network import MIN_TRAINING_IMAGES
from growgan.metrics.functional.frechet_distance import frechet_distance_of_features
from growgan.run.run import Run
from growgan.tasks.base import TASKS
from growgan.tasks.evaluation import (
    ImagesNCHW,
    generate_from_source,
    image_similarity,
    labels_to_generate,
    random_subset,
    recognition_accuracy,
    save_task_sheet,
    to_num_channels,
)
from growgan.tasks.paired import MAX_TEST_PAIRS, NUM_SHEET_COLUMNS, PairedTranslationTask
from growgan.tasks.pix2pix import PIX2PIX_PUBLISHED, PIX2PIX_SMALL

MIN_LOW_RES_SIDE_PIXELS = 8  # shorter side of the low-resolution image
SAMPLES_PER_SOURCE = 4  # samples from each source image, on the sheet and for their std
UPSCALING_FACTORS = (2, 4, 8)


@dataclass(frozen=True)
class SuperResolutionTask(PairedTranslationTask):
    """``srgan:FACTOR``. The evaluation adds set metrics and several samples per source image."""

    sheet_caption: ClassVar[str] = (
        "Rows: source images, images generated from four different latents, target images."
    )

    def evaluate(
        self, run: Run, variant: str, train_set: ImageSet, test_set: ImageSet
    ) -> dict[str, float]:
        """Return the metrics of generated images and of bicubic interpolation.

        They are the similarity to the target images, the Fréchet distance and, with labels, the
        recognition accuracy. "std of samples" is the standard deviation of a pixel over several
        samples from one source image, in 1/255, averaged over pixels and images.
        """
        test_pairs = random_subset(test_set, MAX_TEST_PAIRS)
        assert test_pairs.source_images is not None
        source = torch.from_numpy(np.array(test_pairs.source_images))
        metrics, generated = self.compare_to_targets(run.best, test_pairs)
        image_sets = {"generated": generated, "bicubic": source}
        metrics |= recognition_accuracy(train_set, test_pairs, image_sets)
        metrics |= frechet_distances(train_set, test_pairs, {"": generated, "bicubic ": source})
        repeated_source = source[:NUM_SHEET_COLUMNS].repeat(SAMPLES_PER_SOURCE, 1, 1, 1)
        labels = labels_to_generate(run.best, test_pairs)
        if labels is not None:
            labels = labels[:NUM_SHEET_COLUMNS] * SAMPLES_PER_SOURCE
        samples = generate_from_source(run.best, repeated_source, labels).view(
            SAMPLES_PER_SOURCE, -1, *generated.shape[1:]
        )
        metrics["std of samples"] = float(samples.float().std(0).mean())
        rows = [
            source[:NUM_SHEET_COLUMNS].numpy(),
            *samples.numpy(),
            np.array(test_pairs.images[:NUM_SHEET_COLUMNS]),
        ]
        save_task_sheet(run, [to_num_channels(row, test_pairs.channels) for row in rows])
        return metrics


def frechet_distances(
    train_set: ImageSet, test_set: ImageSet, image_sets: Mapping[str, ImagesNCHW]
) -> dict[str, float]:
    """Return the Fréchet distance of each set of images from the test images.

    The features are learned from the training set. The result is empty if the test set is too
    small. The keys are the names of the sets, which end in a space or are empty, and ``"fd"``.
    """
    if len(test_set) < MIN_TRAINING_IMAGES:
        return {}
    extractor = load_or_train_own_extractor(
        np.array(train_set.images),
        train_set.labels,
        fingerprint=train_set.fingerprint,
        cache_dir=default_cache(),
    )
    real_features = extractor(torch.from_numpy(np.array(test_set.images)))
    return {
        f"{name}fd": frechet_distance_of_features(extractor(images), real_features)
        for name, images in image_sets.items()
    }


def low_to_high_res_pair(images: ImagesNCHW, factor: int) -> tuple[ImagesNCHW, ImagesNCHW]:
    """Return the images after area downscaling and bicubic upscaling, and the images.

    Raises:
        UserError: The sides are not multiples of ``factor``, or too small.
    """
    height, width = images.shape[2:]
    min_side = MIN_LOW_RES_SIDE_PIXELS * factor
    if height % factor or width % factor or min(height, width) < min_side:
        raise UserError(
            f"task 'srgan:{factor}' needs images whose sides are multiples of {factor} pixels and"
            f" at least {min_side}, but these are {height}x{width}"
        )
    small = F.avg_pool2d(images.float(), factor)
    upscaled = F.interpolate(small, scale_factor=factor, mode="bicubic", align_corners=False)
    return upscaled.round().clamp(0, 255).to(torch.uint8), images


def bicubic_baseline(
    source: ImagesNCHW, generated: ImagesNCHW, target: ImagesNCHW
) -> dict[str, float]:
    """Return the similarity of the bicubically upscaled source images to the target images."""
    return {f"bicubic {name}": value for name, value in image_similarity(source, target).items()}


TASKS.register("srgan", "Upscale images.", "Ledig et al. 2017, 1609.04802")(
    SuperResolutionTask(
        published_overrides={
            **PIX2PIX_PUBLISHED,
            "network": {**PIX2PIX_PUBLISHED["network"], "block": "residual"},
        },
        small_overrides=PIX2PIX_SMALL,
        pair_functions={
            f"{factor}": partial(low_to_high_res_pair, factor=factor)
            for factor in UPSCALING_FACTORS
        },
        metrics=(bicubic_baseline,),
    )
)
