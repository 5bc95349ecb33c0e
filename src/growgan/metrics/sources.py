"""What is measured: images of a set or of an array, or those that a model draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from growgan.data.files import combine
from growgan.data.images import ImageSet
from growgan.errors import UserError
from growgan.metrics.domain import shrink
from growgan.metrics.watch import Watch

SAMPLES = 10_000  # that are drawn from a run


class Model(Protocol):
    """What a run's model can do: draw images uint8 [N, H, W, C].

    One with a single generator has ``network()``. A conditional one has ``classes``, their names,
    and ``labels(count)``: those that it draws, unless ``sample`` is called with others, which take
    turns.
    """

    def sample(self, count: int, *, seed: int = 0) -> NDArray[np.uint8]: ...


class Grown(Protocol):
    """A run, of which the best model is measured."""

    @property
    def best(self) -> Model: ...


Source = Grown | Model | ImageSet | NDArray[np.uint8]


def images_of(
    source: Source,
    name: str,
    count: int | None,
    seed: int,
    watch: Watch,
    like: ImageSet | None = None,
) -> tuple[ImageSet, Model | None]:
    """Return the images of ``source``, at most ``count``, and the model that drew them, if any.

    Its classes are as frequent as in ``like``, or as many of each.
    """
    if isinstance(source, ImageSet):
        return chosen(source, count, seed), None
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 4:
        images = np.ascontiguousarray(source.transpose(0, 3, 1, 2))
        return chosen(ImageSet(name, images, None, (), ""), count, seed), None
    model: Any = getattr(source, "best", source)
    if not hasattr(model, "sample"):
        raise UserError(
            f"{name} must be a run, an ImageSet (see load_images) or a uint8 array [N, H, W, C]"
        )
    _check_count(count)
    watch(f"drawing {name}", 0, 1)
    labels = None if like is None else _frequent(model, like, count or SAMPLES, seed)
    wish = {} if labels is None else {"labels": labels.tolist()}
    drawn = model.sample(count or SAMPLES, seed=seed, **wish).transpose(0, 3, 1, 2)
    watch(f"drawing {name}", 1, 1)
    classes = getattr(model, "classes", ())
    if classes and labels is None:
        labels = model.labels(len(drawn))
    return ImageSet(name, np.ascontiguousarray(drawn), labels, classes, ""), model


def _frequent(model: Any, like: ImageSet, count: int, seed: int) -> NDArray[np.int64] | None:
    """Return labels to draw, by chance as frequent as in ``like``; None where it has no say."""
    classes = tuple(getattr(model, "classes", ()))
    if not classes or classes != like.classes or like.labels is None:
        return None
    known = like.labels[like.labels >= 0]
    # What is made from images has the labels that go with these.
    if not len(known) or (hasattr(model, "network") and model.network().spec.given):
        return None
    drawn: NDArray[np.int64] = np.random.default_rng(seed).choice(known, count)
    return drawn


def _check_count(count: int | None) -> None:
    if count is not None and count < 1:
        raise UserError(f"a count of images must be at least 1, but got {count}")


def chosen(images: ImageSet, count: int | None, seed: int) -> ImageSet:
    """Return ``count`` of the images, drawn by ``seed``, so that an order by class does no harm."""
    _check_count(count)
    if not len(images):
        raise UserError(f"{images.name} hold no image")
    if count is None or count >= len(images):
        return images
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    return _named(images.subset(rows), images)


def _named(images: ImageSet, source: ImageSet) -> ImageSet:
    """Return ``images`` without a fingerprint if ``source``, of which they are made, had none."""
    return images if source.fingerprint else replace(images, fingerprint="")


def shrunk(reals: ImageSet, fakes: ImageSet) -> ImageSet:
    """Return ``reals`` averaged down to the resolution of ``fakes``, where that divides theirs."""
    size, own = fakes.resolution, reals.resolution
    if own == size or own[0] % size[0] or own[1] % size[1]:
        return reals
    parts = [
        shrink(torch.from_numpy(np.array(reals.images[i : i + 1024])), size).numpy()
        for i in range(0, len(reals), 1024)
    ]
    digest = combine(reals.fingerprint, "area", *size)
    return _named(replace(reals, images=np.concatenate(parts), fingerprint=digest), reals)


def check_fit(images: ImageSet | None, reals: ImageSet) -> None:
    """Raise a :class:`UserError` unless images have the reals' channels and resolution."""
    if images is not None and images.images.shape[1:] != reals.images.shape[1:]:
        shapes = [
            f"{h}x{w} with {c} channel{'s' * (c > 1)}"
            for c, h, w in (images.images.shape[1:], reals.images.shape[1:])
        ]
        raise UserError(
            f"images of {shapes[0]} cannot be compared with reals of {shapes[1]}: load both at one "
            "resolution (--resolution) with as many channels"
        )
