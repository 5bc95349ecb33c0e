"""A run's folder: whether it is free, what a run begins with there, and whether that is whole."""

from __future__ import annotations

import io
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from growgan.config import Settings
from growgan.data import ImageSet
from growgan.data.files import replace_file, sweep
from growgan.errors import UserError
from growgan.growth.budget import Budget
from growgan.growth.executor import SHEET
from growgan.growth.ledger import Ledger
from growgan.growth.lock import LOCK, OWNER
from growgan.growth.model import GIVEN
from growgan.growth.origin import ORIGIN, keep_origin
from growgan.growth.scoring import batches_of
from growgan.plain import copy_of, digest
from growgan.training.runtime import machine

LEDGER, CONFIG, DATA, CANDIDATES = "ledger.jsonl", "config.yaml", "data.json", "candidates"
BEGUN = (CONFIG, DATA, GIVEN)  # what stays as it is from the run's beginning to its end
TEMPORARIES = (".tmp-*", ".*.part*", f"{CANDIDATES}/*/.*.part*")


def begun(out: Path) -> dict[str, Any] | None:
    """Return the start event of the run in ``out``, None where none has begun.

    Raises:
        UserError: the ledger is damaged.
    """
    return next(Ledger(out / LEDGER).read(), None)


def is_free(out: Path) -> bool:
    """Return whether ``out``, where no run has begun, holds nothing but what a start may leave.

    A start that was cut short leaves a lock, and files that are made beside an empty folder for
    candidates; such files alone are somebody's own.
    """
    if not out.exists():
        return True
    if not out.is_dir():
        return False
    names = {path.name for path in out.iterdir() if not path.name.startswith(".tmp-")}
    names -= {LOCK, OWNER}
    if CANDIDATES not in names:
        return not names
    made = {CANDIDATES, ORIGIN, *BEGUN, LEDGER, copy_of(out / LEDGER).name}
    return names <= made and (out / CANDIDATES).is_dir() and not any((out / CANDIDATES).iterdir())


def check_begun(out: Path, began: dict[str, Any]) -> None:
    """Check the ledger, and that what the run began with is as it was.

    Raises:
        UserError: it is not; the file is named.
    """
    Ledger(out / LEDGER).check()
    sums = began.get("files", {})
    for path in (out / name for name in BEGUN if name in sums):
        try:
            same = digest(path) == sums[path.name]
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
        if not same and path.name == CONFIG:
            raise UserError(
                f"'{path}' is not as the run began with it, and settings cannot change within a "
                "run: put it back, or start another run with another --out and --set key=value"
            )
        if not same:
            raise UserError(f"'{path}' is damaged: it is not what the run began with")


def prepare(
    out: Path,
    settings: Settings,
    budget: Budget,
    data: ImageSet,
    began: dict[str, Any] | None,
    origin: Path | None = None,
) -> None:
    """Write what a new run begins with, or that it goes on; sweep up what an earlier one left.

    Raises:
        UserError: ``out`` cannot be written.
    """
    ledger = Ledger(out / LEDGER)
    try:
        sweep(out, *TEMPORARIES)
        if began is not None:
            ledger.mend()
            ledger.append({"event": "resume", "time": time.time(), "budget": budget.to_json()})
            return
        ledger.clear()
        facts = data.describe()
        (out / CANDIDATES).mkdir(parents=True, exist_ok=True)
        if origin is not None:
            keep_origin(origin, out)
        if data.given is not None:
            replace_file(out / GIVEN, _examples(data, settings))
        replace_file(out / CONFIG, settings.to_yaml().encode())
        replace_file(out / DATA, json.dumps(facts, indent=1).encode())
        sums = {name: digest(out / name) for name in BEGUN if (out / name).exists()}
        ledger.append({**_start(settings, budget, facts), "files": sums})
    except OSError as error:
        raise UserError(f"cannot write to '{out}': {error.strerror or error}") from error


def _start(settings: Settings, budget: Budget, data: dict[str, Any]) -> dict[str, Any]:
    """Return what the ledger's first line says, but for the files' digests."""
    return {
        "event": "start",
        "time": time.time(),
        "version": version("growgan"),
        "policy": settings.policy,
        "preset": settings.preset,
        "budget": budget.to_json(),
        "seed": settings.seed,
        "resolution": list(settings.resolution or ()),
        "data": {key: data.get(key) for key in ("name", "fingerprint", "count", "channels")},
        "machine": machine(),
    }


def _examples(data: ImageSet, settings: Settings) -> bytes:
    """Return a file of images that samples are made from: new ones where some are held out."""
    batches, file = batches_of(data, settings), io.BytesIO()
    rows = batches.held_out if len(batches.held_out) else np.arange(len(data))
    assert data.given is not None
    given, truth = (each[rows[:SHEET]].transpose(0, 2, 3, 1) for each in (data.given, data.images))
    labels = np.full(len(data), -1) if data.labels is None else data.labels
    np.savez_compressed(file, given=given, truth=truth, labels=labels[rows[:SHEET]])
    return file.getvalue()
