"""Run a task: train it, then print its metrics on held-out images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from growgan.cli.run_command import run_with_resume_hint

if TYPE_CHECKING:
    from growgan.data import ImageSet
    from growgan.run.run import Run


def run_task(
    task: str, start_run: Callable[..., Run], *, data: ImageSet, out: Path, data_args: list[str]
) -> None:
    """Train a task and print its metrics.

    Args:
        task: Name of the task, like ``pix2pix:edges``.
        start_run: Called with ``display=``; trains the task and returns the run.
        data: Images of the task.
        out: Run directory.
        data_args: Command-line arguments that load the same data again.
    """
    from growgan.tasks.evaluation import TASK_FILE_STEM
    from growgan.training.distributed import init_distributed

    run_with_resume_hint(start_run, data=data, out=out, data_args=[*data_args, "--task", task])
    if not init_distributed().is_main_process:
        return
    gallery = out / "gallery"
    metrics = json.loads((gallery / f"{TASK_FILE_STEM}.json").read_text())
    width = max(16, *map(len, metrics)) if metrics else 0
    for name, value in metrics.items():
        typer.echo(f"{name:<{width}} {value:.4g}")
    typer.echo((gallery / f"{TASK_FILE_STEM}.txt").read_text())
    if (sheet := gallery / f"{TASK_FILE_STEM}.png").exists():
        typer.echo(f"sheet: {sheet}")
