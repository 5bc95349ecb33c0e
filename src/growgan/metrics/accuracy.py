"""Classification accuracy score: can what the generated images teach be used on real ones?

Ravuri & Vinyals 2019, "Classification accuracy score for conditional generative models", arXiv
1905.10887. The classifier is the small network of the domain features, not their ResNet-50, so
that figures compare with their own yardstick and not with published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from growgan.metrics import domain
from growgan.metrics.watch import Progress, unseen

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images [N, C, H, W] and classes [N]

_CHUNK = 512  # images that are classified at once


@dataclass(frozen=True)
class ClassificationAccuracy:
    """The share of held-out reals that is classified rightly after training on ``count`` images.

    ``score`` is that of training on fakes; ``yardstick``, on as many reals: what to aim at.
    """

    score: float
    yardstick: float
    count: int


def classification_accuracy_score(
    fake: Labelled,
    real: Labelled,
    held_out: Labelled,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = unseen,
) -> ClassificationAccuracy:
    """Train one classifier on ``fake`` and one on ``real``; return their accuracy on ``held_out``.

    Each is (uint8 [N, C, H, W], class numbers int64 [N] from 0), all of one C; other sizes are
    resized to the held-out images'. Both classifiers learn from as many random images as the
    smaller set has, with the same first weights: the same seed gives the same figures on the same
    machine. Raises ValueError for other shapes, missing labels, or fewer than 2 classes held out.
    """
    for name, labelled in (("held_out", held_out), ("fake", fake), ("real", real)):
        _check(name, *labelled, channels=held_out[0].shape[1:2])
    if len(np.unique(held_out[1])) < 2:
        raise ValueError(f"held_out must show at least 2 classes, but all are {held_out[1][0]}")
    classes = 1 + max(int(labels.max()) for _, labels in (fake, real, held_out))
    count = min(len(fake[0]), len(real[0]))

    def accuracy(labelled: Labelled, before: int) -> float:
        images, labels = labelled
        generator = torch.Generator().manual_seed(seed)
        chosen = np.sort(torch.randperm(len(images), generator=generator)[:count].numpy())

        def report(done: int, steps: int) -> None:
            progress(before * steps + done, 2 * steps)

        part = images[chosen], labels[chosen]
        return accuracy_of(part, held_out, classes, seed=seed, device=device, progress=report)

    return ClassificationAccuracy(accuracy(fake, 0), accuracy(real, 1), count)


def accuracy_of(
    taught: Labelled,
    held_out: Labelled,
    classes: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = unseen,
) -> float:
    """Train a classifier on all of ``taught``; return the share of ``held_out`` that it gets right.

    Both as for :func:`classification_accuracy_score`, of one size.
    """
    classify = classifier(taught, classes, seed=seed, device=device, progress=progress)
    return float((classify(held_out[0]) == held_out[1]).mean())


def classifier(
    taught: Labelled,
    classes: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = unseen,
) -> Callable[[NDArray[np.uint8]], NDArray[np.int64]]:
    """Train a classifier on all of ``taught``; return what names the classes of [N, C, H, W]."""
    resolution, where = domain.training_resolution(*taught[0].shape[2:]), torch.device(device)
    network = domain.train_classifier(
        *taught, classes, resolution, seed=seed, device=where, progress=progress
    )

    @torch.inference_mode()
    def classify(images: NDArray[np.uint8]) -> NDArray[np.int64]:
        found = []
        for start in range(0, len(images), _CHUNK):
            part = torch.from_numpy(np.array(images[start : start + _CHUNK])).to(where)
            found.append(network(domain.prepare(part, resolution)).argmax(1).cpu().numpy())
        return np.concatenate(found)

    return classify


def _check(
    name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], *, channels: tuple[int, ...]
) -> None:
    """Raise ValueError unless ``images`` and ``labels`` fit each other and have ``channels``."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        got = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"{name} must have images of uint8 [N, C, H, W], but they are {got}")
    if images.shape[1:2] != channels:
        raise ValueError(
            f"{name} must have {channels[0]} channels, as held_out, but has {images.shape[1]}"
        )
    if labels.shape != (len(images),) or labels.min() < 0:
        got = f"{list(labels.shape)} from {labels.min() if labels.size else 'none'}"
        raise ValueError(f"{name} must have labels [{len(images)}] from 0, but they are {got}")
