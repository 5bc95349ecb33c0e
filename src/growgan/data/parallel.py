"""Blocks of work over all cores, results in order.

Decoding small images is mostly interpreter work, so threads are slower than one core (10,000
PNGs of 32x32 on 2 cores: 0.85 s serial, 1.1 s threads, 0.5 s processes) while for photographs
they equal processes. Forking is unsafe beside torch's threads, and multiprocessing's spawn runs
the caller's script again; so the workers are plain interpreters fed through their pipes.

What goes through these pipes is pickled, but is no file, and no stranger's: this process makes
them, without a name, and its own worker alone has the other end. Whoever could write into them can
run code here already. What a stranger did write, an image, is bytes to decode there, and comes back
as pixels.
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

TRIAL_SECONDS: Final = 0.25  # worked here first, to learn whether workers pay
WORTH_SECONDS: Final = 1.0  # of work left; a worker takes about 0.3 s to start
PROGRAM: Final = "from growgan.data.parallel import work; work()"


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_blocks(
    task: Callable[[int, int], T], count: int, size: int, workers: int | None = None
) -> Iterator[T]:
    """Yield ``task(start, stop)`` for consecutive blocks of ``size`` that cover range(count).

    The task must be picklable and a pure function of its range. It runs here while that is
    quick, and in ``workers`` processes (None: one a core) when much is left; exceptions that it
    raises there are raised here.
    """
    starts = range(0, count, size)
    workers = cores() if workers is None else workers
    began = time.perf_counter()
    for done, start in enumerate(starts):
        spent = time.perf_counter() - began
        left = spent / max(done, 1) * (len(starts) - done)
        if workers > 1 and spent > TRIAL_SECONDS and left > WORTH_SECONDS:
            yield from _spread(task, count, size, done, workers)
            return
        yield task(start, min(start + size, count))


def _spread(
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
            except EOFError:  # it died, of a lack of memory perhaps: another takes its place, once
                _end(processes[worker])
                processes[worker] = _start_worker()
                _send(processes[worker], (task, blocks[number::workers]))
                yield _receive_or_fail(processes[worker], blocks[number])
    finally:
        for process in processes:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _start_worker() -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def _send(process: subprocess.Popen[bytes], message: Any) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the reader will see that it ended
        pickle.dump(message, process.stdin, protocol=5)
        process.stdin.flush()


def _receive(process: subprocess.Popen[bytes]) -> Any:
    """Return a worker's next result; raise what it raised, or EOFError if it is no more."""
    assert process.stdout is not None
    try:
        good, value = pickle.load(process.stdout)
    except pickle.UnpicklingError as error:
        raise EOFError from error
    if not good:
        raise value
    return value


def _receive_or_fail(process: subprocess.Popen[bytes], block: tuple[int, int]) -> Any:
    try:
        return _receive(process)
    except EOFError as error:
        code = process.wait()
        raise RuntimeError(
            f"image workers end early (exit code {code}) at images {block[0]} to {block[1] - 1}"
        ) from error


def work() -> None:
    """Be a worker: read (task, blocks) from stdin, write each block's result to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not mix with the results
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
