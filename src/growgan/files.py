"""Atomic writes and checksums of files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import uuid4

STALE_SECONDS: Final = 60.0  # a temporary file not written to for this long is stale


def fsync_file(path: Path) -> None:
    """Flush a file to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def fsync_dir(path: Path) -> None:
    """Flush renames in a folder to disk, on systems that support it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that it always holds either all of the old or all of the new content."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # temporary files are private by default
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


@contextlib.contextmanager
def atomic_write(path: Path, *, is_directory: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` if the block succeeds.

    The content is flushed to disk before the rename. If the block fails, the temporary file or
    folder is deleted.

    Args:
        path: The final path. An existing file is replaced; an existing folder must be empty.
        is_directory: Whether to write a folder. The temporary folder is created before the block.

    Raises:
        OSError: The parent folder cannot be created or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The random part separates processes on other machines that write to the same disk. The suffix
    # stays last, because writers such as numpy append their own to other names.
    part = path.with_name(f".{path.stem}.{uuid4().hex[:12]}.part{path.suffix}")
    try:
        if is_directory:
            part.mkdir()
        yield part
        if not is_directory:
            fsync_file(part)
        elif hasattr(os, "sync"):
            os.sync()  # flushing thousands of images one by one would take minutes
        part.replace(path)
        fsync_dir(path.parent)
    except BaseException:
        if is_directory:
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``folder`` once all its files are on disk.

    If the block fails, ``folder`` is unchanged and the next call deletes the partial folder.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for path in partial.iterdir():
        fsync_file(path)
    fsync_dir(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    fsync_dir(folder.parent)


def remove_stale_files(folder: Path, *patterns: str) -> None:
    """Delete temporary files that killed processes left behind.

    A file that has not been written to for :data:`STALE_SECONDS` is stale.
    """
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        with contextlib.suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(*parts: object) -> str:
    """Return the SHA-256 of the JSON form of ``parts`` in hexadecimal."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
