"""The run directory: its files, whether it is available for a new run, and whether it is intact."""

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
from growgan.errors import UserError
from growgan.execution.scoring import build_batches
from growgan.execution.trainer import SAMPLE_SHEET_IMAGES
from growgan.execution.warm_start import PRETRAINED_FOLDER, copy_pretrained_checkpoint
from growgan.files import file_sha256, remove_stale_files, replace_file
from growgan.jsonl import LEDGER_FORMAT, backup_path, check_ledger_format
from growgan.run.ledger import Ledger
from growgan.run.lock import LOCK_FILE, LOCK_OWNER_FILE
from growgan.sampling.trained_generator import SOURCE_IMAGES_FILE
from growgan.search.budget import Budget
from growgan.training.runtime import describe_machine

LEDGER_FILE = "ledger.jsonl"
CONFIG_FILE = "config.yaml"
DATA_FILE = "data.json"
STATS_FILE = "stats.jsonl"
REPORT_FILE = "report.html"
EXTRACTOR_FILE = "extractor.safetensors"
CANDIDATES_DIR = "candidates"
SAMPLE_SHEET_FILE = "samples.png"  # in the folder of a candidate
IMMUTABLE_FILES = (CONFIG_FILE, DATA_FILE, SOURCE_IMAGES_FILE)  # written when the run starts
TEMPORARY_PATTERNS = (".tmp-*", ".*.part*", f"{CANDIDATES_DIR}/*/.*.part*")


def candidate_dir(run_dir: Path, candidate_id: str) -> Path:
    """Return the folder of a candidate."""
    return run_dir / CANDIDATES_DIR / candidate_id


def read_start_event(run_dir: Path) -> dict[str, Any] | None:
    """Return the start event of the run in ``run_dir``, None if no run has started there.

    Raises:
        UserError: The ledger is damaged, or the run has another format.
    """
    start_event = next(Ledger(run_dir / LEDGER_FILE).read(), None)
    if start_event is not None:
        check_ledger_format(run_dir, start_event)
    return start_event


def check_run_dir(run_dir: Path, data: ImageSet | None, *, resume: bool) -> dict[str, Any] | None:
    """Check that a run can start or resume in ``run_dir``.

    Args:
        run_dir: The run directory, which need not exist.
        data: The training images. None if they are not loaded yet; then a run is not checked
            against them.
        resume: Whether to resume a run. If false, the folder must not hold one.

    Returns:
        The start event of the run to resume, or None for a new run.

    Raises:
        UserError: There is no run to resume, or already is one; the run is damaged or has other
            data; or the folder has other files.
    """
    start_event = read_start_event(run_dir)
    if start_event is None:
        available = is_available(run_dir)
        if resume:
            hint = "; leave out --resume to start one" if available else ""
            raise UserError(f"there is no run to resume in '{run_dir}'{hint}")
        if not available:
            raise UserError(f"'{run_dir}' is not an empty folder; choose another --out")
        return None
    if not resume:
        raise UserError(f"'{run_dir}' already holds a run; add --resume, or choose another --out")
    _verify_run_files(run_dir, start_event)
    if data is not None:
        _check_same_data(run_dir, start_event, data)
    return start_event


def is_available(run_dir: Path) -> bool:
    """Return whether a new run may use ``run_dir``, in which no run has started.

    It may be missing or empty, or hold what an interrupted start leaves: a lock, or files of a run
    beside an empty folder for candidates. Without that folder, such files belong to something else.
    """
    if not run_dir.exists():
        return True
    if not run_dir.is_dir():
        return False
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith(".tmp-")}
    names -= {LOCK_FILE, LOCK_OWNER_FILE}
    if CANDIDATES_DIR not in names:
        return not names
    names_of_a_start = {
        CANDIDATES_DIR,
        PRETRAINED_FOLDER,
        *IMMUTABLE_FILES,
        LEDGER_FILE,
        backup_path(run_dir / LEDGER_FILE).name,
    }
    return (
        names <= names_of_a_start
        and (run_dir / CANDIDATES_DIR).is_dir()
        and not any((run_dir / CANDIDATES_DIR).iterdir())
    )


def _verify_run_files(run_dir: Path, start_event: dict[str, Any]) -> None:
    """Check the ledger, and that the files written at the start have not changed.

    Raises:
        UserError: One of them is damaged. The message names it.
    """
    Ledger(run_dir / LEDGER_FILE).validate()
    digests = start_event.get("file_digests", {})
    for path in (run_dir / name for name in IMMUTABLE_FILES if name in digests):
        try:
            unchanged = file_sha256(path) == digests[path.name]
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
        if not unchanged and path.name == CONFIG_FILE:
            raise UserError(
                f"'{path}' has changed since the run started, and settings cannot change within a "
                "run: restore the file, or start another run with another --out and --set key=value"
            )
        if not unchanged:
            raise UserError(f"'{path}' is damaged: it has changed since the run started")


