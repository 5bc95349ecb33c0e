"""NumPy ``.npz`` files with one array of images and optional labels."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from growgan.data.archives import is_bomb
from growgan.data.base import ArraySource, ImageArrays, encode_labels, to_strings
from growgan.data.cache import cached_file_sha256
from growgan.data.decode import BrokenImageError, Pixels, to_uint8
from growgan.errors import UserError
from growgan.files import hash_json

IMAGE_KEYS: Final = ("images", "x", "x_train", "data", "samples", "arr_0")
LABEL_KEYS: Final = ("labels", "y", "y_train", "label", "arr_1")
CLASS_KEYS: Final = ("classes", "class_names", "label_names")


def open_npz(path: Path, cache: Path) -> ArraySource:
    """Open an ``.npz`` as a source. The arrays are read on first use."""
    digest = hash_json("npz", cached_file_sha256(path, cache))
    return ArraySource(path.name, str(path), digest, partial(read_npz, path))


def read_npz(path: Path) -> ImageArrays:
    """Read images, labels and class names by their usual keys.

    Raises:
        UserError: The file is no ``.npz``, has no images, or its arrays do not match.
    """
    arrays = read_arrays(path, (IMAGE_KEYS, LABEL_KEYS, CLASS_KEYS))
    keys = list(arrays)
    image_key = _first(keys, IMAGE_KEYS)
    if image_key is None:
        with np.load(path, allow_pickle=False) as file:
            keys_found = ", ".join(file.files) or "nothing"
        raise UserError(
            f"'{path}' has no images: it contains {keys_found}; name the array 'images'"
        )
    images = to_nhwc(arrays[image_key], f"'{image_key}' in '{path}'")
    label_key, class_key = _first(keys, LABEL_KEYS), _first(keys, CLASS_KEYS)
    if label_key is None:
        return ImageArrays(images)
    names = tuple(to_strings(arrays[class_key].reshape(-1)).tolist()) if class_key else ()
    return with_labels(images, arrays[label_key], names, f"'{path}'")


def read_arrays(path: Path, groups: Sequence[Sequence[str]]) -> dict[str, NDArray[Any]]:
    """Read the first existing array of each group of keys, without loading pickled objects.

    Raises:
        UserError: The file is no ``.npz``, or an entry is no array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if is_bomb(sum(e.file_size for e in entries), path.stat().st_size):
            raise UserError(f"'{path}' unpacks to over 200 times its size, so it is refused")
        with np.load(path, allow_pickle=False) as file:
            keys = [key for group in groups if (key := _first(file.files, group)) is not None]
            arrays = {key: file[key] for key in keys}
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many types for damaged data
        raise UserError(f"'{path}' cannot be read as an .npz ({error})") from error
    for key, value in arrays.items():
        if not isinstance(value, np.ndarray):  # numpy returns other entries as bytes
            raise UserError(f"'{key}' in '{path}' is not an array")
    return arrays


def _first(have: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((key for key in wanted if key in have), None)


def with_labels(
    images: Pixels, labels: NDArray[Any], names: tuple[str, ...], where: str
) -> ImageArrays:
    """Combine images and labels.

    Raises:
        UserError: Their numbers differ, or the labels have another shape than [N], [N,1] or [N,C].
    """
    if labels.ndim not in (1, 2) or labels.shape[1:] == (0,):
        shape = f"{where} has labels of shape {list(labels.shape)}"
        raise UserError(f"{shape}; they must be [N], [N,1] or one-hot [N,C]")
    if len(labels) != len(images):
        raise UserError(f"{where} has {len(images):,} images but {len(labels):,} labels")
    indices, classes = encode_labels(labels, names)
    return ImageArrays(images, indices, classes)


def to_nhwc(array: NDArray[Any], where: str) -> Pixels:
    """Convert [N,H,W], [N,H,W,C] or [N,C,H,W] of any usual range to uint8 [N,H,W,C].

    C must be 1, 3 or 4. If both axes could be the channels, the last one is used.

    Raises:
        UserError: The array has another shape or range, or is empty.
    """
    shape = array.shape
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim != 4 or not {shape[1], shape[3]} & {1, 3, 4}:
        expected = "[N,H,W], [N,H,W,C] or [N,C,H,W] with C = 1, 3 or 4"
        raise UserError(f"{where} has shape {list(shape)}; it must be {expected}")
    elif shape[3] not in (1, 3, 4):
        array = np.moveaxis(array, 1, 3)
    if not array.size:
        raise UserError(f"{where} is empty: its shape is {list(shape)}")
    try:
        return to_uint8(array)
    except BrokenImageError as error:
        raise UserError(f"{where} has {error}") from error
