"""The interface of an image source, and what its implementations share."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from growgan.data.decode import BrokenImageError, Pixels, decode, read_header
from growgan.data.parallel import run_blocks
from growgan.data.prepare import SizeHistogram
from growgan.errors import UserError, unknown_name_error

Labels = NDArray[np.int64]


class Source(Protocol):
    """A picklable collection of images that are decoded one at a time.

    Attributes:
        name: Short name, for the ledger.
        location: Path or address, for messages.
        num_ignored: Number of other files next to the images.
    """

    name: str
    location: str
    num_ignored: int

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Labels | None:
        """Class index of each image, -1 if unknown; None if there are no classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""

    def content_digest(self) -> str:
        """Return a digest of the content. It is fast if nothing has changed."""

    def item_name(self, index: int) -> str:
        """Return the name of one image, for messages."""

    def size_histogram(self) -> SizeHistogram:
        """Count sizes and channels from the file headers; broken images are skipped."""

    def load_pixels(self, index: int, target: tuple[int, int] | None) -> Pixels:
        """Decode one image to uint8 [H, W, C].

        A source may decode to any size of at least twice ``target`` (height, width) if that is
        faster, and to the original size otherwise.

        Raises:
            BrokenImageError: The image cannot be decoded.
        """


class EncodedSource:
    """Encoded image files; subclasses implement :meth:`read_bytes`."""

    def __init__(
        self,
        name: str,
        location: str,
        items: tuple[str, ...],
        labels: Labels | None = None,
        classes: tuple[str, ...] = (),
        ignored: int = 0,
    ) -> None:
        self.name, self.location, self.num_ignored = name, location, ignored
        self.item_names, self.labels, self.classes = items, labels, classes

    def __len__(self) -> int:
        return len(self.item_names)

    def item_name(self, index: int) -> str:
        return self.item_names[index]

    def read_bytes(self, index: int) -> bytes:
        """Return the encoded bytes of one image; raise BrokenImageError if that fails."""
        raise NotImplementedError

    def load_pixels(self, index: int, target: tuple[int, int] | None) -> Pixels:
        return decode(self.read_bytes(index), target)

    def size_histogram(self) -> SizeHistogram:
        histogram = SizeHistogram()
        for block in run_blocks(partial(read_headers, self), len(self), 256):
            add_headers(histogram, block)
        return histogram


def read_headers(source: EncodedSource, start: int, stop: int) -> list[tuple[int, int, int]]:
    """Return (height, width, channels) of each readable image from ``start`` to ``stop``."""
    headers = []
    for index in range(start, stop):
        try:
            headers.append(read_header(source.read_bytes(index)))
        except BrokenImageError:
            continue
    return headers


def add_headers(histogram: SizeHistogram, headers: list[tuple[int, int, int]]) -> None:
    """Add (height, width, channels) of images to a histogram."""
    histogram.sizes.update((height, width) for height, width, _ in headers)
    histogram.channels.update(channels for _, _, channels in headers)


@dataclass(frozen=True)
class ImageArrays:
    """Decoded images uint8 [N, H, W, C] with labels int64 [N]."""

    images: Pixels
    labels: Labels | None = None
    classes: tuple[str, ...] = ()


@dataclass
class ArraySource:
    """Images in one array, which is loaded on first use and never pickled."""

    name: str
    location: str
    digest: str
    load_arrays: Callable[[], ImageArrays]
    num_ignored: int = field(default=0, init=False)

    @cached_property
    def arrays(self) -> ImageArrays:
        return self.load_arrays()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "arrays"}

    def __len__(self) -> int:
        return len(self.arrays.images)

    @property
    def labels(self) -> Labels | None:
        return self.arrays.labels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.arrays.classes

    def content_digest(self) -> str:
        return self.digest

    def item_name(self, index: int) -> str:
        return f"#{index}"

    def size_histogram(self) -> SizeHistogram:
        count, height, width, channels = self.arrays.images.shape
        return SizeHistogram(Counter({(height, width): count}), Counter({channels: count}))

    def load_pixels(self, index: int, target: tuple[int, int] | None) -> Pixels:
        image: Pixels = self.arrays.images[index]
        return image


def encode_labels(
    values: NDArray[Any], names: tuple[str, ...] = ()
) -> tuple[Labels, tuple[str, ...]]:
    """Convert labels of any type to class indices int64 [N] and class names.

    A one-hot row becomes its index, and a row of zeros becomes -1 (unknown). Integers that index
    ``names`` are kept. Otherwise the sorted distinct values become the classes. Negative integers
    mean unknown.

    Raises:
        UserError: An image has several labels.
    """
    if values.ndim == 2 and values.shape[1] > 1:
        multiple = np.flatnonzero((values != 0).sum(1) > 1)
        if len(multiple):
            raise UserError(f"image {multiple[0]} has several labels; each image must have one")
        values = np.where((values != 0).any(1), (values != 0).argmax(1), -1)
    values = values.reshape(-1)
    if values.dtype.kind not in "iub":
        distinct, indices = np.unique(to_strings(values), return_inverse=True)
        return indices.astype(np.int64), tuple(str(name) for name in distinct)
    numbers = values.astype(np.int64)
    missing = numbers < 0
    if names and numbers.max(initial=-1) < len(names):
        return np.where(missing, -1, numbers), names
    distinct = np.unique(numbers[~missing])
    indices = np.searchsorted(distinct, numbers)
    return np.where(missing, -1, indices), tuple(str(value) for value in distinct)


def to_strings(values: NDArray[Any]) -> NDArray[np.str_]:
    """Convert an array to strings.

    Raises:
        UserError: The type has no text form, or the values are not valid characters.
    """
    if values.dtype.kind == "V":
        raise UserError(f"values of type {values.dtype} cannot be used as names")
    is_bytes = values.dtype.kind == "S"
    names = np.char.decode(values, "utf-8", "replace") if is_bytes else values.astype(str)
    # NumPy stores four bytes per character and does not validate them.
    codes = np.frombuffer(names.tobytes(), np.uint32)
    if codes.max(initial=0) > sys.maxunicode:
        raise UserError("names contain invalid characters")
    return names


@dataclass(frozen=True)
class SourceContext:
    """Arguments of built-in sources: cache folder, random seed, number of channels."""

    cache: Path
    seed: int = 0
    channels: int | None = None


def parse_options(text: str, what: str, valid: dict[str, bool]) -> dict[str, str]:
    """Parse options such as ``rgb,count=5000``.

    Args:
        text: The options, separated by commas.
        what: Name of the source, for messages.
        valid: Option names, and whether each takes a value.

    Raises:
        UserError: An unknown option, a missing value, or an unexpected value.
    """
    options = {}
    for part in filter(None, map(str.strip, text.split(","))):
        key, equals, value = part.partition("=")
        if key not in valid:
            raise unknown_name_error(f"option of {what}", key, valid)
        if valid[key] != bool(value) or bool(equals) != valid[key]:
            form = f"{key}=VALUE" if valid[key] else key
            raise UserError(f"option '{part}' of {what} must be written {form}")
        options[key] = value
    return options
