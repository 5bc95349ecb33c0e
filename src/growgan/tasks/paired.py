"""Tasks with pairs of a source image and a target image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from growgan.data import ImageSet
from growgan.data.folder import is_image_file_name, iter_files
from growgan.errors import UserError, unknown_name_error
from growgan.files import hash_json
from growgan.run.run import Run
from growgan.sampling.trained_generator import TrainedGenerator
from growgan.tasks.base import Task
from growgan.tasks.evaluation import (
    IMAGES_PER_CHUNK,
    ImagesNCHW,
    generate_from_source,
    image_similarity,
    labels_to_generate,
    random_subset,
    recognition_accuracy,
    save_task_sheet,
    to_num_channels,
)

MAX_TEST_PAIRS = 2_000  # held-out pairs to evaluate on
NUM_SHEET_COLUMNS = 16  # images in each row of the sheet

PairFunction = Callable[[ImagesNCHW], tuple[ImagesNCHW, ImagesNCHW]]
PairMetric = Callable[[ImagesNCHW, ImagesNCHW, ImagesNCHW], dict[str, float]]


@dataclass(frozen=True)
class PairedTranslationTask(Task):
    """Image-to-image translation, trained on pairs.

    Attributes:
        pair_functions: For each variant, a function from images uint8 [N, C, H, W] to pairs
            (source, target).
        metrics: Further metrics of (source, generated, target), uint8 [N, C, H, W] each.
        accepts_target_set: Whether users may give source and target images as two sets.
    """

    pair_functions: Mapping[str, PairFunction] = field(default_factory=dict)
    metrics: tuple[PairMetric, ...] = ()
    accepts_target_set: bool = False

    sheet_caption: ClassVar[str] = "Rows: source images, generated images, target images."

    def prepare(
        self, task_name: str, variant: str, data: ImageSet, target: ImageSet | None = None
    ) -> ImageSet:
        if target is not None:
            return self._pair_with_targets(task_name, variant, data, target)
        pair_function = self.pair_function(variant, task_name)
        sources, targets = [], []
        for start in range(0, len(data), IMAGES_PER_CHUNK):
            chunk = torch.from_numpy(np.array(data.images[start : start + IMAGES_PER_CHUNK]))
            source_chunk, target_chunk = pair_function(chunk)
            sources.append(source_chunk.numpy())
            targets.append(target_chunk.numpy())
        return replace(
            data,
            images=np.concatenate(targets),
            source_images=np.concatenate(sources),
            fingerprint=hash_json(data.fingerprint, f"{task_name}:{variant}"),
        )

    def pair_function(self, variant: str, task_name: str) -> PairFunction:
        """Return the pair function of a variant, or the only one if the variant is empty.

        Raises:
            UserError: The variant does not exist, or is missing although there are several.
        """
        if variant in self.pair_functions:
            return self.pair_functions[variant]
        if not variant and len(self.pair_functions) == 1:
            return next(iter(self.pair_functions.values()))
        if not variant:
            choices = ", ".join(f"{task_name}:{name}" for name in self.pair_functions)
            raise UserError(f"task '{task_name}' needs a variant: {choices}")
        raise unknown_name_error(f"variant of task '{task_name}'", variant, self.pair_functions)

    def _pair_with_targets(
        self, task_name: str, variant: str, data: ImageSet, target: ImageSet
    ) -> ImageSet:
        if variant:
            self.pair_function(variant, task_name)
        if variant or not self.accepts_target_set:
            task_string = f"{task_name}:{variant}" if variant else task_name
            raise UserError(
                f"task '{task_string}' makes its pairs from one set of images, but got two:"
                f" '{data.name}' and '{target.name}'"
            )
        check_paired_sets(data, target)
        fingerprint = hash_json(data.fingerprint, target.fingerprint)
        return replace(target, source_images=data.images, fingerprint=fingerprint, duplicates=())

    def evaluate(
        self, run: Run, variant: str, train_set: ImageSet, test_set: ImageSet
    ) -> dict[str, float]:
        """Return the similarity of generated and target images, and the recognition accuracy.

        The recognition accuracy needs labels.
        """
        test_pairs = random_subset(test_set, MAX_TEST_PAIRS)
        metrics, generated = self.compare_to_targets(run.best, test_pairs)
        metrics |= recognition_accuracy(train_set, test_pairs, {"generated": generated})
        assert test_pairs.source_images is not None
        rows = [
            np.array(test_pairs.source_images[:NUM_SHEET_COLUMNS]),
            generated[:NUM_SHEET_COLUMNS].numpy(),
            np.array(test_pairs.images[:NUM_SHEET_COLUMNS]),
        ]
        save_task_sheet(run, [to_num_channels(row, test_pairs.channels) for row in rows])
        return metrics

    def compare_to_targets(
        self, model: TrainedGenerator, test_set: ImageSet
    ) -> tuple[dict[str, float], ImagesNCHW]:
        """Generate an image from each source image; return the metrics and the images, uint8."""
        assert test_set.source_images is not None
        source = torch.from_numpy(np.array(test_set.source_images))
        target = torch.from_numpy(np.array(test_set.images))
        generated = generate_from_source(model, source, labels_to_generate(model, test_set))
        metrics = image_similarity(generated, target)
        for pair_metric in self.metrics:
            metrics |= pair_metric(source, generated, target)
        return metrics, generated


def check_paired_sets(data: ImageSet, target: ImageSet) -> None:
    """Raise a UserError unless the rows of two sets form pairs.

    Images are sorted by file name. If both sets are folders that share file names (without the
    extension), then all names must agree. Folders without any common name are paired in order.
    """
    for image_set in (data, target):
        if image_set.broken:
            raise UserError(
                f"'{image_set.name}' has {len(image_set.broken):,} broken files, so its images"
                f" cannot be paired: {image_set.broken[0]}; remove these files and their partners"
            )
    if len(data) != len(target) or data.resolution != target.resolution:
        sizes = [
            f"{len(image_set):,} images of {image_set.resolution[0]}x{image_set.resolution[1]}"
            for image_set in (data, target)
        ]
        raise UserError(
            f"'{data.name}' and '{target.name}' cannot be paired: they have {sizes[0]} and"
            f" {sizes[1]}"
        )
    source_names, target_names = file_stems(data), file_stems(target)
    if source_names is None or target_names is None or not set(source_names) & set(target_names):
        return
    for source_name, target_name in zip(source_names, target_names, strict=True):
        if source_name != target_name:
            raise UserError(
                f"'{data.name}' and '{target.name}' cannot be paired: '{source_name}' would be"
                f" paired with '{target_name}'"
            )


def file_stems(data: ImageSet) -> list[str] | None:
    """Return the names of a folder's image files without extensions, or None if unknown."""
    root = Path(data.source)
    if not data.source or not root.is_dir():
        return None
    names = sorted(name for name, _ in iter_files(root) if is_image_file_name(name))
    return [name.rpartition(".")[0] for name in names] if len(names) == len(data) else None
