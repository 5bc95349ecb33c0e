"""Shared helpers of the benchmarks: result files, timing and formatting."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSONL file, or none if the file does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def compute_rows(
    function: Callable[..., Row],
    argument_tuples: Iterable[tuple[Any, ...]],
    *,
    num_jobs: int,
    path: Path,
    fresh_processes: bool = True,
) -> Iterator[Row]:
    """Call a function several times in parallel; append each result to a JSONL file and yield it.

    A call that fails is reported and skipped. The next start of the benchmark repeats it.

    Args:
        function: computes a row.
        argument_tuples: positional arguments of each call.
        num_jobs: number of parallel processes.
        path: the JSONL file.
        fresh_processes: start a new process for each call.
    """
    path.parent.mkdir(exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    tasks_per_child = 1 if fresh_processes else None
    with ProcessPoolExecutor(num_jobs, spawn, max_tasks_per_child=tasks_per_child) as pool:
        futures = [pool.submit(function, *arguments) for arguments in argument_tuples]
        for future in as_completed(futures):
            if error := future.exception():
                print(f"failed: {error!r}", flush=True)
                continue
            with path.open("a") as file:
                file.write(json.dumps(future.result()) + "\n")
            yield future.result()


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median wall time of a call in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def mean_and_std(values: Sequence[float], digits: int) -> str:
    """Return the mean, and the standard deviation if there are several values."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"
