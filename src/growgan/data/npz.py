"""NumPy ``.npz`` files: one array of images, and labels if there are any."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from growgan.data.archives import is_bomb
from growgan.data.decode import BrokenImage, Pixels, to_uint8
from growgan.data.files import combine, file_digest
from growgan.data.sources import Arrays, ArraySource, as_names, name_classes
from growgan.errors import UserError

IMAGE_KEYS: Final = ("images", "x", "x_train", "data", "samples", "arr_0")
LABEL_KEYS: Final = ("labels", "y", "y_train", "label", "arr_1")
CLASS_KEYS: Final = ("classes", "class_names", "label_names")


def open_npz(path: Path, cache: Path) -> ArraySource:
    """Name an ``.npz`` as a source; the arrays are read when first needed."""
    digest = combine("npz", file_digest(path, cache))
    return ArraySource(path.name, str(path), digest, partial(read_npz, path))


def read_npz(path: Path) -> Arrays:
    """Read images, labels and class names by their usual keys.

    Raises UserError for a file that is no ``.npz``, lacks images, or whose arrays do not fit.
    """
    picked = read_arrays(path, (IMAGE_KEYS, LABEL_KEYS, CLASS_KEYS))
    keys = list(picked)
    image_key = _first(keys, IMAGE_KEYS)
    if image_key is None:
        with np.load(path, allow_pickle=False) as file:
            there = ", ".join(file.files) or "nothing"
        raise UserError(f"'{path}' has no images: it holds {there}; call them 'images'")
    images = to_nhwc(picked[image_key], f"'{image_key}' in '{path}'")
    label_key, class_key = _first(keys, LABEL_KEYS), _first(keys, CLASS_KEYS)
    if label_key is None:
        return Arrays(images)
    names = tuple(as_names(picked[class_key].reshape(-1)).tolist()) if class_key else ()
    return with_labels(images, picked[label_key], names, f"'{path}'")


def read_arrays(path: Path, groups: Sequence[Sequence[str]]) -> dict[str, NDArray[Any]]:
    """Read the first array of each group of keys that the file has; no pickled objects are loaded.

    Raises UserError for a file that is no ``.npz``, and for an entry that is no array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if is_bomb(sum(e.file_size for e in entries), path.stat().st_size):
            raise UserError(f"'{path}' unpacks to over 200 times its size; it is not trusted")
        with np.load(path, allow_pickle=False) as file:
            keys = [key for group in groups if (key := _first(file.files, group)) is not None]
            picked = {key: file[key] for key in keys}
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for damaged data
        raise UserError(f"'{path}' cannot be read as an .npz ({error})") from error
    for key, value in picked.items():
        if not isinstance(value, np.ndarray):  # numpy gives an entry of another kind as its bytes
            raise UserError(f"'{key}' in '{path}' is no array")
    return picked


def _first(have: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((key for key in wanted if key in have), None)


def with_labels(images: Pixels, labels: NDArray[Any], names: tuple[str, ...], where: str) -> Arrays:
    """Join images and labels; raises UserError when their numbers differ."""
    if labels.ndim not in (1, 2) or labels.shape[1:] == (0,):
        shape = f"{where} has labels of shape {list(labels.shape)}"
        raise UserError(f"{shape}; they must be [N], [N,1] or one-hot [N,C]")
    if len(labels) != len(images):
        raise UserError(f"{where} has {len(images):,} images but {len(labels):,} labels")
    indices, classes = name_classes(labels, names)
    return Arrays(images, indices, classes)


def to_nhwc(array: NDArray[Any], where: str) -> Pixels:
    """Bring [N,H,W], [N,H,W,C] or [N,C,H,W] of any usual range to uint8 [N,H,W,C].

    C is 1, 3 or 4; where both ends could be channels, the last axis is. Raises UserError.
    """
    shape = array.shape
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim != 4 or not {shape[1], shape[3]} & {1, 3, 4}:
        wanted = "[N,H,W], [N,H,W,C] or [N,C,H,W] with C = 1, 3 or 4"
        raise UserError(f"{where} has shape {list(shape)}; it must be {wanted}")
    elif shape[3] not in (1, 3, 4):
        array = np.moveaxis(array, 1, 3)
    if not array.size:
        raise UserError(f"{where} is empty: its shape is {list(shape)}")
    try:
        return to_uint8(array)
    except BrokenImage as error:
        raise UserError(f"{where} has {error}") from error
