"""A lock on the run directory: only one process at a time works in it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from growgan.errors import UserError
from growgan.jsonl import parse_json

LOCK_FILE = ".lock"
LOCK_OWNER_FILE = ".owner"  # JSON: the process that holds the lock


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Create the run directory if necessary, and hold its lock within the context.

    The operating system releases the lock however the process ends, so nothing has to be cleaned up
    after a crash.

    Raises:
        UserError: Another process holds the lock, or the directory is not writable.
    """
    lock = FileLock(run_dir / LOCK_FILE)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"'{run_dir}' is in use by {_describe_owner(run_dir)}; wait for it, or stop it"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write to '{run_dir}': {error.strerror or error}") from error
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started_at": time.time()}
        (run_dir / LOCK_OWNER_FILE).write_text(json.dumps(owner))
        yield
    finally:
        with suppress(OSError):
            (run_dir / LOCK_OWNER_FILE).unlink()
            (run_dir / LOCK_FILE).unlink()
        lock.release()


def _describe_owner(run_dir: Path) -> str:
    try:
        owner = parse_json((run_dir / LOCK_OWNER_FILE).read_bytes())
        started_at = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner["started_at"]))
        return f"process {owner['pid']} on {owner['host']} since {started_at}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "another process"
