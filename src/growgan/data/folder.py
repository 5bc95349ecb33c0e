"""A folder of image files, however nested; its class folders become labels."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from growgan.data.decode import EXTENSIONS, MAX_BYTES, BrokenImage, read_header
from growgan.data.files import StatIndex, combine, stamp
from growgan.data.parallel import run_blocks
from growgan.data.prepare import Survey
from growgan.data.sources import EncodedSource, Labels, count_headers
from growgan.errors import UserError

Row = list[Any]  # size, mtime, ctime, then sha256, height, width, channels (0s when broken)

SHOWN: Final = ".png, .jpg, .webp, .tif, .bmp, .gif, ..."


def is_image_name(name: str) -> bool:
    """Say whether a file's ending is an image's, and the file no system's hidden extra."""
    last = name.rsplit("/", 1)[-1]
    return os.path.splitext(last)[1].lower() in EXTENSIONS and not last.startswith(".")


def class_labels(names: Sequence[str]) -> tuple[Labels | None, tuple[str, ...]]:
    """Label files by their top folder, below the folders that all have in common.

    ``names`` are relative, with ``/``. There are labels only when every file lies in such a
    folder and there are at least two of them.
    """
    if not names:
        return None, ()
    parents = [name.split("/")[:-1] for name in names]
    low, high = min(parents), max(parents)
    pairs = zip(low, high, strict=False)
    depth = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(low), len(high)))
    if any(len(parent) <= depth for parent in parents):
        return None, ()
    tops = [parent[depth] for parent in parents]
    classes = tuple(sorted(set(tops)))
    number = {name: index for index, name in enumerate(classes)}
    return np.array([number[top] for top in tops], dtype=np.int64), classes


def walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every file below ``root`` as (relative name, status), links followed once."""
    seen: set[tuple[int, int]] = set()
    stack = [("", str(root))]
    while stack:
        prefix, folder = stack.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    stack.append((f"{prefix}{entry.name}/", entry.path))
                elif entry.is_file():
                    yield prefix + entry.name, entry.stat()


class FolderSource(EncodedSource):
    """Image files below a folder, with what the index knows of each."""

    def __init__(self, root: Path, items: tuple[str, ...], rows: list[Row], ignored: int) -> None:
        labels, classes = class_labels(items)
        name = root.resolve().name or str(root)
        super().__init__(name, str(root), items, labels, classes, ignored)
        self.root, self.rows = root, rows

    def content(self) -> str:
        return combine("folder", self.items, [row[3] for row in self.rows])

    def survey(self) -> Survey:
        survey = Survey()
        count_headers(survey, [(row[4], row[5], row[6]) for row in self.rows if row[6]])
        return survey

    def read(self, index: int) -> bytes:
        return read_file(self.root / self.items[index])


def read_file(path: Path) -> bytes:
    """Read one image file; raises BrokenImage when it cannot be, or is far too big."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise BrokenImage(f"more than {MAX_BYTES >> 20} MiB")
            return file.read()
    except OSError as error:
        raise BrokenImage(error.strerror or "cannot be read") from error


def open_folder(root: Path, cache: Path) -> FolderSource:
    """List the images below ``root``, reading only those that the index does not know.

    Raises UserError when the folder cannot be read or holds none.
    """
    try:
        found = dict(walk(root))
    except OSError as error:
        raise UserError(f"folder '{error.filename}' cannot be read ({error.strerror})") from error
    items = tuple(sorted(filter(is_image_name, found)))
    ignored = len(found) - len(items)
    if not items:
        others = f"; it holds {ignored:,} other files" if ignored else ""
        raise UserError(f"folder '{root}' holds no images ({SHOWN}), nested or not{others}")
    began = time.time_ns()
    index = StatIndex(cache, root)
    stamps = [stamp(found[name]) for name in items]
    facts = [index.known(name, now) for name, now in zip(items, stamps, strict=True)]
    _learn(root, items, facts)
    rows = [[*now, *(fact or [])] for now, fact in zip(stamps, facts, strict=True)]
    index.save(dict(zip(items, rows, strict=True)), began)
    return FolderSource(root, items, rows, ignored)


def _learn(root: Path, items: tuple[str, ...], facts: list[list[Any] | None]) -> None:
    """Fill in the facts of files that are new or have changed."""
    new = [number for number, fact in enumerate(facts) if fact is None]
    task = partial(probe_files, root, [items[number] for number in new])
    learnt: Iterable[list[Any]] = (row for rows in run_blocks(task, len(new), 256) for row in rows)
    for number, fact in zip(new, learnt, strict=True):
        facts[number] = fact


def probe_files(root: Path, names: Sequence[str], start: int, stop: int) -> list[list[Any]]:
    """Return [sha256, height, width, channels] of each file in a block; 0s when broken."""
    rows: list[list[Any]] = []
    for name in names[start:stop]:
        digest = ""
        try:
            data = read_file(root / name)
            digest = hashlib.sha256(data).hexdigest()
            rows.append([digest, *read_header(data)])
        except BrokenImage:
            rows.append([digest, 0, 0, 0])
    return rows
