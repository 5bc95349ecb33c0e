"""IDX files, the format of MNIST and its successors, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from growgan.data.archives import is_bomb
from growgan.data.files import combine, file_digest
from growgan.data.npz import to_nhwc, with_labels
from growgan.data.sources import Arrays, ArraySource
from growgan.errors import UserError

TYPES: Final = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb") if packed else path.open("rb"))


def _header(file: IO[bytes]) -> tuple[str, tuple[int, ...]] | None:
    """Read (dtype, shape), or None when the file does not begin like IDX."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or not 1 <= magic[3] <= 4:
        return None
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        return None
    return TYPES[magic[2]], struct.unpack(f">{magic[3]}I", sizes)


def is_idx(path: Path) -> bool:
    """Say whether a file begins as IDX does, after unpacking."""
    try:
        with _open(path) as file:
            return _header(file) is not None
    except (OSError, EOFError, zlib.error):
        return False


def read_idx(path: Path) -> NDArray[Any]:
    """Read one IDX file, plain or gzipped: the array of the shape that it states.

    Raises UserError when it is no IDX file, or shorter or longer than it states.
    """
    try:
        with _open(path) as file:
            header = _header(file)
            if header is None:
                raise UserError(f"'{path}' is not an IDX file")
            kind, shape = header
            size = math.prod(shape) * np.dtype(kind).itemsize
            if is_bomb(size, path.stat().st_size):
                raise UserError(f"'{path}' states over 200 times its size; it is not trusted")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"'{path}' cannot be read as IDX ({error})") from error
    if len(data) != size:
        raise UserError(f"'{path}' states {size:,} bytes of shape {list(shape)} but is not so long")
    array = np.frombuffer(data, dtype=kind).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def labels_beside(images: Path) -> Path | None:
    """Return the labels file that belongs to an images file by its name, if it is there."""
    name = images.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    if name == images.name:
        return None
    stem = name.removesuffix(".gz")
    found = (images.with_name(choice) for choice in (name, stem, f"{stem}.gz"))
    return next((path for path in found if path.is_file()), None)


def find_in(folder: Path, cache: Path) -> ArraySource | None:
    """Return the IDX images in a folder, those for training first; None without any."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"folder '{folder}' cannot be read ({error.strerror})") from error
    found = [n for n in names if "images" in n and ("idx3" in n or "idx4" in n)]
    found.sort(key=lambda name: (not name.startswith("train"), name))
    return open_idx(folder / found[0], cache) if found else None


def open_idx(path: Path, cache: Path) -> ArraySource:
    """Name an IDX images file, with the labels beside it, as a source."""
    labels = labels_beside(path)
    digest = file_digest(path, cache), labels and file_digest(labels, cache)
    load = partial(read_idx_pair, path, labels)
    return ArraySource(path.name, str(path), combine("idx", *digest), load)


def read_idx_pair(path: Path, labels: Path | None, names: tuple[str, ...] = ()) -> Arrays:
    """Read an images file and its labels; raises UserError when they do not fit."""
    array = read_idx(path)
    if array.ndim < 3:
        raise UserError(f"'{path}' holds {array.ndim}-dimensional data; give the images file")
    images = to_nhwc(array, f"'{path}'")
    if labels is None:
        return Arrays(images)
    return with_labels(images, read_idx(labels), names, f"'{path}'")