def _check_same_data(run_dir: Path, start_event: dict[str, Any], data: ImageSet) -> None:
    """Raise a :class:`UserError` if the run was started with other images than ``data``."""
    if start_event["data"]["fingerprint"] == data.fingerprint:
        return
    run_resolution = tuple(start_event.get("resolution") or ())
    if run_resolution != data.resolution:
        run_size, data_size = (
            "x".join(map(str, resolution)) for resolution in (run_resolution, data.resolution)
        )
        raise UserError(f"'{run_dir}' holds a run at {run_size}, but '{data.name}' is {data_size}")
    raise UserError(
        f"'{run_dir}' holds a run on '{start_event['data']['name']}', which differs from "
        f"'{data.name}' as it is now"
    )


def initialize_run(
    run_dir: Path,
    settings: Settings,
    budget: Budget,
    data: ImageSet,
    pretrained_dir: Path | None = None,
) -> None:
    """Write the first files of a new run; delete temporary files of an interrupted start.

    Args:
        run_dir: The run directory.
        settings: Settings of the run.
        budget: Budget of the run.
        data: The training images.
        pretrained_dir: Checkpoint folder of the GAN to start from, which is copied.

    Raises:
        UserError: ``run_dir`` is not writable.
    """
    ledger = Ledger(run_dir / LEDGER_FILE)
    try:
        remove_stale_files(run_dir, *TEMPORARY_PATTERNS)
        ledger.delete()
        data_summary = data.describe()
        (run_dir / CANDIDATES_DIR).mkdir(parents=True, exist_ok=True)
        if pretrained_dir is not None:
            copy_pretrained_checkpoint(pretrained_dir, run_dir)
        if data.source_images is not None:
            replace_file(run_dir / SOURCE_IMAGES_FILE, _example_pairs_npz(data, settings))
        replace_file(run_dir / CONFIG_FILE, settings.to_yaml().encode())
        replace_file(run_dir / DATA_FILE, json.dumps(data_summary, indent=1).encode())
        file_digests = {
            name: file_sha256(run_dir / name)
            for name in IMMUTABLE_FILES
            if (run_dir / name).exists()
        }
        start_event = _start_event(settings, budget, data_summary)
        ledger.append({**start_event, "file_digests": file_digests})
    except OSError as error:
        raise _not_writable_error(run_dir, error) from error


def record_resume(run_dir: Path, budget: Budget) -> None:
    """Record that a run resumes; repair its ledger and delete temporary files.

    Raises:
        UserError: ``run_dir`` is not writable.
    """
    ledger = Ledger(run_dir / LEDGER_FILE)
    try:
        remove_stale_files(run_dir, *TEMPORARY_PATTERNS)
        ledger.repair()
        ledger.append({"event": "resume", "timestamp": time.time(), "budget": budget.to_json()})
    except OSError as error:
        raise _not_writable_error(run_dir, error) from error


def _not_writable_error(run_dir: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to '{run_dir}': {error.strerror or error}")


def _start_event(
    settings: Settings, budget: Budget, data_summary: dict[str, Any]
) -> dict[str, Any]:
    """Return the first event of a ledger, without the digests of the files."""
    return {
        "event": "start",
        "format": LEDGER_FORMAT,
        "timestamp": time.time(),
        "version": version("growgan"),
        "policy": settings.policy,
        "preset": settings.preset,
        "budget": budget.to_json(),
        "seed": settings.seed,
        "resolution": list(settings.resolution or ()),
        "data": {
            key: data_summary.get(key) for key in ("name", "fingerprint", "count", "channels")
        },
        "machine": describe_machine(),
    }


def _example_pairs_npz(data: ImageSet, settings: Settings) -> bytes:
    """Return an .npz file of source images to sample from, with targets and labels.

    They are held-out images if there are any.
    """
    batches, file = build_batches(data, settings), io.BytesIO()
    held_out = batches.held_out_indices
    indices = (held_out if len(held_out) else np.arange(len(data)))[:SAMPLE_SHEET_IMAGES]
    assert data.source_images is not None
    labels = np.full(len(data), -1) if data.labels is None else data.labels
    np.savez_compressed(
        file,
        source_images=data.source_images[indices].transpose(0, 2, 3, 1),
        target_images=data.images[indices].transpose(0, 2, 3, 1),
        labels=labels[indices],
    )
    return file.getvalue()
