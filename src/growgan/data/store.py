"""The memory-mapped store: every image of a source decoded once, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from growgan.data.decode import BrokenImage, Pixels
from growgan.data.files import cache_error, make_folder, sync_folder
from growgan.data.parallel import run_blocks
from growgan.data.prepare import Plan, Size, prepare
from growgan.data.sources import Labels, Source
from growgan.errors import UserError

VERSION: Final = 1
BLOCK_BYTES: Final = 4 << 20
BLOCK_IMAGES: Final = 256
TEMPORARY: Final = ".tmp-"  # begins the name of a store that is being made


@dataclass(frozen=True)
class Block:
    """What came of a run of images: pixels [n, C, H, W] of the good ones, and their indices."""

    images: Pixels
    indices: list[int]
    digests: list[bytes]  # of the pixels as decoded, before any resizing
    broken: list[tuple[int, str]]


def prepare_block(source: Source, plan: Plan, start: int, stop: int) -> Block:
    """Decode and prepare images ``start`` to ``stop`` of a source."""
    images, indices, digests, broken = [], [], [], []
    for index in range(start, stop):
        try:
            pixels = source.pixels(index, plan.resolution)
        except BrokenImage as error:
            broken.append((index, str(error)))
            continue
        images.append(prepare(pixels, plan))
        indices.append(index)
        digests.append(pixel_digest(pixels))
    shape = (len(images), plan.channels, *plan.resolution)
    stacked = np.stack(images) if images else np.empty(shape, np.uint8)
    return Block(stacked, indices, digests, broken)


def pixel_digest(pixels: Pixels) -> bytes:
    """Return a digest of an image's shape and pixels."""
    shape = ",".join(map(str, pixels.shape)).encode()
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, key=shape).digest()


@dataclass(frozen=True)
class Facts:
    """What is kept beside the pixels of a store."""

    fingerprint: str  # of pixels, labels and classes: the same images have the same one
    total: int  # images looked at, broken ones included
    classes: tuple[str, ...]
    broken: tuple[str, ...]  # "name (why)"
    duplicates: tuple[str, ...]  # "name (same as name)"


@dataclass(frozen=True)
class Store:
    """An opened store: uint8 [N, C, H, W] on disk, labels in memory."""

    images: NDArray[np.uint8]
    labels: Labels | None
    facts: Facts


def check_broken(broken: tuple[str, ...], total: int, limit: float) -> None:
    """Raise UserError when more than the share ``limit`` of all images is broken."""
    if len(broken) > limit * total:
        names = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        raise UserError(
            f"{len(broken):,} of {total:,} images are broken, more than the {100 * limit:g} % "
            f"allowed: {names}; remove them or raise --max-broken"
        )
    if len(broken) == total:
        raise UserError("none of the images can be read")


def open_store(folder: Path) -> Store | None:
    """Open a finished store; None where there is none of this version, or a damaged one.

    All of it is read and compared with its fingerprint, at 1.7 GB/s. A store that is no longer
    what was written is made again, with a warning that says so.
    """
    try:
        record = json.loads((folder / "meta.json").read_bytes())
        facts = Facts(
            record["fingerprint"],
            record["total"],
            tuple(record["classes"]),
            tuple(record["broken"]),
            tuple(record["duplicates"]),
        )
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels_file = folder / "labels.npy"
        labels = np.load(labels_file) if labels_file.exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = fingerprint(images, labels, facts.classes)
    if images.dtype != np.uint8 or found != facts.fingerprint:
        warnings.warn(f"cache '{folder}' is damaged; its images are read anew", stacklevel=3)
        return None
    return Store(images, labels, facts)


def fingerprint(images: NDArray[np.uint8], labels: Labels | None, classes: tuple[str, ...]) -> str:
    """Return the SHA-256 of images uint8 [N, C, H, W], labels and classes."""
    hasher = hashlib.sha256()
    for start in range(0, len(images), BLOCK_IMAGES):
        hasher.update(np.ascontiguousarray(images[start : start + BLOCK_IMAGES]).data)
    hasher.update(_told(images.shape, classes, labels))
    return hasher.hexdigest()


def _told(shape: Sequence[int], classes: tuple[str, ...], labels: Labels | None) -> bytes:
    told = [list(shape), classes, None if labels is None else labels.tolist()]
    return json.dumps(told).encode()


