"""The set of images used for training and evaluation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from growgan.data.base import Source, SourceContext
from growgan.data.cache import default_cache
from growgan.data.prepare import Size, make_plan, parse_resolution, validate_preprocessing
from growgan.data.sources import open_source
from growgan.data.store import ImageStore, build_store, check_num_broken, open_store, store_key
from growgan.errors import UserError
from growgan.files import hash_json

MAX_COPY_BYTES: Final = 1 << 28  # larger subsets are copied to a memory-mapped temporary file


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set of images of one size, with optional labels.

    Attributes:
        name: Short name of the dataset.
        images: uint8 [N, C, H, W], a read-only memory map.
        labels: Class indices int64 [N], -1 if unknown; None if there are no classes.
        classes: Class names, by label.
        fingerprint: SHA-256 of pixels, labels and classes.
        broken: Names of files of the source that could not be read, with the reason.
        source: Path or address of the source.
        duplicates: Names of exact duplicates in the source, with the image they equal.
        source_images: uint8 [N, S, H, W], the images that G transforms into these in
            image-to-image tasks (:mod:`growgan.tasks`); None otherwise.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    fingerprint: str
    broken: tuple[str, ...] = ()
    source: str = ""
    duplicates: tuple[str, ...] = ()
    source_images: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> Size:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def channels(self) -> int:
        """1 (gray), 3 (RGB) or 4 (RGBA)."""
        return int(self.images.shape[1])

    def describe(self) -> dict[str, Any]:
        """Return what a run records of its data, as plain JSON values."""
        return {
            "name": self.name,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "count": len(self),
            "resolution": list(self.resolution),
            "channels": self.channels,
            "classes": list(self.classes),
            "broken": list(self.broken),
            "duplicates": len(self.duplicates),
        }

    def subset(self, rows: NDArray[np.int64]) -> ImageSet:
        """Return the images with indices ``rows`` as a new set.

        Consecutive rows give a view. Others are copied, up to 256 MiB to memory and beyond that
        to an unnamed temporary file.
        """
        digest = hash_json(self.fingerprint, np.asarray(rows).tolist())
        labels = None if self.labels is None else self.labels[rows]
        source_images = (
            None if self.source_images is None else _select_rows(self.source_images, rows)
        )
        images = _select_rows(self.images, rows)
        return replace(
            self, images=images, labels=labels, source_images=source_images, fingerprint=digest
        )

    def labeled_subset(self, fraction: float = 1.0, seed: int = 0) -> ImageSet:
        """Return a random ``fraction`` of the labeled images of each class, at least one each.

        Raises:
            UserError: No image has a label.
        """
        rng, chosen = np.random.default_rng(seed), []
        for rows in self._indices_by_class():
            chosen.append(rng.permutation(rows)[: max(1, round(fraction * len(rows)))])
        return self.subset(np.sort(np.concatenate(chosen)))

    def only_class(self, label: int) -> ImageSet:
        """Return the images of one class, without labels.

        Raises:
            UserError: There are none.
        """
        labels = np.full(len(self), -1) if self.labels is None else self.labels
        rows = np.flatnonzero(labels == label)
        if not len(rows):
            raise UserError(f"'{self.name}' has no images of label {label}")
        return replace(self.subset(rows), labels=None, classes=())

    def class_balanced(self) -> ImageSet:
        """Return the labeled images, with rare classes repeated until all are equally frequent.

        Raises:
            UserError: No image has a label.
        """
        groups = self._indices_by_class()
        largest = max(map(len, groups))
        return self.subset(np.sort(np.concatenate([np.resize(rows, largest) for rows in groups])))

    def _indices_by_class(self) -> list[NDArray[np.int64]]:
        """Return the indices of each class that has images."""
        if self.labels is None or not (self.labels >= 0).any():
            raise UserError(f"'{self.name}' has no labels; put each class into a folder of its own")
        rows = (np.flatnonzero(self.labels == k) for k in range(int(self.labels.max()) + 1))
        return [indices for indices in rows if len(indices)]

    def split_held_out(self, fraction: float) -> tuple[ImageSet, ImageSet]:
        """Split at random into (training, held-out) sets.

        Args:
            fraction: Fraction of the images to hold out.

        The split depends only on the number of images, so it is the same in every run.

        Raises:
            UserError: One of the sets would be empty.
        """
        count = round(fraction * len(self))
        if not 0 < count < len(self):
            raise UserError(
                f"fraction to hold out must leave images on both sides, but got {fraction} "
                f"of {len(self):,}"
            )
        order = np.random.default_rng((len(self), 0)).permutation(len(self))
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))


def _select_rows(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return images[rows[0] : rows[0] + len(rows)]
    images = np.asarray(images)
    shape = (len(rows), *images.shape[1:])
    if np.prod(shape, dtype=np.int64) <= MAX_COPY_BYTES:
        return images[rows]
    with tempfile.TemporaryFile() as file:
        part: NDArray[np.uint8] = np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
    for start in range(0, len(rows), 1024):
        part[start : start + 1024] = images[rows[start : start + 1024]]
    return part


def load_images(
    source: str | Path,
    *,
    resolution: int | Size | None = None,
    channels: int | None = None,
    fit: str = "auto",
    max_broken: float = 0.05,
    cache: Path | None = None,
    seed: int = 0,
) -> ImageSet:
    """Load images from a folder, zip, .npz or IDX file, or a built-in source such as "glyphs".

    Images are decoded once into a memory map under ``cache``. Later calls only check the time
    stamps of the files.

    Args:
        source: A path or the name of a built-in source.
        resolution: A side or (height, width) in pixels; None for the source's own.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA); None for the source's own, RGB if mixed.
        fit: How images are brought to the resolution. "crop": scale to cover it and cut out the
            center. "pad": scale to fit and fill with 0. "stretch": scale each side. "border": fill
            with 0 without scaling. "auto": "border" if all images are at most a quarter smaller
            (28 in 32), "crop" otherwise.
        max_broken: Largest fraction of broken images.
        cache: Cache folder; None for the default.
        seed: Random seed of rendered sources.

    Raises:
        UserError: The source is unknown, missing or empty, or too many images are broken.
    """
    size = parse_resolution(resolution)
    validate_preprocessing(channels, fit)
    if not 0 <= max_broken <= 1:
        raise UserError(f"max_broken must be between 0 and 1, but got {max_broken}")
    cache = default_cache() if cache is None else cache
    opened = open_source(source, SourceContext(cache, seed, channels))
    folder = cache / "images" / store_key(opened.content_digest(), size, channels, fit)
    store = open_store(folder)
    if store is None:
        plan = make_plan(opened.size_histogram(), size, channels, fit)
        build_store(opened, plan, folder, max_broken)
        store = open_store(folder)
    if store is None:
        raise UserError(f"cache '{folder}' cannot be read; delete it or set GROWGAN_CACHE")
    check_num_broken(store.metadata.broken, store.metadata.num_files, max_broken)
    return _image_set(opened, store)


def _image_set(source: Source, store: ImageStore) -> ImageSet:
    metadata = store.metadata
    return ImageSet(
        name=source.name,
        images=store.images,
        labels=store.labels,
        classes=metadata.classes,
        fingerprint=metadata.fingerprint,
        broken=metadata.broken,
        source=source.location,
        duplicates=metadata.duplicates,
    )
