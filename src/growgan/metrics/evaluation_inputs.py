"""The images that are evaluated: a dataset, an array, or samples of a trained generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from growgan.data.images import ImageSet
from growgan.errors import UserError
from growgan.metrics.image_batches import random_rows
from growgan.metrics.image_resize import downscale_image_set
from growgan.metrics.progress import StageProgressFn

DEFAULT_NUM_FAKE = 10_000  # images sampled from a run


@runtime_checkable
class ImageSampler(Protocol):
    """A trained generator that returns images uint8 [N, H, W, C]."""

    def sample(self, count: int, *, seed: int = 0) -> NDArray[np.uint8]: ...


@runtime_checkable
class ConditionalImageSampler(Protocol):
    """A trained generator of images of several classes."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def sample(
        self, count: int, *, seed: int = 0, labels: Sequence[int] | None = None
    ) -> NDArray[np.uint8]: ...

    def sample_labels(self, count: int) -> NDArray[np.int64] | None:
        """Return the labels that :meth:`sample` uses by default, int64 [count]."""


@runtime_checkable
class HasGenerator(Protocol):
    """A trained generator with a single network, whose latents can be chosen."""

    def load_network(self) -> Any: ...


class RunLike(Protocol):
    """A run, whose best trained generator is evaluated."""

    @property
    def best(self) -> ImageSampler: ...


EvaluationInput = RunLike | ImageSampler | ImageSet | NDArray[np.uint8]


def load_evaluation_images(
    source: EvaluationInput,
    *,
    name: str,
    num_images: int | None,
    seed: int,
    progress: StageProgressFn,
    label_reference: ImageSet | None = None,
) -> tuple[ImageSet, ImageSampler | None]:
    """Return the images of ``source``, and the generator that they were sampled from, if any.

    Args:
        source: A run, a trained generator, an :class:`ImageSet`, or an array uint8 [N, H, W, C].
        name: Name of the set in messages, such as "fake images".
        num_images: Maximum number of images; None for all of a set, or 10,000 samples.
        seed: Random seed of the samples, or of the subset.
        progress: Called with a stage, the number of finished items and the total.
        label_reference: Images whose classes a conditional generator samples with the same
            frequencies. If None, all classes are equally frequent.

    Raises:
        UserError: Another kind of source, or ``num_images`` below 1.
    """
    if isinstance(source, ImageSet):
        return subsample(source, num_images, seed), None
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 4:
        images = np.ascontiguousarray(source.transpose(0, 3, 1, 2))
        return subsample(ImageSet(name, images, None, (), ""), num_images, seed), None
    sampler = getattr(source, "best", source)
    if not isinstance(sampler, ImageSampler):
        raise UserError(
            f"{name} must be a run, an ImageSet (see load_images) or a uint8 array [N, H, W, C],"
            f" but got {type(source).__name__}"
        )
    _check_num_images(num_images)
    count = num_images or DEFAULT_NUM_FAKE
    progress(f"Sampling {name}", 0, 1)
    samples, labels, classes = _sample(sampler, count, seed, label_reference)
    progress(f"Sampling {name}", 1, 1)
    images = np.ascontiguousarray(samples.transpose(0, 3, 1, 2))
    return ImageSet(name, images, labels, classes, ""), sampler


def _sample(
    sampler: ImageSampler, count: int, seed: int, label_reference: ImageSet | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, tuple[str, ...]]:
    """Return samples uint8 [N, H, W, C], with their labels and the names of the classes."""
    if not isinstance(sampler, ConditionalImageSampler) or not sampler.classes:
        return sampler.sample(count, seed=seed), None, ()
    classes = tuple(sampler.classes)
    if label_reference is not None:
        labels = _labels_like_reference(sampler, label_reference, count, seed)
        if labels is not None:
            return sampler.sample(count, seed=seed, labels=labels.tolist()), labels, classes
    samples = sampler.sample(count, seed=seed)
    return samples, sampler.sample_labels(len(samples)), classes


def _labels_like_reference(
    sampler: ConditionalImageSampler, label_reference: ImageSet, count: int, seed: int
) -> NDArray[np.int64] | None:
    """Return random labels with the frequencies of ``label_reference``, int64 [count].

    Return None if the classes differ, the reference has no labels, or the sampler translates source
    images, whose labels are then used.
    """
    if tuple(sampler.classes) != label_reference.classes or label_reference.labels is None:
        return None
    known_labels = label_reference.labels[label_reference.labels >= 0]
    if not len(known_labels):
        return None
    if isinstance(sampler, HasGenerator) and sampler.load_network().spec.source_channels:
        return None
    labels: NDArray[np.int64] = np.random.default_rng(seed).choice(known_labels, count)
    return labels


def subsample(image_set: ImageSet, num_images: int | None, seed: int) -> ImageSet:
    """Return up to ``num_images`` random images; sets are often sorted by class.

    Raises:
        UserError: The set is empty, or ``num_images`` is below 1.
    """
    _check_num_images(num_images)
    if not len(image_set):
        raise UserError(f"{image_set.name} must hold at least one image, but is empty")
    if num_images is None or num_images >= len(image_set):
        return image_set
    subset = image_set.subset(random_rows(len(image_set), num_images, seed))
    return subset if image_set.fingerprint else replace(subset, fingerprint="")


def downscale_to_match(image_set: ImageSet, reference: ImageSet) -> ImageSet:
    """Return the images at the resolution of ``reference``, averaged, if it divides theirs."""
    height, width = image_set.resolution
    target_height, target_width = reference.resolution
    if height % target_height or width % target_width:
        return image_set
    return downscale_image_set(image_set, reference.resolution)


def check_same_shape(image_set: ImageSet, real: ImageSet) -> None:
    """Raise UserError unless the images have the channels and the resolution of ``real``."""
    if image_set.images.shape[1:] != real.images.shape[1:]:
        shapes = [
            f"{h}x{w} with {c} channel{'s' * (c > 1)}"
            for c, h, w in (image_set.images.shape[1:], real.images.shape[1:])
        ]
        raise UserError(
            f"images of {shapes[0]} cannot be compared with real images of {shapes[1]}; load both"
            " at the same resolution (--resolution) and with the same channels"
        )


def _check_num_images(num_images: int | None) -> None:
    if num_images is not None and num_images < 1:
        raise UserError(f"the number of images must be at least 1, but got {num_images}")
