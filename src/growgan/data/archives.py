"""Zip archives, read entry by entry in memory; nothing is unpacked to disk."""

from __future__ import annotations

import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from growgan.data.base import EncodedSource, Labels
from growgan.data.cache import cached_file_sha256
from growgan.data.decode import MAX_IMAGE_BYTES, BrokenImageError
from growgan.data.folder import EXTENSION_EXAMPLES, is_image_file_name, labels_from_folders
from growgan.data.prepare import SizeHistogram
from growgan.errors import UserError
from growgan.files import hash_json

MAX_COMPRESSION_RATIO: Final = 200  # images hardly compress; pixel arrays rarely exceed 50
MIN_SUSPICIOUS_BYTES: Final = 1 << 26  # below this size, no ratio is suspicious
# Three times ImageNet's 1.3 million, and enough for the 3 million of LSUN bedrooms. Larger sets are
# split into several archives, since a listing of this length takes 3 GB of memory.
MAX_ENTRIES: Final = 1 << 22
# A photo has about 10 pixels per byte, a line drawing up to 100, a single color 1,000. The limit
# keeps decoding time in proportion to the size of the archive. A billion pixels take ten seconds.
MAX_PIXELS_PER_BYTE: Final = 200
MIN_SUSPICIOUS_PIXELS: Final = 1 << 30  # below this number, no archive is suspicious
MAX_ARCHIVE_PIXELS: Final = 1 << 42  # in all: as many entries as there may be, of 1024x1024
UNPACK_HINT: Final = "unpack it into a folder if you trust it"


def is_bomb(unpacked: int, packed: int) -> bool:
    """Return whether data unpacks to over 64 MiB and over 200 times its size."""
    return unpacked > MIN_SUSPICIOUS_BYTES and unpacked > MAX_COMPRESSION_RATIO * max(packed, 1)


def is_unsafe(name: str) -> bool:
    """Return whether the name of an entry is absolute or leaves the archive."""
    parts = name.replace("\\", "/").split("/")
    return not parts[0] or ".." in parts or parts[0].endswith(":")


class ZipSource(EncodedSource):
    """The image entries of one zip archive."""

    def __init__(self, path: Path, digest: str, entries: list[zipfile.ZipInfo], ignored: int):
        items = tuple(entry.filename for entry in entries)
        labels, classes = _labels_of_safe_entries(items)
        super().__init__(path.name, str(path), items, labels, classes, ignored)
        self.path, self.digest = path, digest

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "archive"}

    @cached_property
    def archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def content_digest(self) -> str:
        return hash_json("zip", self.digest)

    def size_histogram(self) -> SizeHistogram:
        """Count sizes and channels.

        Raises:
            UserError: The archive has suspiciously many pixels for its size.
        """
        histogram = super().size_histogram()
        pixels = sum(height * width * n for (height, width), n in histogram.sizes.items())
        max_pixels = min(
            MAX_ARCHIVE_PIXELS,
            max(MIN_SUSPICIOUS_PIXELS, MAX_PIXELS_PER_BYTE * self.path.stat().st_size),
        )
        if pixels > max_pixels:
            raise UserError(
                f"zip '{self.path}' states {pixels:,} pixels; an archive of its size may have "
                f"{max_pixels:,}: {UNPACK_HINT}"
            )
        return histogram

    def read_bytes(self, index: int) -> bytes:
        name = self.item_names[index]
        try:
            entry = self.archive.getinfo(name)
            if reason := reason_unreadable(entry):
                raise BrokenImageError(reason)
            return self.archive.read(entry)
        except BrokenImageError:
            raise
        except Exception as error:  # zipfile and zlib raise many kinds for damaged data
            raise BrokenImageError(f"damaged entry ({type(error).__name__})") from error


def reason_unreadable(entry: zipfile.ZipInfo) -> str:
    """Return why an entry is refused, or an empty string."""
    if is_unsafe(entry.filename):
        return "unsafe name: absolute or with .."
    if entry.flag_bits & 1:
        return "encrypted"
    if entry.file_size > MAX_IMAGE_BYTES or is_bomb(entry.file_size, entry.compress_size):
        return f"unpacks from {entry.compress_size:,} to {entry.file_size:,} B"
    return ""


def _labels_of_safe_entries(items: tuple[str, ...]) -> tuple[Labels | None, tuple[str, ...]]:
    safe = np.array([not is_unsafe(name) for name in items])
    safe_labels, classes = labels_from_folders(
        [name for name, ok in zip(items, safe, strict=True) if ok]
    )
    if safe_labels is None:
        return None, ()
    labels = np.full(len(items), -1, dtype=np.int64)
    labels[safe] = safe_labels
    return labels, classes


def open_zip(path: Path, cache: Path) -> ZipSource:
    """List the images of a zip archive.

    Raises:
        UserError: The file is no zip, contains no images, or is a zip bomb.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries_by_name = {
                entry.filename: entry for entry in archive.infolist() if not entry.is_dir()
            }
    except Exception as error:  # zipfile raises many kinds for damaged data
        raise UserError(f"'{path}' cannot be read as a zip ({error})") from error
    if len(entries_by_name) > MAX_ENTRIES:
        raise UserError(
            f"zip '{path}' has {len(entries_by_name):,} entries; the limit is {MAX_ENTRIES:,}"
        )
    names = sorted(
        name for name in entries_by_name if is_image_file_name(name) and "__MACOSX/" not in name
    )
    if not names:
        raise UserError(f"zip '{path}' contains no images ({EXTENSION_EXAMPLES})")
    entries = [entries_by_name[name] for name in names]
    # Refused entries do not count: a bomb among images is one broken image.
    if is_bomb(sum(e.file_size for e in entries if not reason_unreadable(e)), path.stat().st_size):
        raise UserError(
            f"zip '{path}' unpacks to over {MAX_COMPRESSION_RATIO} times its size: {UNPACK_HINT}"
        )
    return ZipSource(
        path, cached_file_sha256(path, cache), entries, len(entries_by_name) - len(names)
    )
