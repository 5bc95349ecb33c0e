"""Style mixing: a conditional StyleGAN2 that mixes images of different classes, such as genres.

The coarse styles of one image and the fine styles of another give a third (Karras et al. 2019,
1812.04948, section 3.1). In the explorer, users choose the images to mix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from growgan.data import ImageSet
from growgan.metrics.functional.classification_accuracy_score import fit_classifier
from growgan.nets.presets import PRESETS
from growgan.run.run import Run
from growgan.tasks.base import TASKS, Task
from growgan.tasks.evaluation import (
    require_labels,
    save_task_sheet,
    to_channels_first,
)

IMAGES_PER_MIX_AXIS = 10  # rows and columns of a grid of mixes
NUM_MIX_GRIDS = 8
NUM_TEST_SAMPLES = 1_000
MAX_SHEET_COLUMNS = 8  # images of each class, and rows and columns of the mixes, on the sheet
STYLE_MIXING_PROB = 0.9  # Karras et al. 2019, section 3.1

ImageArrayNCHW = UInt8[np.ndarray, "n c h w"]


@dataclass(frozen=True)
class StyleMixingTask(Task):
    """``style`` takes images with labels."""

    sheet_caption: ClassVar[str] = (
        "First one row of generated images for each class. Below, mixes: each row has the coarse"
        " styles of one image, each column the fine styles of another."
    )

    def prepare(
        self, task_name: str, variant: str, data: ImageSet, target: ImageSet | None = None
    ) -> ImageSet:
        require_labels(task_name, data)
        return super().prepare(task_name, variant, data, target)

    def evaluate(
        self, run: Run, variant: str, train_set: ImageSet, test_set: ImageSet
    ) -> dict[str, float]:
        """Return how often a classifier of real images recognizes the classes of generated ones.

        "class accuracy" is the accuracy on samples, and "class accuracy, real" on test images. For
        mixes of two classes, the metrics are the fractions that the classifier assigns to the class
        of the coarse styles and to that of the fine styles.
        """
        labeled_train, labeled_test = train_set.labeled_subset(), test_set.labeled_subset()
        assert labeled_train.labels is not None
        classify = fit_classifier(
            (np.array(labeled_train.images), labeled_train.labels),
            len(train_set.classes),
            seed=run.best.settings.seed,
        )
        samples = to_channels_first(run.best.sample(NUM_TEST_SAMPLES))
        sample_labels = run.best.sample_labels(NUM_TEST_SAMPLES)
        num_mixed = 2 * IMAGES_PER_MIX_AXIS
        row_indices, column_indices = (
            range(IMAGES_PER_MIX_AXIS),
            range(IMAGES_PER_MIX_AXIS, num_mixed),
        )
        grids = [
            run.best.style_mix(row_indices, column_indices, count=num_mixed, seed=seed)
            for seed in range(NUM_MIX_GRIDS)
        ]
        mixes = to_channels_first(np.concatenate(grids))
        labels = run.best.sample_labels(num_mixed)
        assert labels is not None
        row_labels, column_labels = labels[:IMAGES_PER_MIX_AXIS], labels[IMAGES_PER_MIX_AXIS:]
        coarse_labels = np.tile(np.repeat(row_labels, IMAGES_PER_MIX_AXIS), NUM_MIX_GRIDS)
        fine_labels = np.tile(column_labels, IMAGES_PER_MIX_AXIS * NUM_MIX_GRIDS)
        differ, predicted = coarse_labels != fine_labels, classify(mixes)
        _save_mix_sheet(run, samples, mixes[: IMAGES_PER_MIX_AXIS**2])
        real_predicted = classify(np.array(labeled_test.images))
        return {
            "class accuracy": float((classify(samples) == sample_labels).mean()),
            "class accuracy, real": float((real_predicted == labeled_test.labels).mean()),
            "style mixes, class of coarse styles": float(
                (predicted == coarse_labels)[differ].mean()
            ),
            "style mixes, class of fine styles": float((predicted == fine_labels)[differ].mean()),
        }


def _save_mix_sheet(run: Run, generated: ImageArrayNCHW, mix_grid: ImageArrayNCHW) -> None:
    """Save a sheet with a row of images for each class, and part of a grid of mixes."""
    num_classes = len(run.best.classes)
    end = MAX_SHEET_COLUMNS * num_classes
    class_rows = [generated[k:end:num_classes] for k in range(num_classes)]
    grid = mix_grid.reshape(IMAGES_PER_MIX_AXIS, IMAGES_PER_MIX_AXIS, *mix_grid.shape[1:])
    save_task_sheet(run, [*class_rows, *grid[:MAX_SHEET_COLUMNS, :MAX_SHEET_COLUMNS]])


def _conditional_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **overrides,
        "preset": "stylegan2",
        "conditioning": "projection",
        "network": {**overrides["network"], "style_mixing_prob": STYLE_MIXING_PROB},
    }


STYLEGAN2_PRESET = PRESETS["stylegan2"]

TASKS.register(
    "style", "Mix the styles of images of different classes.", "Karras et al. 2020, 1912.04958"
)(
    StyleMixingTask(
        published_overrides={
            **_conditional_overrides(STYLEGAN2_PRESET.published_settings),
            "policy": "fixed",
        },
        small_overrides=_conditional_overrides(STYLEGAN2_PRESET.small_settings),
    )
)
