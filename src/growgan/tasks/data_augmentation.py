"""Data augmentation: generated images added to a small training set of a classifier.

A conditional GAN is trained on the same labeled images as the classifier. The metrics show whether
its images teach the classifier anything that the real ones do not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.files import hash_json
from growgan.metrics.functional.classification_accuracy_score import (
    LabeledImages,
    classifier_accuracy,
)
from growgan.run.run import Run
from growgan.tasks.base import TASKS, Task
from growgan.tasks.evaluation import (
    require_labels,
    sample_rows_per_class,
    save_task_sheet,
    to_channels_first,
)

MAX_GENERATED_PER_CLASS = 2_000
MAX_GENERATED_PER_REAL_IMAGE = 20
NUM_SHEET_IMAGES_PER_CLASS = 8


class DataAugmentationTask(Task):
    """``augment:N`` trains on N labeled images per class and on no others."""

    needs_only_labels: ClassVar[bool] = True
    sheet_caption: ClassVar[str] = "Each row shows generated images of one class."

    def make_training_set(self, train_split: ImageSet, variant: str, seed: int) -> ImageSet:
        """Return N random images of each class.

        Raises:
            UserError: There are no labels, or N is not a number from 1 to the number of images in
                the rarest class.
        """
        _, rarest_count = require_labels("augment", train_split)
        if not variant.isdecimal() or not 0 < int(variant) <= rarest_count:
            raise UserError(
                f"task 'augment' needs the number of images per class, 1 to {rarest_count:,}, as in"
                f" augment:100, but got '{variant}'"
            )
        rows = np.sort(sample_rows_per_class(train_split, int(variant), seed))
        fingerprint = hash_json(train_split.fingerprint, f"augment:{variant}:{seed}")
        return replace(train_split.subset(rows), fingerprint=fingerprint)

    def evaluate(
        self, run: Run, variant: str, train_set: ImageSet, test_set: ImageSet
    ) -> dict[str, float]:
        """Return a classifier's accuracy after training on real images, generated images, or both.

        All three classifiers are trained for the same number of steps.
        """
        assert train_set.labels is not None
        num_classes = len(train_set.classes)
        num_generated = num_classes * min(
            MAX_GENERATED_PER_CLASS, MAX_GENERATED_PER_REAL_IMAGE * len(train_set) // num_classes
        )
        generated = to_channels_first(run.best.sample(num_generated, seed=1))
        generated_labels = run.best.sample_labels(num_generated)
        assert generated_labels is not None
        labeled_test = test_set.labeled_subset()
        assert labeled_test.labels is not None
        training_sets = balanced_training_sets(
            (np.array(train_set.images), train_set.labels), (generated, generated_labels)
        )
        # The labels of the samples cycle through the classes.
        end = NUM_SHEET_IMAGES_PER_CLASS * num_classes
        save_task_sheet(run, [generated[k:end:num_classes] for k in range(num_classes)])
        held_out = np.array(labeled_test.images), labeled_test.labels
        return {
            f"accuracy, {name}": classifier_accuracy(
                training_set, held_out, num_classes, seed=run.best.settings.seed
            )
            for name, training_set in training_sets.items()
        }


def balanced_training_sets(
    real: LabeledImages, generated: LabeledImages
) -> dict[str, LabeledImages]:
    """Return training sets of equal size: real images, generated images, and both.

    Images are repeated as needed. "real and generated" holds as many of the one as of the other.
    """
    half_size = max(len(real[0]), len(generated[0]))
    halves_by_name = {
        "real": (real, real),
        "generated": (generated, generated),
        "real and generated": (real, generated),
    }
    training_sets = {}
    for name, halves in halves_by_name.items():
        rows = [np.resize(np.arange(len(images)), half_size) for images, _ in halves]
        training_sets[name] = (
            np.concatenate([images[row] for (images, _), row in zip(halves, rows, strict=True)]),
            np.concatenate([labels[row] for (_, labels), row in zip(halves, rows, strict=True)]),
        )
    return training_sets


TASKS.register(
    "augment",
    "Augment a small training set with generated images.",
    "Antoniou et al. 2017, 1711.04340",
)(
    DataAugmentationTask(
        published_overrides={"preset": "biggan", "policy": "fixed", "conditioning": "projection"},
        small_overrides={"conditioning": "projection", "augmentation": "diffaugment"},
        example_variants=("10", "100", "1000"),
    )
)
