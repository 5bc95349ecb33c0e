"""A task's run on the command line: trained, then compared with the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from growgan.data import ImageSet


def carry_out_task(
    task: str, data: ImageSet, out: Path, sources: Sequence[str], **how: Any
) -> None:
    """Train a task's players, and print its figures."""
    from growgan.cli.grow import carry_out
    from growgan.tasks.base import PICTURE, train_task
    from growgan.training.ranks import join

    words = [*sources, "--task", task]
    carry_out(partial(train_task, task), data, out, words, **how)
    if not join().first:
        return
    figures = json.loads((out / "gallery" / f"{PICTURE}.json").read_text())
    longest = max(16, *map(len, figures)) if figures else 0
    for name, value in figures.items():
        typer.echo(f"{name:<{longest}} {value:.4g}")
    typer.echo((out / "gallery" / f"{PICTURE}.txt").read_text())
    if (sheet := out / "gallery" / f"{PICTURE}.png").exists():
        typer.echo(f"sheet: {sheet}")