def build_store(source: Source, plan: Plan, folder: Path, max_broken: float) -> None:
    """Decode a source into ``folder``, which appears only when complete.

    Raises UserError when too many images are broken or the cache cannot be written.
    """
    make_folder(folder.parent)
    try:
        _sweep(folder.parent)
        with _temporary(folder) as temporary:
            facts = _fill(source, plan, temporary)
            check_broken(facts.broken, facts.total, max_broken)
            _save(temporary / "meta.json", json.dumps(asdict(facts)).encode())
            sync_folder(temporary)
            _publish(temporary, folder)
    except OSError as error:
        raise cache_error(folder.parent, error) from error


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside ``folder``, with a lock that is held as long as it is in use."""
    path = folder.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    with _holding(path):
        try:
            path.mkdir()
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _holding(path: Path) -> Iterator[None]:
    """Hold the lock of a temporary folder; raise Timeout where a live process does."""
    lock = FileLock(f"{path}.lock")
    with lock.acquire(timeout=0):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()


def _sweep(folder: Path) -> None:
    """Delete the temporary folders of processes that were killed, as large as a dataset each."""
    for path in {found.with_suffix("") for found in folder.glob(f"{TEMPORARY}*")}:
        with contextlib.suppress(Timeout), _holding(path):
            shutil.rmtree(path, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    """Rename into place; a run beside this one may have got there first with the same."""
    if open_store(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(temporary, folder)
    except OSError:
        if open_store(folder) is None:
            raise
    sync_folder(folder.parent)


def _fill(source: Source, plan: Plan, folder: Path) -> Facts:
    hasher = hashlib.sha256()
    kept: list[int] = []
    broken: list[str] = []
    repeats = Repeats(source)
    size = block_size(plan)
    with (folder / "images.npy").open("wb") as file:
        begin = _write_header(file, len(source), plan)
        for block in run_blocks(partial(prepare_block, source, plan), len(source), size):
            data = block.images.tobytes()
            file.write(data)
            hasher.update(data)
            kept += block.indices
            broken += [f"{source.item(index)} ({why})" for index, why in block.broken]
            repeats.add(block.indices, block.digests)
        file.seek(0)
        if _write_header(file, len(kept), plan) != begin:
            raise RuntimeError("the .npy header changed its size")
        file.flush()
        os.fsync(file.fileno())
    labels = None if source.labels is None else source.labels[np.array(kept, dtype=np.int64)]
    if labels is not None:
        with (folder / "labels.npy").open("wb") as file:
            np.save(file, labels)
            file.flush()
            os.fsync(file.fileno())
    shape = (len(kept), plan.channels, *plan.resolution)
    hasher.update(_told(shape, source.classes, labels))
    return Facts(hasher.hexdigest(), len(source), source.classes, tuple(broken), repeats.listed())


def block_size(plan: Plan) -> int:
    """Return how many images to decode at once: about 4 MiB of them."""
    height, width = plan.resolution
    return max(1, min(BLOCK_IMAGES, BLOCK_BYTES // (height * width * plan.channels)))


class Repeats:
    """Which images have the very pixels of an earlier one."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._first: dict[bytes, int] = {}
        self._pairs: list[tuple[int, int]] = []

    def add(self, indices: list[int], digests: list[bytes]) -> None:
        """Take note of images by their pixel digests."""
        for index, digest in zip(indices, digests, strict=True):
            first = self._first.setdefault(digest, index)
            if first != index:
                self._pairs.append((index, first))

    def listed(self) -> tuple[str, ...]:
        """Name each repeat with the first image that has its pixels."""
        item = self._source.item
        return tuple(f"{item(index)} (same as {item(first)})" for index, first in self._pairs)


def _write_header(file: IO[bytes], count: int, plan: Plan) -> int:
    """Write the .npy header for ``count`` images; NumPy pads it alike for every count."""
    shape = (count, plan.channels, *plan.resolution)
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _save(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def store_key(content: str, resolution: Size | None, channels: int | None, fit: str) -> str:
    """Name the store of a source's content, prepared as asked."""
    asked = json.dumps([VERSION, content, resolution, channels, fit])
    return hashlib.sha256(asked.encode()).hexdigest()[:32]
