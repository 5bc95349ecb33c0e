"""What a source of images is, and how DATA on the command line names one."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from growgan.data.decode import BrokenImage, Pixels, decode, read_header
from growgan.data.parallel import run_blocks
from growgan.data.prepare import Survey
from growgan.errors import UserError, unknown

Labels = NDArray[np.int64]

KINDS: Final = "a folder, a zip, an .npz or IDX files"


class Source(Protocol):
    """Images that can be counted, named and decoded one by one. Sources are picklable."""

    name: str  # short, for the ledger
    location: str  # where it is, for people
    ignored: int  # files beside the images

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Labels | None:
        """Class index of each image, -1 where missing; None without classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""

    def content(self) -> str:
        """Return a digest that changes with the content, quick when nothing changed."""

    def item(self, index: int) -> str:
        """Name one image for messages."""

    def survey(self) -> Survey:
        """Count sizes and channels, from headers alone; broken images are left out."""

    def pixels(self, index: int, target: tuple[int, int] | None) -> Pixels:
        """Decode one image: uint8 [H, W, C] at its own size, near ``target`` where that helps.

        Raises BrokenImage.
        """


class EncodedSource:
    """Image files, wherever their bytes are: subclasses say how to ``read`` one."""

    def __init__(
        self,
        name: str,
        location: str,
        items: tuple[str, ...],
        labels: Labels | None = None,
        classes: tuple[str, ...] = (),
        ignored: int = 0,
    ) -> None:
        self.name, self.location, self.ignored = name, location, ignored
        self.items, self.labels, self.classes = items, labels, classes

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int) -> str:
        return self.items[index]

    def read(self, index: int) -> bytes:
        """Return one image's encoded bytes; raises BrokenImage."""
        raise NotImplementedError

    def pixels(self, index: int, target: tuple[int, int] | None) -> Pixels:
        return decode(self.read(index), target)

    def survey(self) -> Survey:
        survey = Survey()
        for block in run_blocks(partial(read_headers, self), len(self), 256):
            count_headers(survey, block)
        return survey


def read_headers(source: EncodedSource, start: int, stop: int) -> list[tuple[int, int, int]]:
    """Return (height, width, channels) of each readable image in a block."""
    headers = []
    for index in range(start, stop):
        try:
            headers.append(read_header(source.read(index)))
        except BrokenImage:
            continue
    return headers


def count_headers(survey: Survey, headers: list[tuple[int, int, int]]) -> None:
    """Add images' (height, width, channels) to a survey."""
    survey.sizes.update((height, width) for height, width, _ in headers)
    survey.channels.update(channels for _, _, channels in headers)


@dataclass(frozen=True)
class Arrays:
    """Decoded images uint8 [N, H, W, C] with labels int64 [N]."""

    images: Pixels
    labels: Labels | None = None
    classes: tuple[str, ...] = ()


@dataclass
class ArraySource:
    """Images that come as one array, loaded when first looked at and never pickled along."""

    name: str
    location: str
    digest: str
    load: Callable[[], Arrays]
    ignored: int = field(default=0, init=False)

    @cached_property
    def arrays(self) -> Arrays:
        return self.load()

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

    def content(self) -> str:
        return self.digest

    def item(self, index: int) -> str:
        return f"#{index}"

    def survey(self) -> Survey:
        count, height, width, channels = self.arrays.images.shape
        return Survey(Counter({(height, width): count}), Counter({channels: count}))

    def pixels(self, index: int, target: tuple[int, int] | None) -> Pixels:
        image: Pixels = self.arrays.images[index]
        return image


