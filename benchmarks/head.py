"""What a worker's word costs the head of a search: its bytes, and the time to show and log it.

    python benchmarks/head.py

Beside it, what the head takes to choose when a child is done, and to make the next proposals while
trials are open, for one worker and for 64. All with 20, 200 and 2,000 candidates tried, one
lineage: the longest that there could be.
"""

from __future__ import annotations

import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from growgan.config import make_settings
from growgan.growth.actions import UNCHANGED
from growgan.growth.budget import Budget, Meter
from growgan.growth.executor import Task
from growgan.growth.history import Candidate, History, Proposal, Space
from growgan.growth.keeper import RunKeeper
from growgan.growth.policies import Dynamic
from growgan.growth.stop import Stop
from growgan.growth.worker import Seen, Teller
from growgan.training.progress import SilentDisplay
from growgan.training.stage import Progress, Slice

TRIED = (20, 200, 2000)
WORKERS = 64
TERMS = {"loss_discriminator": 1.4, "loss_generator": 0.7, "r1": 0.02, "r2": 0.01}
POINT = Progress(0.5, 100_000, 1e3, 1.0, TERMS)
SEEN = Seen((32, 32), 1.0, 100_000)


def history_of(tried: int) -> History:
    """Return a history of so many candidates, each the child of the one before."""
    space = Space("pggan", make_settings({}).stack, 1, (32, 32))
    specs = space.stacks(space.levels)
    rest = (60.0, 70.0, 1e3)  # seconds of training and in all, images a second
    children = tuple(
        Candidate(
            f"{i:04d}",
            f"{i - 1:04d}" if i else None,
            i,
            UNCHANGED,
            *specs,
            100_000 * i,
            *rest,
            2.0 / (i + 1),
            0.01,
            60.0 * i,
            0.5 * i / tried,
            {},
        )
        for i in range(tried)
    )
    return History(space, Budget(images=10_000_000), 0).with_round(children, (children[-1].id,))


def timed(call: Callable[[], Any], times: int) -> float:
    """Return the median of how long a call takes, in microseconds."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        found.append(1e6 * (time.perf_counter() - begun))
    return statistics.median(found)


def costs(history: History) -> tuple[int, float, float, float, float]:
    """Return a word's bytes, and microseconds to show and log it, to choose, and to propose.

    The latter for one worker, and for ``WORKERS``.
    """
    alive = [history[name] for name in history.alive]
    proposal = Proposal(None, 0.1, stacks=alive[0].specs)
    task = Task("9999", 1, proposal, Slice(images=8), 0, make_settings({}))
    words: list[Any] = []
    Teller(SimpleNamespace(write=SimpleNamespace(remote=words.append))).report(task, SEEN, POINT)
    policy = Dynamic(search=1.0, trial=0.001, images=1, shown=1e-6, threshold=100, calm=0)
    with tempfile.TemporaryDirectory() as folder:
        keep = (8, Meter(history.budget), SilentDisplay(), Stop(), "cpu", lambda: history)
        keeper = RunKeeper(Path(folder), *keep)
        word = timed(lambda: keeper.report(task, SEEN, POINT), 50)
    child = replace(alive[0], id="9999", parent=alive[0].id, round=history.round)

    def choose() -> None:
        policy.select([child, *alive], history.with_round((child,), history.alive))

    many = replace(history, workers=WORKERS)
    times = [timed(partial(policy.propose, alive, each), 5) for each in (history, many)]
    return len(pickle.dumps(words[0])), word, timed(choose, 5), *times


def main() -> None:
    """Print the table."""
    print(
        "| tried | a word's bytes | to show and log it, µs | to choose, µs | to propose, µs "
        f"| for {WORKERS} workers, µs |"
    )
    print("|---|---|---|---|---|---|")
    for tried in TRIED:
        size, word, *more = costs(history_of(tried))
        rest = " | ".join(f"{value:,.0f}" for value in (word, *more))
        print(f"| {tried:,} | {size:,} | {rest} |")


if __name__ == "__main__":
    main()
