"""The memory-mapped store of decoded images, which is written completely or not at all."""

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

from growgan.data.base import Labels, Source
from growgan.data.cache import cache_error, make_cache_dir
from growgan.data.decode import BrokenImageError, Pixels
from growgan.data.parallel import run_blocks
from growgan.data.prepare import PreprocessPlan, Size, preprocess
from growgan.errors import UserError
from growgan.files import fsync_dir, hash_json

STORE_VERSION: Final = 2
BLOCK_BYTES: Final = 4 << 20
BLOCK_IMAGES: Final = 256
TEMPORARY_PREFIX: Final = ".tmp-"  # prefix of a store that is being written


@dataclass(frozen=True)
class DecodedBlock:
    """The result of decoding a block of images.

    Attributes:
        images: The readable images, uint8 [n, C, H, W].
        indices: Their indices in the source.
        digests: Digests of their decoded pixels before resizing.
        broken: Index and reason of each image that cannot be decoded.
    """

    images: Pixels
    indices: list[int]
    digests: list[bytes]
    broken: list[tuple[int, str]]


def decode_block(source: Source, plan: PreprocessPlan, start: int, stop: int) -> DecodedBlock:
    """Decode and preprocess images ``start`` to ``stop`` of a source."""
    images, indices, digests, broken = [], [], [], []
    for index in range(start, stop):
        try:
            pixels = source.load_pixels(index, plan.resolution)
        except BrokenImageError as error:
            broken.append((index, str(error)))
            continue
        images.append(preprocess(pixels, plan))
        indices.append(index)
        digests.append(pixel_digest(pixels))
    shape = (len(images), plan.channels, *plan.resolution)
    stacked = np.stack(images) if images else np.empty(shape, np.uint8)
    return DecodedBlock(stacked, indices, digests, broken)


def pixel_digest(pixels: Pixels) -> bytes:
    """Return a digest of shape and pixels."""
    shape = ",".join(map(str, pixels.shape)).encode()
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, key=shape).digest()


@dataclass(frozen=True)
class StoreMetadata:
    """Metadata of a store."""

    fingerprint: str  # SHA-256 of pixels, labels and classes
    num_files: int  # image files, including broken ones
    classes: tuple[str, ...]
    broken: tuple[str, ...]  # "name (reason)"
    duplicates: tuple[str, ...]  # "name (same as name)"


@dataclass(frozen=True)
class ImageStore:
    """An open store: images uint8 [N, C, H, W] on disk, labels int64 [N] in memory."""

    images: NDArray[np.uint8]
    labels: Labels | None
    metadata: StoreMetadata


def check_num_broken(broken: tuple[str, ...], total: int, limit: float) -> None:
    """Raise a UserError if more than the fraction ``limit`` of the images is broken."""
    if len(broken) > limit * total:
        names = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        raise UserError(
            f"{len(broken):,} of {total:,} images are broken, but at most {100 * limit:g} % are "
            f"allowed: {names}; remove them or raise --max-broken"
        )
    if len(broken) == total:
        raise UserError("no image can be read")


def open_store(folder: Path) -> ImageStore | None:
    """Open a store; return None if there is none of this version or it is damaged.

    The whole store is read and compared with its fingerprint, at about 1.7 GB/s. For a damaged
    store, a warning is issued and the caller writes it again.
    """
    try:
        record = json.loads((folder / "meta.json").read_bytes())
        metadata = StoreMetadata(
            record["fingerprint"],
            record["num_files"],
            tuple(record["classes"]),
            tuple(record["broken"]),
            tuple(record["duplicates"]),
        )
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels_file = folder / "labels.npy"
        labels = np.load(labels_file) if labels_file.exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    digest = fingerprint(images, labels, metadata.classes)
    if images.dtype != np.uint8 or digest != metadata.fingerprint:
        warnings.warn(f"cache '{folder}' is damaged; the images are decoded again", stacklevel=3)
        return None
    return ImageStore(images, labels, metadata)


def fingerprint(images: NDArray[np.uint8], labels: Labels | None, classes: tuple[str, ...]) -> str:
    """Return the SHA-256 of images uint8 [N, C, H, W], labels and classes."""
    hasher = hashlib.sha256()
    for start in range(0, len(images), BLOCK_IMAGES):
        hasher.update(np.ascontiguousarray(images[start : start + BLOCK_IMAGES]).data)
    hasher.update(_metadata_bytes(images.shape, classes, labels))
    return hasher.hexdigest()


def _metadata_bytes(shape: Sequence[int], classes: tuple[str, ...], labels: Labels | None) -> bytes:
    values = [list(shape), classes, None if labels is None else labels.tolist()]
    return json.dumps(values).encode()


