"""The task interface: training data, settings, and an evaluation on images held out from training.

The data of a task are an ordinary :class:`~growgan.data.ImageSet`. A task is therefore trained,
grown, resumed, sampled and reported like any other run. In image-to-image tasks every image has a
source image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from growgan.config import Settings, make_settings, merge_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.execution.ray_cluster import RayCluster
from growgan.files import replace_file
from growgan.metrics.image_resize import downscale_image_set
from growgan.nets.presets import PRESETS
from growgan.registry import Registry
from growgan.report.page import write_report
from growgan.run.grow import grow
from growgan.run.run import Run
from growgan.search.budget import Budget
from growgan.search.policies import GrowthPolicy
from growgan.tasks.evaluation import TASK_FILE_STEM
from growgan.training.distributed import init_distributed
from growgan.training.progress import DisplayArg

TEST_FRACTION = 0.1  # fraction of the images or pairs held out for the evaluation


@dataclass(frozen=True)
class Task:
    """An application of GANs.

    Attributes:
        published_overrides: Settings of the paper. If they name a preset, they override the
            preset's published settings.
        small_overrides: Settings that differ from growgan's defaults for a network that grows.
        example_variants: Some of the variants that may follow the task's name, as in ``semi:100``.
        sheet_caption: Text that explains the rows of the task's sheet.
        needs_only_labels: Whether :meth:`make_training_set` reads only labels. Its errors are then
            raised before training starts.
    """

    published_overrides: Mapping[str, Any]
    small_overrides: Mapping[str, Any]
    example_variants: tuple[str, ...] = ()

    sheet_caption: ClassVar[str] = ""
    needs_only_labels: ClassVar[bool] = False

    def published_settings(self, min_side: int) -> Mapping[str, Any]:
        """Return the published settings for images whose shorter side is ``min_side`` pixels.

        With a patch discriminator, G has 64 channels at the image resolution, as the papers have
        at 256 pixels.
        """
        overrides = self.published_overrides
        if preset := overrides.get("preset"):
            overrides = merge_settings(PRESETS[preset].settings_for_side(min_side), overrides)
        if overrides.get("network", {}).get("patch_discriminator"):
            full_width_scale = max(1, min_side // 32)
            overrides = merge_settings(
                overrides, {"network": {"full_width_scale": full_width_scale}}
            )
        return overrides

    def small_settings(self, variant: str) -> Mapping[str, Any]:
        """Return the settings of a small network that grows."""
        return self.small_overrides

    def validate(self, variant: str, data: ImageSet) -> None:
        """Raise what :meth:`make_training_set` would raise, if it needs only labels."""
        if self.needs_only_labels:
            placeholder = replace(data, images=np.zeros((len(data), 1, 1, 1), np.uint8))
            train_split, _ = self.split(placeholder, variant)
            self.make_training_set(train_split, variant, 0)

    def prepare(
        self, task_name: str, variant: str, data: ImageSet, target: ImageSet | None = None
    ) -> ImageSet:
        """Return all images of the task; see :func:`prepare_task_data`."""
        if target is not None:
            raise UserError(
                f"task '{task_name}' takes one set of images, but got two: '{data.name}' and"
                f" '{target.name}'"
            )
        return data

    def split(self, data: ImageSet, variant: str = "") -> tuple[ImageSet, ImageSet]:
        """Return the images to train on and the images to evaluate on."""
        return data.split_held_out(TEST_FRACTION)

    def shape_placeholder(self, data: ImageSet, variant: str) -> ImageSet:
        """Return images of the shapes that :meth:`make_training_set` would return."""
        return data

    def make_training_set(self, train_split: ImageSet, variant: str, seed: int) -> ImageSet:
        """Return the images that G and D are trained on."""
        return train_split

    def evaluate(
        self, run: Run, variant: str, train_set: ImageSet, test_set: ImageSet
    ) -> dict[str, float]:
        """Evaluate a finished run, save a sheet in its gallery, and return the metrics by name.

        Args:
            run: The finished run.
            variant: Variant of the task.
            train_set: Images that G and D were trained on.
            test_set: Images held out from training.
        """
        raise NotImplementedError


TASKS: Registry[Task] = Registry("task")


def parse_task(task_string: str) -> tuple[Task, str, str]:
    """Return the task, its name and its variant of a string ``TASK[:VARIANT]``.

    Raises:
        UserError: No task has this name.
    """
    name, _, variant = task_string.partition(":")
    return TASKS[name], name, variant


def prepare_task_data(task: str, data: ImageSet, target: ImageSet | None = None) -> ImageSet:
    """Return the images of a task; in image-to-image tasks, each with its source image.

    Args:
        task: ``TASK[:VARIANT]``, like "pix2pix:edges".
        data: Images from which the task derives its pairs; or, with ``target``, the source images.
        target: Target images. For paired tasks, row k is the target of row k of ``data``.

    Raises:
        UserError: The task or variant does not exist, the two sets do not form pairs, or the task
            needs more images or labels.
    """
    task_object, name, variant = parse_task(task)
    prepared = task_object.prepare(name, variant, data, target)
    task_object.validate(variant, prepared)
    return prepared


def train_task(
    task: str,
    data: ImageSet,
    *,
    out: str | Path,
    settings: Settings | Mapping[str, Any] | None = None,
    use_published_settings: bool = False,
    policy: GrowthPolicy | str | None = None,
    budget: str | Budget | None = None,
    images: int | None = None,
    resume: bool = False,
    display: DisplayArg = None,
    cluster: RayCluster | None = None,
) -> Run:
    """Train a task, evaluate it on held-out images, and write both into a run directory.

    Args:
        task: ``TASK[:VARIANT]``.
        data: Images from :func:`prepare_task_data`.
        out: Run directory.
        settings: Complete settings, or values that differ from the task's own settings.
        use_published_settings: Start from the settings of the paper instead of a small network
            that grows.
        policy, budget, images, resume, display, cluster: As for :func:`growgan.grow`.

    Raises:
        UserError: As :func:`growgan.grow`.
    """
    task_object, _, variant = parse_task(task)
    if not isinstance(settings, Settings):
        task_settings = (
            task_object.published_settings(min(data.resolution))
            if use_published_settings
            else task_object.small_settings(variant)
        )
        settings = make_settings(task_settings, settings or {})
    train_split, test_set = task_object.split(data, variant)
    train_set = task_object.make_training_set(train_split, variant, settings.seed)
    run = grow(
        train_set,
        out=out,
        settings=settings,
        policy=policy,
        budget=budget,
        images=images,
        resume=resume,
        display=display,
        cluster=cluster,
    )
    if init_distributed().is_main_process:
        _evaluate_and_report(run, task_object, variant, train_set=train_set, test_set=test_set)
    return run


def _evaluate_and_report(
    run: Run, task: Task, variant: str, train_set: ImageSet, test_set: ImageSet
) -> None:
    """Write a task's metrics and sheet caption into the run's gallery, and update the report.

    If the budget ended before the full resolution, real images are downscaled to the run's.
    """
    gallery, caption = run.path / "gallery", task.sheet_caption
    gallery.mkdir(exist_ok=True)
    resolution = run.best.load_network().spec.resolution
    if resolution != test_set.resolution:
        train_set = downscale_image_set(train_set, resolution)
        test_set = downscale_image_set(test_set, resolution)
        caption += (
            f" The run ended at {resolution[0]}x{resolution[1]} pixels. All metrics and images are"
            " at this resolution; real images were downscaled to it."
        )
    metrics = task.evaluate(run, variant, train_set, test_set)
    replace_file(gallery / f"{TASK_FILE_STEM}.json", json.dumps(metrics, indent=1).encode())
    replace_file(gallery / f"{TASK_FILE_STEM}.txt", caption.strip().encode())
    write_report(run.path)
