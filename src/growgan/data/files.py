"""The cache folder: atomic writes, and an index that spares unchanged files a second reading."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from growgan.errors import UserError

RACY_NS: Final = 1_000_000_000  # a file this young may change again within its time stamp
CHUNK: Final = 1 << 20
STALE: Final = 60.0  # seconds since a temporary file was last written to


def default_cache() -> Path:
    """Return ``$GROWGAN_CACHE``, or ``~/.cache/growgan``."""
    chosen = os.environ.get("GROWGAN_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "growgan"


def make_folder(path: Path) -> Path:
    """Create ``path`` with its parents; raises UserError where the cache cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(path, error) from error
    return path


def cache_error(path: Path, error: OSError) -> UserError:
    """Say that the cache cannot be written, and how to choose another."""
    why = error.strerror or type(error).__name__
    return UserError(f"cache '{path}' cannot be written ({why}); set GROWGAN_CACHE to another")


def sync_file(path: Path) -> None:
    """Wait until what was written to ``path`` is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make renames within ``path`` durable, where the system lets folders be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` into the cache; raises UserError where it cannot be written."""
    make_folder(path.parent)
    sweep(path.parent, ".tmp-*")
    try:
        replace_file(path, data)
    except OSError as error:
        raise cache_error(path.parent, error) from error


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either its old content or all of the new."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # a temporary file is its owner's alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sweep(folder: Path, *patterns: str) -> None:
    """Delete what processes that were killed have left of the small files they were writing.

    Whatever is older than :data:`STALE` seconds is such a file: a live process is done by then.
    """
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        with contextlib.suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def stamp(status: os.stat_result) -> list[int]:
    """Return what changes whenever a file's content does: size, mtime and ctime in ns."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class StatIndex:
    """What was learnt from each file of one source, trusted while the file's stamp is unchanged.

    One JSON file a source, under ``CACHE/index``: name -> [size, mtime, ctime, *facts].
    """

    def __init__(self, cache: Path, location: Path) -> None:
        name = hashlib.sha256(os.fsencode(location.resolve())).hexdigest()[:32]
        self._path = cache / "index" / f"{name}.json"
        self._rows: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            rows = json.loads(self._path.read_bytes())
            if isinstance(rows, dict):
                self._rows = rows

    def known(self, name: str, now: list[int]) -> list[Any] | None:
        """Return the facts kept for ``name``, or None when there are none or it has changed."""
        row = self._rows.get(name)
        return row[3:] if isinstance(row, list) and row[:3] == now else None

    def save(self, rows: Mapping[str, list[Any]], began_ns: int) -> None:
        """Keep ``rows`` alone, less those of files modified just before reading began."""
        kept = {name: row for name, row in rows.items() if row[1] < began_ns - RACY_NS}
        if kept != self._rows:
            write_atomic(self._path, json.dumps(kept, separators=(",", ":")).encode())


def file_digest(path: Path, cache: Path) -> str:
    """Return the SHA-256 of a file's content, from the index while its stamp is unchanged."""
    try:
        index, began, now = StatIndex(cache, path), time.time_ns(), stamp(path.stat())
        known = index.known(path.name, now)
        if known:
            return str(known[0])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror})") from error
    index.save({path.name: [*now, digest]}, began)
    return digest


def combine(*parts: object) -> str:
    """Return one SHA-256 over the parts, kept apart by their JSON form."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