def name_classes(
    values: NDArray[Any], names: tuple[str, ...] = ()
) -> tuple[Labels, tuple[str, ...]]:
    """Turn labels of any kind into class indices and class names.

    One-hot rows become their index, rows of zeros -1. Integers that ``names`` covers stay;
    otherwise the distinct values become the classes in order. Negative integers mean that the
    label is missing: -1.

    Raises:
        UserError: an image has several labels.
    """
    if values.ndim == 2 and values.shape[1] > 1:
        several = np.flatnonzero((values != 0).sum(1) > 1)
        if len(several):
            raise UserError(f"image {several[0]} has several labels; give one for each image")
        values = np.where((values != 0).any(1), (values != 0).argmax(1), -1)
    values = values.reshape(-1)
    if values.dtype.kind not in "iub":
        found, indices = np.unique(as_names(values), return_inverse=True)
        return indices.astype(np.int64), tuple(str(name) for name in found)
    numbers = values.astype(np.int64)
    missing = numbers < 0
    if names and numbers.max(initial=-1) < len(names):
        return np.where(missing, -1, numbers), names
    found = np.unique(numbers[~missing])
    indices = np.searchsorted(found, numbers)
    return np.where(missing, -1, indices), tuple(str(value) for value in found)


def as_names(values: NDArray[Any]) -> NDArray[np.str_]:
    """Turn an array of any type into text; raises UserError for one that has none."""
    if values.dtype.kind == "V":
        raise UserError(f"values of type {values.dtype} are no names")
    is_bytes = values.dtype.kind == "S"
    names = np.char.decode(values, "utf-8", "replace") if is_bytes else values.astype(str)
    # Each character has four bytes, which numpy takes from a file as they are.
    codes = np.frombuffer(names.tobytes(), np.uint32)
    if codes.max(initial=0) > sys.maxunicode:
        raise UserError("names hold what are no characters")
    return names


@dataclass(frozen=True)
class Request:
    """What a named source may need to know beside its name."""

    cache: Path
    seed: int = 0
    channels: int | None = None


def open_source(data: str | Path, request: Request) -> Source:
    """Find what ``data`` names: a known name (with options after a colon) or a path.

    A known name wins over a path of that name; write ``./digits`` for a folder called so.
    Raises UserError for what is neither, and for what holds no images.
    """
    text = str(data)
    head, _, options = text.partition(":")
    if isinstance(data, str) and head in NAMES:
        return NAMES[head](options, request)
    path = Path(text).expanduser()
    if path.exists():
        return _open_path(path, request.cache)
    if isinstance(data, str) and text and not set(text) & set("/\\.~"):
        raise UserError(f"{unknown('DATA', head, [*NAMES, 'PATH'])}; and no file is called that")
    raise UserError(
        f"DATA '{text}' does not exist; give {KINDS}, or one of: {', '.join(sorted(NAMES))}"
    )


def _open_path(path: Path, cache: Path) -> Source:
    from growgan.data import archives, folder, idx, npz

    if path.is_dir():
        return idx.find_in(path, cache) or folder.open_folder(path, cache)
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return archives.open_zip(path, cache)
    if suffix == ".npz":
        return npz.open_npz(path, cache)
    if idx.is_idx(path):
        return idx.open_idx(path, cache)
    raise UserError(f"DATA '{path}' is not {KINDS}")


def _fashion_mnist(options: str, request: Request) -> Source:
    from growgan.data.fashion import open_fashion_mnist

    return open_fashion_mnist(options, request.cache)


def _digits(options: str, request: Request) -> Source:
    from growgan.data.digits import open_digits

    return open_digits(options)


def _glyphs(options: str, request: Request) -> Source:
    from growgan.data.glyphs import open_glyphs

    return open_glyphs(options, request.seed, request.channels)


def _hub(options: str, request: Request) -> Source:
    from growgan.data.hub import open_hub

    return open_hub(options)


NAMES: Final[dict[str, Callable[[str, Request], Source]]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "glyphs": _glyphs,
    "hub": _hub,
}


def parse_options(text: str, what: str, valid: dict[str, bool]) -> dict[str, str]:
    """Read ``rgb,count=5000``: ``valid`` says of each option whether it takes a value.

    Raises UserError for unknown options, missing values, and values where none belongs.
    """
    options = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = part.partition("=")
        if key not in valid:
            raise unknown(f"option of {what}", key, valid)
        if valid[key] != bool(value) or bool(equals) != valid[key]:
            form = f"{key}=VALUE" if valid[key] else key
            raise UserError(f"option '{part}' of {what} must be written {form}")
        options[key] = value
    return options
