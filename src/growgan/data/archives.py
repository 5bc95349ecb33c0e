"""Zip archives, read entry by entry in memory and never unpacked to disk."""

from __future__ import annotations

import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from growgan.data.decode import MAX_BYTES, BrokenImage
from growgan.data.files import combine, file_digest
from growgan.data.folder import SHOWN, class_labels, is_image_name
from growgan.data.sources import EncodedSource, Labels
from growgan.errors import UserError

MAX_RATIO: Final = 200  # images hardly shrink; real arrays of pixels rarely beyond 50
RATIO_FROM: Final = 1 << 26  # bytes below which no ratio is suspicious


def is_bomb(unpacked: int, packed: int) -> bool:
    """Say whether something unpacks to suspiciously much: over 64 MiB and 200 times its size."""
    return unpacked > RATIO_FROM and unpacked > MAX_RATIO * max(packed, 1)


def is_unsafe(name: str) -> bool:
    """Say whether an entry's name is absolute or climbs out of the archive."""
    parts = name.replace("\\", "/").split("/")
    return not parts[0] or ".." in parts or parts[0].endswith(":")


class ZipSource(EncodedSource):
    """The image entries of one zip archive."""

    def __init__(self, path: Path, digest: str, entries: list[zipfile.ZipInfo], ignored: int):
        items = tuple(entry.filename for entry in entries)
        labels, classes = _safe_labels(items)
        super().__init__(path.name, str(path), items, labels, classes, ignored)
        self.path, self.digest = path, digest

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "archive"}

    @cached_property
    def archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def content(self) -> str:
        return combine("zip", self.digest)

    def read(self, index: int) -> bytes:
        name = self.items[index]
        if is_unsafe(name):
            raise BrokenImage("unsafe name: absolute or with ..")
        try:
            entry = self.archive.getinfo(name)
            if entry.flag_bits & 1:
                raise BrokenImage("encrypted")
            if entry.file_size > MAX_BYTES or is_bomb(entry.file_size, entry.compress_size):
                raise BrokenImage(f"unpacks from {entry.compress_size:,} to {entry.file_size:,} B")
            return self.archive.read(entry)
        except BrokenImage:
            raise
        except Exception as error:  # zipfile and zlib raise many kinds for damaged data
            raise BrokenImage(f"damaged entry ({type(error).__name__})") from error


def _safe_labels(items: tuple[str, ...]) -> tuple[Labels | None, tuple[str, ...]]:
    safe = np.array([not is_unsafe(name) for name in items])
    known, classes = class_labels([name for name, ok in zip(items, safe, strict=True) if ok])
    if known is None:
        return None, ()
    labels = np.full(len(items), -1, dtype=np.int64)
    labels[safe] = known
    return labels, classes


def open_zip(path: Path, cache: Path) -> ZipSource:
    """List the images of a zip; raises UserError when it is none, or holds none."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
    except Exception as error:  # zipfile raises many kinds for damaged data
        raise UserError(f"'{path}' cannot be read as a zip ({error})") from error
    names = sorted(name for name in found if is_image_name(name) and "__MACOSX/" not in name)
    if not names:
        raise UserError(f"zip '{path}' holds no images ({SHOWN})")
    entries = [found[name] for name in names]
    return ZipSource(path, file_digest(path, cache), entries, len(found) - len(names))
