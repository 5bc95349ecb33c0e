"""IDX files, the format of MNIST, plain or gzipped."""

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
from growgan.data.base import ArraySource, ImageArrays
from growgan.data.cache import cached_file_sha256
from growgan.data.npz import to_nhwc, with_labels
from growgan.errors import UserError
from growgan.files import hash_json

TYPES: Final = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb") if packed else path.open("rb"))


def _header(file: IO[bytes]) -> tuple[str, tuple[int, ...]] | None:
    """Read (dtype, shape), or return None if this is not an IDX file."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or not 1 <= magic[3] <= 4:
        return None
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        return None
    return TYPES[magic[2]], struct.unpack(f">{magic[3]}I", sizes)


def is_idx(path: Path) -> bool:
    """Return whether a file is IDX, plain or gzipped."""
    try:
        with _open(path) as file:
            return _header(file) is not None
    except (OSError, EOFError, zlib.error):
        return False


def read_idx(path: Path) -> NDArray[Any]:
    """Read an IDX file, plain or gzipped.

    Raises:
        UserError: The file is not IDX, or its length does not match its header.
    """
    try:
        with _open(path) as file:
            header = _header(file)
            if header is None:
                raise UserError(f"'{path}' is not an IDX file")
            kind, shape = header
            size = math.prod(shape) * np.dtype(kind).itemsize
            if is_bomb(size, path.stat().st_size):
                raise UserError(f"'{path}' states over 200 times its size, so it is refused")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"'{path}' cannot be read as IDX ({error})") from error
    if len(data) != size:
        raise UserError(
            f"'{path}' states {size:,} bytes of shape {list(shape)} but is not of that length"
        )
    array = np.frombuffer(data, dtype=kind).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def labels_beside(images: Path) -> Path | None:
    """Return the labels file that belongs to an images file by its name, if it exists."""
    name = images.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    if name == images.name:
        return None
    stem = name.removesuffix(".gz")
    paths = (images.with_name(choice) for choice in (name, stem, f"{stem}.gz"))
    return next((path for path in paths if path.is_file()), None)


def find_in(folder: Path, cache: Path) -> ArraySource | None:
    """Open the IDX images in a folder, preferring training images; None if there are none."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"folder '{folder}' cannot be read ({error.strerror})") from error
    image_files = [n for n in names if "images" in n and ("idx3" in n or "idx4" in n)]
    image_files.sort(key=lambda name: (not name.startswith("train"), name))
    return open_idx(folder / image_files[0], cache) if image_files else None


def open_idx(path: Path, cache: Path) -> ArraySource:
    """Open an IDX images file as a source, with the labels file next to it."""
    labels = labels_beside(path)
    digest = cached_file_sha256(path, cache), labels and cached_file_sha256(labels, cache)
    load = partial(read_idx_pair, path, labels)
    return ArraySource(path.name, str(path), hash_json("idx", *digest), load)


def read_idx_pair(path: Path, labels: Path | None, names: tuple[str, ...] = ()) -> ImageArrays:
    """Read an images file and its labels; raise a UserError if they do not match."""
    array = read_idx(path)
    if array.ndim < 3:
        raise UserError(f"'{path}' holds {array.ndim}-dimensional data; it must be the images file")
    images = to_nhwc(array, f"'{path}'")
    if labels is None:
        return ImageArrays(images)
    return with_labels(images, read_idx(labels), names, f"'{path}'")
