"""Helpers that evaluate task runs: sampling, image similarity, recognition accuracy and sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.metrics.functional.classification_accuracy_score import fit_classifier
from growgan.metrics.functional.ssim import ssim
from growgan.report.image_files import save_contact_sheet
from growgan.run.run import Run
from growgan.sampling.trained_generator import TrainedGenerator

MIN_TRAIN_IMAGES_PER_CLASS = 20  # labeled images per class, on average, to train a classifier
IMAGES_PER_CHUNK = 1024  # images processed at once
COMPARISON_BATCH_SIZE = 64  # images compared at once, in float64
MIN_SQUARED_ERROR = 1e-10  # of the squared range: the PSNR of equal images is 100 dB
TASK_FILE_STEM = "task"  # file name of the sheet, metrics and caption in the run's gallery

ImagesNCHW = UInt8[Tensor, "n c h w"]


def split_indices(
    num_items: int, test_fraction: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the training items, sorted, and of the test items, in random order.

    The split depends only on the number of items. There is at least one test item.
    """
    order = np.random.default_rng((num_items, 0)).permutation(num_items)
    num_test = max(1, round(test_fraction * num_items))
    return np.sort(order[num_test:]), order[:num_test]


def random_subset(data: ImageSet, max_images: int) -> ImageSet:
    """Return up to ``max_images`` images in a random order that depends only on their number.

    Images from folders are sorted by class, so the first ones are not a random sample.
    """
    order = np.random.default_rng((len(data), 1)).permutation(len(data))
    return data.subset(order[:max_images])


def sample_rows_per_class(data: ImageSet, images_per_class: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of up to ``images_per_class`` random images of each class."""
    rng = np.random.default_rng(seed)
    rows_by_class = (np.flatnonzero(data.labels == label) for label in range(len(data.classes)))
    return np.concatenate([rng.permutation(rows)[:images_per_class] for rows in rows_by_class])


def require_labels(task_name: str, data: ImageSet) -> tuple[NDArray[np.int64], int]:
    """Return the labels and the number of images in the rarest class.

    Raises:
        UserError: ``data`` does not have labels of at least two classes.
    """
    num_classes = 0 if data.labels is None else len(data.classes)
    if data.labels is None or num_classes < 2:
        raise UserError(
            f"task '{task_name}' needs labels of at least 2 classes, but '{data.name}' has"
            f" {num_classes}; put the images of each class into a folder of their own"
        )
    counts = np.bincount(data.labels[data.labels >= 0], minlength=len(data.classes))
    return data.labels, int(counts.min())


def labels_to_generate(model: TrainedGenerator, image_set: ImageSet) -> list[int] | None:
    """Return the labels of the images if the model is conditional and all of them are known."""
    if not model.classes or image_set.labels is None or image_set.labels.min() < 0:
        return None
    return [*map(int, image_set.labels)]


def generate_from_source(
    model: TrainedGenerator, source: ImagesNCHW, labels: Sequence[int] | None = None
) -> ImagesNCHW:
    """Return the images that a model generates from source images."""
    samples = model.sample(len(source), labels=labels, source_images=source.movedim(1, 3).numpy())
    return torch.from_numpy(to_channels_first(samples))


def to_channels_first(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images uint8 [N, H, W, C], as models return them, as [N, C, H, W]."""
    return np.ascontiguousarray(np.moveaxis(images, 3, 1))


def to_num_channels(images: np.ndarray[Any, Any], num_channels: int) -> np.ndarray[Any, Any]:
    """Return the last ``num_channels`` channels; repeat the last one if there are fewer."""
    if images.shape[1] >= num_channels:
        return images[:, -num_channels:]
    return np.repeat(images[:, -1:], num_channels, axis=1)


def to_grayscale(images: ImagesNCHW) -> ImagesNCHW:
    """Return the luma of images (ITU-R BT.601), uint8 [N, 1, H, W]."""
    if images.shape[1] < 3:
        return images[:, :1]
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images[:, :3] * weights).sum(1, keepdim=True).round().to(torch.uint8)


def image_similarity(generated: ImagesNCHW, target: ImagesNCHW) -> dict[str, float]:
    """Return the means over images of "l1" (in 1/255), "psnr" (in dB) and "ssim".

    The mean squared error of an image is clamped, so the PSNR of two equal images is 100 dB.
    torchmetrics returns the same PSNR otherwise, but takes seconds to import.
    """
    batches = zip(
        generated.split(COMPARISON_BATCH_SIZE), target.split(COMPARISON_BATCH_SIZE), strict=True
    )
    columns = []
    for generated_batch, target_batch in batches:
        error = (generated_batch.double() - target_batch.double()).flatten(1) / 255
        squared_error = error.square().mean(1).clamp(min=MIN_SQUARED_ERROR)
        l1 = 255 * error.abs().mean(1)
        psnr = -10 * squared_error.log10()
        columns.append(torch.stack([l1, psnr, ssim(generated_batch, target_batch).double()]))
    mean_l1, mean_psnr, mean_ssim = torch.cat(columns, 1).mean(1).tolist()
    return {"l1": mean_l1, "psnr": mean_psnr, "ssim": mean_ssim}


def recognition_accuracy(
    train_set: ImageSet, test_set: ImageSet, image_sets: Mapping[str, ImagesNCHW]
) -> dict[str, float]:
    """Return the accuracy of a classifier, trained on real images, on each set of images.

    The keys are ``"accuracy, NAME"`` and, for the test images themselves, ``"accuracy, target"``.
    The result is empty if there are too few labels.

    Args:
        train_set: Images that the classifier is trained on.
        test_set: Target images; row by row, their labels are those of the other sets.
        image_sets: Images to classify, by name.
    """
    if train_set.labels is None or test_set.labels is None or len(train_set.classes) < 2:
        return {}
    has_label, num_labeled = test_set.labels >= 0, int((train_set.labels >= 0).sum())
    if num_labeled < MIN_TRAIN_IMAGES_PER_CLASS * len(train_set.classes) or not has_label.any():
        return {}
    labeled = train_set.labeled_subset()
    assert labeled.labels is not None
    classify = fit_classifier((np.array(labeled.images), labeled.labels), len(train_set.classes))
    arrays = {name: images.numpy() for name, images in image_sets.items()}
    arrays["target"] = np.array(test_set.images)
    labels = test_set.labels[has_label]
    return {
        f"accuracy, {name}": float((classify(images[has_label]) == labels).mean())
        for name, images in arrays.items()
    }


def save_task_sheet(run: Run, rows: list[np.ndarray[Any, Any]]) -> None:
    """Save rows of images uint8 [N, C, H, W] as the task's sheet in the run's gallery."""
    save_contact_sheet(rows, run.path / "gallery" / f"{TASK_FILE_STEM}.png")
