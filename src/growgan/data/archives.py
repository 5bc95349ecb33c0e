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
from growgan.data.prepare import Survey
from growgan.data.sources import EncodedSource, Labels
from growgan.errors import UserError

MAX_RATIO: Final = 200  # images hardly shrink; real arrays of pixels rarely beyond 50
RATIO_FROM: Final = 1 << 26  # bytes below which no ratio is suspicious
# Thrice ImageNet's 1.3 million, and room for the 3 million of LSUN's bedrooms. What is larger is
# spread over many archives anyway: a list of so many takes 3 GB of memory.
MAX_ENTRIES: Final = 1 << 22
# A photograph has some 10 pixels a byte, a line drawing up to 100, one colour 1,000: this keeps the
# time to decode an archive in proportion to its size. A billion pixels take ten seconds.
PIXELS_A_BYTE: Final = 200
PIXELS_FROM: Final = 1 << 30  # below which no archive is suspicious
MAX_PIXELS: Final = 1 << 42  # in all: as many entries as there may be, of 1024x1024
REMEDY: Final = "unpack it into a folder if you trust it"


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

    def survey(self) -> Survey:
        """Count sizes and channels; raises UserError for far too many pixels in all."""
        survey = super().survey()
        pixels = sum(height * width * n for (height, width), n in survey.sizes.items())
        most = min(MAX_PIXELS, max(PIXELS_FROM, PIXELS_A_BYTE * self.path.stat().st_size))
        if pixels > most:
            raise UserError(
                f"zip '{self.path}' states {pixels:,} pixels; those of an archive of its size may "
                f"be {most:,}: {REMEDY}"
            )
        return survey

    def read(self, index: int) -> bytes:
        name = self.items[index]
        try:
            entry = self.archive.getinfo(name)
            if why := why_not(entry):
                raise BrokenImage(why)
            return self.archive.read(entry)
        except BrokenImage:
            raise
        except Exception as error:  # zipfile and zlib raise many kinds for damaged data
            raise BrokenImage(f"damaged entry ({type(error).__name__})") from error


def why_not(entry: zipfile.ZipInfo) -> str:
    """Say why an entry is not read, "" for one that is."""
    if is_unsafe(entry.filename):
        return "unsafe name: absolute or with .."
    if entry.flag_bits & 1:
        return "encrypted"
    if entry.file_size > MAX_BYTES or is_bomb(entry.file_size, entry.compress_size):
        return f"unpacks from {entry.compress_size:,} to {entry.file_size:,} B"
    return ""


def _safe_labels(items: tuple[str, ...]) -> tuple[Labels | None, tuple[str, ...]]:
    safe = np.array([not is_unsafe(name) for name in items])
    known, classes = class_labels([name for name, ok in zip(items, safe, strict=True) if ok])
    if known is None:
        return None, ()
    labels = np.full(len(items), -1, dtype=np.int64)
    labels[safe] = known
    return labels, classes


def open_zip(path: Path, cache: Path) -> ZipSource:
    """List the images of a zip; raises UserError when it is none, holds none, or is a bomb."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
    except Exception as error:  # zipfile raises many kinds for damaged data
        raise UserError(f"'{path}' cannot be read as a zip ({error})") from error
    if len(found) > MAX_ENTRIES:
        raise UserError(f"zip '{path}' has {len(found):,} entries; it may have {MAX_ENTRIES:,}")
    names = sorted(name for name in found if is_image_name(name) and "__MACOSX/" not in name)
    if not names:
        raise UserError(f"zip '{path}' holds no images ({SHOWN})")
    entries = [found[name] for name in names]
    # What is not read needs no room: a bomb among images is one broken image.
    if is_bomb(sum(e.file_size for e in entries if not why_not(e)), path.stat().st_size):
        raise UserError(f"zip '{path}' unpacks to over {MAX_RATIO} times its size: {REMEDY}")
    return ZipSource(path, file_digest(path, cache), entries, len(found) - len(names))