def build_store(source: Source, plan: PreprocessPlan, folder: Path, max_broken: float) -> None:
    """Decode a source into ``folder``, which appears only when it is complete.

    Raises:
        UserError: Too many images are broken, or the cache cannot be written.
    """
    make_cache_dir(folder.parent)
    try:
        _remove_orphans(folder.parent)
        with _temporary_dir(folder) as temporary:
            metadata = _write_images(source, plan, temporary)
            check_num_broken(metadata.broken, metadata.num_files, max_broken)
            _write_synced(temporary / "meta.json", json.dumps(asdict(metadata)).encode())
            fsync_dir(temporary)
            _publish(temporary, folder)
    except OSError as error:
        raise cache_error(folder.parent, error) from error


@contextlib.contextmanager
def _temporary_dir(folder: Path) -> Iterator[Path]:
    """Yield a new temporary folder next to ``folder``, locked while it is in use."""
    path = folder.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    with _lock_temporary(path):
        try:
            path.mkdir()
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _lock_temporary(path: Path) -> Iterator[None]:
    """Hold the lock of a temporary folder; raise Timeout if a live process holds it."""
    lock = FileLock(f"{path}.lock")
    with lock.acquire(timeout=0):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()


def _remove_orphans(folder: Path) -> None:
    """Delete the temporary folders of killed processes."""
    for path in {path.with_suffix("") for path in folder.glob(f"{TEMPORARY_PREFIX}*")}:
        with contextlib.suppress(Timeout), _lock_temporary(path):
            shutil.rmtree(path, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    """Rename the folder, unless another process has written the same store first."""
    if open_store(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(temporary, folder)
    except OSError:
        if open_store(folder) is None:
            raise
    fsync_dir(folder.parent)


def _write_images(source: Source, plan: PreprocessPlan, folder: Path) -> StoreMetadata:
    hasher = hashlib.sha256()
    kept_indices: list[int] = []
    broken: list[str] = []
    duplicates = DuplicateFinder(source)
    size = block_size(plan)
    with (folder / "images.npy").open("wb") as file:
        header_size = _write_header(file, len(source), plan)
        for block in run_blocks(partial(decode_block, source, plan), len(source), size):
            data = block.images.tobytes()
            file.write(data)
            hasher.update(data)
            kept_indices += block.indices
            broken += [f"{source.item_name(index)} ({reason})" for index, reason in block.broken]
            duplicates.add(block.indices, block.digests)
        file.seek(0)
        if _write_header(file, len(kept_indices), plan) != header_size:
            raise RuntimeError("the size of the .npy header changed")
        file.flush()
        os.fsync(file.fileno())
    labels = (
        None if source.labels is None else source.labels[np.array(kept_indices, dtype=np.int64)]
    )
    if labels is not None:
        with (folder / "labels.npy").open("wb") as file:
            np.save(file, labels)
            file.flush()
            os.fsync(file.fileno())
    shape = (len(kept_indices), plan.channels, *plan.resolution)
    hasher.update(_metadata_bytes(shape, source.classes, labels))
    return StoreMetadata(
        hasher.hexdigest(), len(source), source.classes, tuple(broken), duplicates.describe()
    )


def block_size(plan: PreprocessPlan) -> int:
    """Return the number of images to decode at once, about 4 MiB."""
    height, width = plan.resolution
    return max(1, min(BLOCK_IMAGES, BLOCK_BYTES // (height * width * plan.channels)))


class DuplicateFinder:
    """Finds images with exactly the pixels of an earlier one."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._first: dict[bytes, int] = {}
        self._pairs: list[tuple[int, int]] = []

    def add(self, indices: list[int], digests: list[bytes]) -> None:
        """Add images by their pixel digests."""
        for index, digest in zip(indices, digests, strict=True):
            first = self._first.setdefault(digest, index)
            if first != index:
                self._pairs.append((index, first))

    def describe(self) -> tuple[str, ...]:
        """Return each duplicate with the name of the first image it equals."""
        item = self._source.item_name
        return tuple(f"{item(index)} (same as {item(first)})" for index, first in self._pairs)


def _write_header(file: IO[bytes], count: int, plan: PreprocessPlan) -> int:
    """Write the .npy header for ``count`` images; its size does not depend on the count."""
    shape = (count, plan.channels, *plan.resolution)
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def store_key(content: str, resolution: Size | None, channels: int | None, fit: str) -> str:
    """Return the folder name of a store, from content and preprocessing."""
    return hash_json(STORE_VERSION, content, resolution, channels, fit)[:32]
