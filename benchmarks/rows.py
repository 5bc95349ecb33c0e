"""Rows of figures, a line of JSON each, which studies keep as they come and do not make again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def kept_rows(file: Path) -> list[Row]:
    """Return the rows that are there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def new_rows(
    run: Callable[..., Row],
    calls: Iterable[tuple[Any, ...]],
    jobs: int,
    file: Path,
    *,
    anew: bool = True,
) -> Iterator[Row]:
    """Make a row by each call of ``run``, ``jobs`` at a time; keep it, then yield it.

    A call that fails is told and passed over: what is missing is made by the next run.

    Args:
        anew: each call has a process of its own.
    """
    file.parent.mkdir(exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, max_tasks_per_child=1 if anew else None) as pool:
        for each in as_completed([pool.submit(run, *call) for call in calls]):
            if error := each.exception():
                print(f"failed: {error!r}", flush=True)
                continue
            with file.open("a") as lines:
                lines.write(json.dumps(each.result()) + "\n")
            yield each.result()
