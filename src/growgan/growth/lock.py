"""One process at a time works in a run directory."""

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
from growgan.plain import parse

LOCK, OWNER = ".lock", ".owner"  # what is held, and who holds it


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the run directory ``out``, which is made if need be, as long as the context lasts.

    The system frees it however the process ends, so nothing has to be cleaned up after a crash.

    Raises:
        UserError: another process holds it, which is named; or ``out`` cannot be written.
    """
    lock = FileLock(out / LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"'{out}' is in use by {_owner(out)}; wait for it, or stop it") from None
    except OSError as error:
        raise UserError(f"cannot write to '{out}': {error.strerror or error}") from error
    try:
        me = {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        (out / OWNER).write_text(json.dumps(me))
        yield
    finally:
        with suppress(OSError):
            (out / OWNER).unlink()
            (out / LOCK).unlink()
        lock.release()


def _owner(out: Path) -> str:
    try:
        owner = parse((out / OWNER).read_bytes())
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner["since"]))
        return f"process {owner['process']} on {owner['host']} since {since}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "another process"
