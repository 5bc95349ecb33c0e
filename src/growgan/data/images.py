"""The set of images that everything else trains on and measures against."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from growgan.data.files import combine, default_cache
from growgan.data.prepare import Size, check_choices, make_plan, parse_resolution
from growgan.data.sources import Request, Source, open_source
from growgan.data.store import Store, build_store, check_broken, open_store, store_key
from growgan.errors import UserError

COPY_IN_MEMORY: Final = 1 << 28  # bytes; larger parts are copied to a file that is mapped


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images uint8 [N, C, H, W] (a read-only memory map) and what is known of them.

    ``labels`` are class indices int64 [N], -1 where missing, or None; ``classes`` their names.
    ``fingerprint`` is a SHA-256 of pixels, labels and classes: equal images, equal fingerprint.
    ``broken`` and ``duplicates`` name the files of the whole source, with the reason.
    ``given`` are the images uint8 [N, G, H, W] from which these are to be made, row by row, None
    where they are to be made from nothing (:mod:`growgan.tasks`).
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    fingerprint: str
    broken: tuple[str, ...] = ()
    source: str = ""
    duplicates: tuple[str, ...] = ()
    given: NDArray[np.uint8] | None = None

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
        """Return what a run records of its data, JSON-able; duplicates as their count."""
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
        """Return the images of ``rows`` as a set of their own.

        A slice given as consecutive rows is a view. Others are copied once: to memory up to
        256 MiB (20 ms for 60,000 of 28x28), beyond it to an unnamed temporary file.
        """
        digest = combine(self.fingerprint, np.asarray(rows).tolist())
        labels = None if self.labels is None else self.labels[rows]
        given = None if self.given is None else _take(self.given, rows)
        taken = _take(self.images, rows)
        return replace(self, images=taken, labels=labels, given=given, fingerprint=digest)

    def labelled(self, share: float = 1.0, seed: int = 0) -> ImageSet:
        """Return ``share`` of the labelled images of each class, one at least, drawn by ``seed``.

        Raises UserError where no image has a label.
        """
        rng, kept = np.random.default_rng(seed), []
        for rows in self._by_class():
            kept.append(rng.permutation(rows)[: max(1, round(share * len(rows)))])
        return self.subset(np.sort(np.concatenate(kept)))

    def only(self, label: int) -> ImageSet:
        """Return the images of one class, which then needs no label.

        Raises UserError where there are none.
        """
        known = np.full(len(self), -1) if self.labels is None else self.labels
        rows = np.flatnonzero(known == label)
        if not len(rows):
            raise UserError(f"'{self.name}' has no images of label {label}")
        return replace(self.subset(rows), labels=None, classes=())

    def balanced(self) -> ImageSet:
        """Return the labelled images, those of rarer classes repeated: all classes are as many.

        Raises UserError where no image has a label.
        """
        groups = self._by_class()
        most = max(map(len, groups))
        return self.subset(np.sort(np.concatenate([np.resize(rows, most) for rows in groups])))

    def _by_class(self) -> list[NDArray[np.int64]]:
        """Return the rows of each class that has any."""
        if self.labels is None or not (self.labels >= 0).any():
            raise UserError(f"'{self.name}' has no labels; a folder for each class gives them")
        rows = (np.flatnonzero(self.labels == k) for k in range(int(self.labels.max()) + 1))
        return [each for each in rows if len(each)]

    def held_out(self, fraction: float) -> tuple[ImageSet, ImageSet]:
        """Split into (train, held): ``fraction`` of the images, chosen by chance, is held.

        The choice depends on the number of images alone, so it is the same in every run. Raises
        UserError unless both parts get at least one image.
        """
        count = round(fraction * len(self))
        if not 0 < count < len(self):
            raise UserError(
                f"fraction to hold out must leave images on both sides, but got {fraction} "
                f"of {len(self):,}"
            )
        order = np.random.default_rng((len(self), 0)).permutation(len(self))
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))


def _take(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return images[rows[0] : rows[0] + len(rows)]
    images = np.asarray(images)
    shape = (len(rows), *images.shape[1:])
    if np.prod(shape, dtype=np.int64) <= COPY_IN_MEMORY:
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
    """Load images from a folder, zip, .npz, IDX file or name (growgan.data.sources.NAMES).

    They are decoded once into a memory map under ``cache``; later starts only look at the
    files' time stamps. ``resolution`` is a side or (height, width), None the source's own;
    ``channels`` 1, 3 or 4, None the source's own, mixed becoming RGB. ``fit`` is one of

    - ``crop``: scale to cover the resolution, cut out the middle
    - ``pad``: scale to fit into it, fill with 0     - ``stretch``: scale each side
    - ``border``: no scaling, fill with 0
    - ``auto``: ``border`` when all images are less than a quarter smaller (28 in 32), else crop

    ``seed`` is that of rendered sources. Raises UserError for a source that is unknown, missing
    or empty, and when more than the share ``max_broken`` of its images is broken.
    """
    size = parse_resolution(resolution)
    check_choices(channels, fit)
    if not 0 <= max_broken <= 1:
        raise UserError(f"max_broken must be a share from 0 to 1, but got {max_broken}")
    cache = default_cache() if cache is None else cache
    found = open_source(source, Request(cache, seed, channels))
    folder = cache / "images" / store_key(found.content(), size, channels, fit)
    store = open_store(folder)
    if store is None:
        plan = make_plan(found.survey(), size, channels, fit)
        build_store(found, plan, folder, max_broken)
        store = open_store(folder)
    if store is None:
        raise UserError(f"cache '{folder}' cannot be read back; remove it or set GROWGAN_CACHE")
    check_broken(store.facts.broken, store.facts.total, max_broken)
    return _image_set(found, store)


def _image_set(source: Source, store: Store) -> ImageSet:
    facts = store.facts
    return ImageSet(
        name=source.name,
        images=store.images,
        labels=store.labels,
        classes=facts.classes,
        fingerprint=facts.fingerprint,
        broken=facts.broken,
        source=source.location,
        duplicates=facts.duplicates,
    )
