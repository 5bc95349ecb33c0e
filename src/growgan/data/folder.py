"""A folder of image files, nested or not; class folders become labels."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from growgan.data.base import EncodedSource, Labels, add_headers
from growgan.data.cache import FileIndex, file_stat_key
from growgan.data.decode import EXTENSIONS, MAX_IMAGE_BYTES, BrokenImageError, read_header
from growgan.data.parallel import run_blocks
from growgan.data.prepare import SizeHistogram
from growgan.errors import UserError
from growgan.files import hash_json

IndexRow = list[Any]  # size, mtime, ctime, sha256, height, width, channels (0 if broken)

EXTENSION_EXAMPLES: Final = ".png, .jpg, .webp, .tif, .bmp, .gif, ..."


def is_image_file_name(name: str) -> bool:
    """Return whether a file has an image extension and is not a hidden file."""
    last = name.rsplit("/", 1)[-1]
    return os.path.splitext(last)[1].lower() in EXTENSIONS and not last.startswith(".")


def labels_from_folders(names: Sequence[str]) -> tuple[Labels | None, tuple[str, ...]]:
    """Label files by their first folder below the common parent of all files.

    ``names`` are relative, with ``/``. There are no labels (None) unless every file is in such a
    folder and there are at least two folders.
    """
    if not names:
        return None, ()
    parents = [name.split("/")[:-1] for name in names]
    low, high = min(parents), max(parents)
    pairs = zip(low, high, strict=False)
    depth = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(low), len(high)))
    if any(len(parent) <= depth for parent in parents):
        return None, ()
    class_folders = [parent[depth] for parent in parents]
    classes = tuple(sorted(set(class_folders)))
    index_of = {name: index for index, name in enumerate(classes)}
    return np.array([index_of[name] for name in class_folders], dtype=np.int64), classes


def iter_files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (relative name, status) of every file below ``root``, following each link once."""
    visited: set[tuple[int, int]] = set()
    stack = [("", str(root))]
    while stack:
        prefix, folder = stack.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    stack.append((f"{prefix}{entry.name}/", entry.path))
                elif entry.is_file():
                    yield prefix + entry.name, entry.stat()


class FolderSource(EncodedSource):
    """The image files below a folder, with checksum, size and channels of each."""

    def __init__(
        self, root: Path, items: tuple[str, ...], rows: list[IndexRow], ignored: int
    ) -> None:
        labels, classes = labels_from_folders(items)
        name = root.resolve().name or str(root)
        super().__init__(name, str(root), items, labels, classes, ignored)
        self.root, self.index_rows = root, rows

    def content_digest(self) -> str:
        return hash_json("folder", self.item_names, [row[3] for row in self.index_rows])

    def size_histogram(self) -> SizeHistogram:
        histogram = SizeHistogram()
        add_headers(histogram, [(row[4], row[5], row[6]) for row in self.index_rows if row[6]])
        return histogram

    def read_bytes(self, index: int) -> bytes:
        return read_file(self.root / self.item_names[index])


def read_file(path: Path) -> bytes:
    """Read an image file; raise BrokenImageError if it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_IMAGE_BYTES:
                raise BrokenImageError(f"more than {MAX_IMAGE_BYTES >> 20} MiB")
            return file.read()
    except OSError as error:
        raise BrokenImageError(error.strerror or "cannot be read") from error


def open_folder(root: Path, cache: Path) -> FolderSource:
    """List the images below ``root``, and read only those that are new or have changed.

    Raises:
        UserError: The folder cannot be read or contains no images.
    """
    try:
        files = dict(iter_files(root))
    except OSError as error:
        raise UserError(f"folder '{error.filename}' cannot be read ({error.strerror})") from error
    items = tuple(sorted(filter(is_image_file_name, files)))
    ignored = len(files) - len(items)
    if not items:
        others = f"; it contains {ignored:,} other files" if ignored else ""
        raise UserError(
            f"folder '{root}' contains no images ({EXTENSION_EXAMPLES}), nested or not{others}"
        )
    began = time.time_ns()
    index = FileIndex(cache, root)
    stamps = [file_stat_key(files[name]) for name in items]
    facts = [index.lookup(name, now) for name, now in zip(items, stamps, strict=True)]
    _probe_new_files(root, items, facts)
    rows = [[*now, *(fact or [])] for now, fact in zip(stamps, facts, strict=True)]
    index.save(dict(zip(items, rows, strict=True)), began)
    return FolderSource(root, items, rows, ignored)


def _probe_new_files(root: Path, items: tuple[str, ...], facts: list[list[Any] | None]) -> None:
    """Fill in the facts about files that are new or have changed."""
    new = [number for number, fact in enumerate(facts) if fact is None]
    task = partial(probe_files, root, [items[number] for number in new])
    probed: Iterable[list[Any]] = (row for rows in run_blocks(task, len(new), 256) for row in rows)
    for number, fact in zip(new, probed, strict=True):
        facts[number] = fact


def probe_files(root: Path, names: Sequence[str], start: int, stop: int) -> list[list[Any]]:
    """Return [sha256, height, width, channels] of each file in a block; 0 if broken."""
    rows: list[list[Any]] = []
    for name in names[start:stop]:
        digest = ""
        try:
            data = read_file(root / name)
            digest = hashlib.sha256(data).hexdigest()
            rows.append([digest, *read_header(data)])
        except BrokenImageError:
            rows.append([digest, 0, 0, 0])
    return rows
