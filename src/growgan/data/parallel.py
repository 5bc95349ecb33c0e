"""Run blocks of work on all cores and yield the results in order.

Decoding small images is mostly interpreter work, so threads are slower than one core (10,000
PNGs of 32x32 on 2 cores: 0.85 s serial, 1.1 s threads, 0.5 s processes). Forking is unsafe with
torch's threads, and the spawn method of multiprocessing and concurrent.futures runs the caller's
script again. The workers are therefore plain interpreters that are fed through pipes.

Messages in these pipes are pickled. That is safe because the pipes have no name, and only this
process and its worker can write to them. Untrusted images are only decoded, never unpickled.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, TypeVar

T = TypeVar("T")

SERIAL_TRIAL_SECONDS: Final = 0.25  # work serially this long to estimate the rest
# Start workers if more work than this is left. Starting one takes about 0.3 s.
MIN_REMAINING_SECONDS: Final = 1.0


_WORKER_MODULE: Final = "growgan.data.parallel"  # this module, run as a program by each worker


def num_available_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_blocks(
    task: Callable[[int, int], T], count: int, size: int, workers: int | None = None
) -> Iterator[T]:
    """Yield ``task(start, stop)`` for consecutive blocks of ``size`` that cover range(count).

    The task must be picklable and a pure function of its range. It runs in this process at first,
    and in ``workers`` processes (None: one per core) if much work is left. Exceptions in a worker
    are raised here.
    """
    starts = range(0, count, size)
    workers = num_available_cores() if workers is None else workers
    began = time.perf_counter()
    for num_done, start in enumerate(starts):
        spent = time.perf_counter() - began
        left = spent / max(num_done, 1) * (len(starts) - num_done)
        if workers > 1 and spent > SERIAL_TRIAL_SECONDS and left > MIN_REMAINING_SECONDS:
            yield from _run_in_workers(task, count, size, num_done, workers)
            return
        yield task(start, min(start + size, count))


def _run_in_workers(
    task: Callable[[int, int], T], count: int, size: int, first: int, workers: int
) -> Iterator[T]:
    blocks = [(start, min(start + size, count)) for start in range(first * size, count, size)]
    workers = min(workers, len(blocks))
    processes = [_start_worker() for _ in range(workers)]
    try:
        for number, process in enumerate(processes):
            _send(process, (task, blocks[number::workers]))
        # Worker w does blocks w, w + workers, ...: reading in turn keeps the order.
        for number in range(len(blocks)):
            worker = number % workers
            try:
                yield _receive(processes[worker])
            except EOFError:
                # The worker died, perhaps out of memory. Replace it once.
                _stop_worker(processes[worker])
                processes[worker] = _start_worker()
                _send(processes[worker], (task, blocks[number::workers]))
                yield _receive_from_replacement(processes[worker], blocks[number])
    finally:
        for process in processes:
            _stop_worker(process)


def _stop_worker(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _start_worker() -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _WORKER_MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def _send(process: subprocess.Popen[bytes], message: Any) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the reader notices that the worker has died
        pickle.dump(message, process.stdin, protocol=5)
        process.stdin.flush()


def _receive(process: subprocess.Popen[bytes]) -> Any:
    """Return the next result of a worker.

    An exception of the task is raised here. EOFError means that the worker has died.
    """
    assert process.stdout is not None
    try:
        succeeded, value = pickle.load(process.stdout)
    except pickle.UnpicklingError as error:
        raise EOFError from error
    if not succeeded:
        raise value
    return value


def _receive_from_replacement(process: subprocess.Popen[bytes], block: tuple[int, int]) -> Any:
    try:
        return _receive(process)
    except EOFError as error:
        code = process.wait()
        raise RuntimeError(
            f"image decoding workers exited early (exit code {code}) at images {block[0]} to"
            f" {block[1] - 1}"
        ) from error


def run_worker() -> None:
    """Run as a worker: read (task, blocks) from stdin and write each result to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # keep the output of libraries out of the results
        task, blocks = pickle.load(sys.stdin.buffer)
        with contextlib.suppress(BrokenPipeError):
            for start, stop in blocks:
                _answer(out, task, start, stop)


def _answer(out: IO[bytes], task: Callable[[int, int], Any], start: int, stop: int) -> None:
    try:
        answer = (True, task(start, stop))
    except Exception as error:
        answer = (False, error)
    pickle.dump(answer, out, protocol=5)
    out.flush()


if __name__ == "__main__":
    run_worker()
