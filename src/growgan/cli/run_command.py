"""Helpers of the verbs that train: load data, parse budgets, and run with a resume hint."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growgan.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    from growgan.data import ImageSet
    from growgan.execution.ray_cluster import RayCluster
    from growgan.run.run import Run
    from growgan.search.budget import Budget

DEFAULT_BUDGET = "10m"
DEFAULT_MAX_BROKEN = 0.05  # fraction of unreadable files that loading tolerates
NOT_STARTED_HINT = "nothing was saved yet; run the same command again"


def load_before_start(
    source: str,
    *,
    max_broken: float,
    resolution: tuple[int, int] | None = None,
    channels: int | None = None,
    fit: str = "auto",
) -> ImageSet:
    """Load images. If interrupted here, say that the run has not started.

    Args:
        source: DATA as on the command line.
        max_broken: Fraction of unreadable files, 0 to 1, above which loading fails.
        resolution: (height, width) in pixels. None keeps the images' own.
        channels: Number of channels. None keeps the images' own.
        fit: How images of other shapes are fitted, as the setting ``data.fit``.
    """
    from growgan.data import load_images

    try:
        return load_images(
            source, resolution=resolution, channels=channels, fit=fit, max_broken=max_broken
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(NOT_STARTED_HINT) from None


def reload_args(source: str, max_broken: float) -> list[str]:
    """Return the command-line arguments that load ``source`` again."""
    if max_broken == DEFAULT_MAX_BROKEN:
        return [source]
    return [source, "--max-broken", f"{max_broken:g}"]


def drop_unset(**options: str | int | None) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def parse_budget(budget: str | None, images: str | None, *, resume: bool) -> Budget | None:
    """Return the budget; None if a resumed run keeps its own.

    Raises:
        UserError: Both are given, or one is malformed.
    """
    from growgan.search.budget import Budget, parse_count

    if images is not None and budget is not None:
        raise UserError("--budget and --images cannot be combined; give one of them")
    if images is not None:
        return Budget(images=parse_count(images))
    if budget is None and resume:
        return None
    return Budget.parse(budget or DEFAULT_BUDGET)


def make_ray_options(
    executor: str,
    *,
    ray_address: str | None,
    cpus_per_worker: int | None,
    gpus_per_worker: float,
    asynchronous: bool = False,
) -> RayCluster | None:
    """Return the cluster that the options describe, None for the serial executor.

    Raises:
        UserError: The executor is unknown, or options of Ray are given without it.
    """
    if executor == "ray":
        from growgan.execution.ray_cluster import RayCluster

        return RayCluster(
            ray_address,
            cpus_per_trial=cpus_per_worker,
            gpus_per_trial=gpus_per_worker,
            asynchronous=asynchronous,
        )
    if executor != "serial":
        raise unknown_name_error("executor", executor, ("serial", "ray"))
    if ray_address is not None or cpus_per_worker or gpus_per_worker or asynchronous:
        raise UserError(
            "--ray-address, --cpus-per-worker, --gpus-per-worker and --async need --executor ray"
        )
    return None


def next_run_dir(name: str) -> Path:
    """Return the first folder ``runs/NAME-N`` that does not exist."""
    stem = re.sub(r"[^\w.-]+", "-", Path(name).stem) or "run"
    number = 1
    while (path := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return path


def run_with_resume_hint(
    start_run: Callable[..., Run], *, data: ImageSet, out: Path, data_args: list[str]
) -> None:
    """Train in ``out``, and say how to resume if the run is interrupted.

    Args:
        start_run: Called with ``display=``; trains and returns the run.
        data: Images of the run.
        out: Run directory.
        data_args: Command-line arguments that load the same data again.

    Raises:
        KeyboardInterrupt: The run was interrupted; the text says how to resume it.
        RuntimeError: The run directory could not be written, or training stopped early.
    """
    from safetensors import SafetensorError

    from growgan.cli.live_display import make_display
    from growgan.report.formatting import format_resolution
    from growgan.run.run_directory import read_start_event
    from growgan.training.distributed import init_distributed

    command = [
        "growgan", "grow", *data_args, "--resolution", format_resolution(data.resolution),
        "--out", str(out), "--resume",
    ]  # fmt: skip
    resume_hint = f"resume with: {shlex.join(command)}"
    is_main_process = init_distributed().is_main_process
    try:
        run = start_run(display=make_display(quiet=not is_main_process))
    except KeyboardInterrupt:
        hint = resume_hint if read_start_event(out) else NOT_STARTED_HINT
        raise KeyboardInterrupt(hint) from None
    except (OSError, SafetensorError) as error:
        raise RuntimeError(f"{error}; once '{out}' can be written, {resume_hint}") from error
    if not is_main_process:
        return
    stop_reason = run.events[-1].get("stop_reason")
    if stop_reason:
        raise RuntimeError(f"the run stopped before its budget was spent: {stop_reason}")
