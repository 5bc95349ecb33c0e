"""The cache folder, and an index of files that have already been read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from growgan.errors import UserError
from growgan.files import file_sha256, remove_stale_files, replace_file

MTIME_RESOLUTION_NS: Final = 1_000_000_000  # a younger file may change without a new time stamp


def default_cache() -> Path:
    """Return ``$GROWGAN_CACHE``, or ``~/.cache/growgan``."""
    path = os.environ.get("GROWGAN_CACHE")
    return Path(path).expanduser() if path else Path.home() / ".cache" / "growgan"


def make_cache_dir(path: Path) -> Path:
    """Create ``path`` and its parents.

    Raises:
        UserError: The cache cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(path, error) from error
    return path


def cache_error(path: Path, error: OSError) -> UserError:
    """Return the error for a cache that cannot be written."""
    reason = error.strerror or type(error).__name__
    return UserError(f"cache '{path}' cannot be written ({reason}); set GROWGAN_CACHE to another")


def write_cache_file(path: Path, data: bytes) -> None:
    """Write a file of the cache atomically.

    Raises:
        UserError: The cache cannot be written.
    """
    make_cache_dir(path.parent)
    remove_stale_files(path.parent, ".tmp-*")
    try:
        replace_file(path, data)
    except OSError as error:
        raise cache_error(path.parent, error) from error


def file_stat_key(status: os.stat_result) -> list[int]:
    """Return size in bytes, mtime and ctime in ns. They change when the content does."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class FileIndex:
    """Facts about each file of one source, valid while the file is unchanged.

    Each source has one JSON file under ``CACHE/index``: name -> [size, mtime, ctime, *facts].
    """

    def __init__(self, cache: Path, location: Path) -> None:
        name = hashlib.sha256(os.fsencode(location.resolve())).hexdigest()[:32]
        self._path = cache / "index" / f"{name}.json"
        self._rows: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            rows = json.loads(self._path.read_bytes())
            if isinstance(rows, dict):
                self._rows = rows

    def lookup(self, name: str, now: list[int]) -> list[Any] | None:
        """Return the stored facts of a file, or None if there are none or it has changed."""
        row = self._rows.get(name)
        return row[3:] if isinstance(row, list) and row[:3] == now else None

    def save(self, rows: Mapping[str, list[Any]], began_ns: int) -> None:
        """Replace the index by ``rows``, except for files modified just before reading began."""
        stable_rows = {
            name: row for name, row in rows.items() if row[1] < began_ns - MTIME_RESOLUTION_NS
        }
        if stable_rows != self._rows:
            write_cache_file(self._path, json.dumps(stable_rows, separators=(",", ":")).encode())


def cached_file_sha256(path: Path, cache: Path) -> str:
    """Return the SHA-256 of a file, from the index if the file is unchanged.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        index, began, now = FileIndex(cache, path), time.time_ns(), file_stat_key(path.stat())
        facts = index.lookup(path.name, now)
        if facts:
            return str(facts[0])
        digest = file_sha256(path)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror})") from error
    index.save({path.name: [*now, digest]}, began)
    return digest
