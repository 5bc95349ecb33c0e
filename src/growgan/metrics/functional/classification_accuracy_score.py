"""Classification accuracy score (CAS): how well a classifier trained on generated images does.

Ravuri & Vinyals 2019, "Classification accuracy score for conditional generative models", arXiv
1905.10887. The classifier is the small network of the own features instead of their ResNet-50, so
the scores compare with the accuracy of training on real images, not with published scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from growgan.metrics.features.own_network import (
    to_network_input,
    train_classifier_network,
    training_resolution,
)
from growgan.metrics.image_batches import iterate_batches
from growgan.metrics.progress import ProgressFn, no_progress
from growgan.metrics.validation import check_uint8_images

LabeledImages = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images [N, C, H, W] and classes [N]


@dataclass(frozen=True)
class ClassificationAccuracy:
    """Accuracy on held-out real images, from 0 to 1.

    Attributes:
        fake_accuracy: Accuracy after training on generated images, the score. Higher is better.
        real_accuracy: Accuracy after training on as many real images, for comparison.
        num_train_images: Number of images that each classifier is trained on.
    """

    fake_accuracy: float
    real_accuracy: float
    num_train_images: int


def classification_accuracy_score(
    fake: LabeledImages,
    real: LabeledImages,
    held_out: LabeledImages,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: ProgressFn = no_progress,
) -> ClassificationAccuracy:
    """Train one classifier on ``fake`` and one on ``real``; return their accuracy on ``held_out``.

    Both classifiers train on as many random images as the smaller set has, from the same initial
    weights. The same seed gives the same result on the same machine. Images of other sizes are
    resized to the resolution of the classifier.

    Args:
        fake: Generated images uint8 [N, C, H, W], and class numbers int64 [N] from 0.
        real: Real images, as ``fake``.
        held_out: Real images of at least 2 classes that are not in ``real``, as ``fake``.
        seed: Random seed.
        device: Device to train on.
        progress: Called with the number of finished training steps.

    Raises:
        ValueError: Other shapes, missing labels, or fewer than 2 classes in ``held_out``.
    """
    num_channels = held_out[0].shape[1] if held_out[0].ndim == 4 else 0
    for name, (images, labels) in (("held_out", held_out), ("fake", fake), ("real", real)):
        _check_labeled_images(name, images, labels, num_channels=num_channels)
    if len(np.unique(held_out[1])) < 2:
        raise ValueError(
            f"held_out must have at least 2 classes, but all its labels are {held_out[1][0]}"
        )
    num_classes = 1 + max(int(labels.max()) for _, labels in (fake, real, held_out))
    num_train_images = min(len(fake[0]), len(real[0]))

    def accuracy_from(train: LabeledImages, num_done: int) -> float:
        images, labels = train
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(images), generator=generator).numpy()
        rows = np.sort(order[:num_train_images])
        return classifier_accuracy(
            (images[rows], labels[rows]),
            held_out,
            num_classes,
            seed=seed,
            device=device,
            progress=lambda step, steps: progress(num_done * steps + step, 2 * steps),
        )

    return ClassificationAccuracy(
        fake_accuracy=accuracy_from(fake, num_done=0),
        real_accuracy=accuracy_from(real, num_done=1),
        num_train_images=num_train_images,
    )


def classifier_accuracy(
    train: LabeledImages,
    held_out: LabeledImages,
    num_classes: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: ProgressFn = no_progress,
) -> float:
    """Train a classifier on all of ``train``; return its accuracy on ``held_out``, from 0 to 1."""
    classify = fit_classifier(train, num_classes, seed=seed, device=device, progress=progress)
    return float((classify(held_out[0]) == held_out[1]).mean())


def fit_classifier(
    train: LabeledImages,
    num_classes: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: ProgressFn = no_progress,
) -> Callable[[NDArray[np.uint8]], NDArray[np.int64]]:
    """Train a classifier on all of ``train``; return a function from images to class numbers.

    The function maps uint8 [N, C, H, W] of any size to int64 [N].
    """
    images, labels = train
    resolution = training_resolution(images.shape[2], images.shape[3])
    torch_device = torch.device(device)
    network = train_classifier_network(
        images, labels, num_classes, resolution, seed=seed, device=torch_device, progress=progress
    )

    @torch.inference_mode()
    def classify(images: NDArray[np.uint8]) -> NDArray[np.int64]:
        predictions = []
        for batch in iterate_batches(images):
            logits = network(to_network_input(batch.to(torch_device), resolution))
            predictions.append(logits.argmax(1).cpu().numpy())
        return np.concatenate(predictions)

    return classify


def _check_labeled_images(
    name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], *, num_channels: int
) -> None:
    """Raise ValueError unless ``images`` and ``labels`` match and have ``num_channels``."""
    check_uint8_images(f"images of {name}", images)
    if images.shape[1] != num_channels:
        raise ValueError(
            f"images of {name} must have as many channels as held_out, {num_channels}, but have"
            f" {images.shape[1]}"
        )
    if labels.shape != (len(images),) or labels.min() < 0:
        got = f"{list(labels.shape)}, from {labels.min() if labels.size else 'none'}"
        raise ValueError(
            f"labels of {name} must be [{len(images)}], with class numbers from 0, but got {got}"
        )
