"""Measure what the search driver spends on a progress update, a selection and a proposal.

    python benchmarks/driver_overhead.py

The table shows the size of a worker's progress update, the time to display and log it, the time to
select after a finished trial, and the time to propose trials for one worker and for 64, after 20,
200 and 2,000 candidates. All candidates form a single lineage, the longest possible one.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import median_seconds

from growgan.config import make_settings
from growgan.execution.callback import TrainingStatus
from growgan.execution.ray_worker import ProgressReporter
from growgan.execution.signals import GracefulShutdown
from growgan.execution.trial import Trial
from growgan.run.budget_allocator import BudgetMeter
from growgan.run.checkpointer import TrialCheckpointer
from growgan.run.run_callback import RunCallback
from growgan.run.search_state import SearchState
from growgan.search.budget import Budget
from growgan.search.growth import NO_GROWTH
from growgan.search.history import Candidate, History, Proposal, SearchSpace
from growgan.search.policies import DynamicPolicy
from growgan.training.loop import TrainingProgress, TrainingSegment
from growgan.training.progress import SilentDisplay

NUM_CANDIDATES = (20, 200, 2000)
NUM_WORKERS = 64
TERMS = {"loss_discriminator": 1.4, "loss_generator": 0.7, "r1": 0.02, "r2": 0.01}
PROGRESS = TrainingProgress(
    segment_fraction=0.5, images_seen=100_000, images_per_second=1e3, alpha=1.0, terms=TERMS
)
STATUS = TrainingStatus(resolution=(32, 32), alpha=1.0, images_seen=100_000)


@dataclass(frozen=True)
class DriverCosts:
    """Size of a progress update in bytes, and times in microseconds."""

    update_bytes: int
    display_and_log: float
    select: float
    propose: float
    propose_for_many_workers: float


def make_history(num_candidates: int) -> History:
    """Return a history in which every candidate is the child of the one before."""
    space = SearchSpace("pggan", make_settings({}).network, 1, (32, 32))
    generator_spec, discriminator_spec = space.specs_at(space.max_level)
    candidates = tuple(
        Candidate(
            id=f"{k:04d}",
            parent_id=f"{k - 1:04d}" if k else None,
            round=k,
            growth=NO_GROWTH,
            generator_spec=generator_spec,
            discriminator_spec=discriminator_spec,
            images_seen=100_000 * k,
            train_seconds=60.0,
            seconds=70.0,
            images_per_second=1e3,
            score=2.0 / (k + 1),
            score_stderr=0.01,
            elapsed=60.0 * k,
            spent_fraction=0.5 * k / num_candidates,
            score_components={},
        )
        for k in range(num_candidates)
    )
    history = History(space, Budget(images=10_000_000), 0)
    return history.with_round(candidates, (candidates[-1].id,))


def median_microseconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call."""
    return 1e6 * median_seconds(function, repeats)


def make_run_callback(run_dir: Path, history: History) -> RunCallback:
    """Return the callback of a run with this history."""
    state = SearchState(history, make_settings({}))
    meter = BudgetMeter(history.budget)
    checkpointer = TrialCheckpointer(
        run_dir, meter=meter, shutdown=GracefulShutdown(), device="cpu"
    )
    return RunCallback(
        run_dir,
        batch_size=8,
        state=state,
        meter=meter,
        display=SilentDisplay(),
        checkpointer=checkpointer,
        record=lambda event: None,
    )


def measure_driver(history: History) -> DriverCosts:
    """Measure the driver's costs with this history."""
    survivors = [history[candidate_id] for candidate_id in history.survivor_ids]
    proposal = Proposal(None, 0.1, root_specs=survivors[0].specs)
    trial = Trial(
        id="9999",
        round=1,
        proposal=proposal,
        segment=TrainingSegment(images=8),
        seed=0,
        settings=make_settings({}),
    )
    updates: list[Any] = []
    actor = SimpleNamespace(publish=SimpleNamespace(remote=updates.append))
    ProgressReporter(actor).on_progress(trial, STATUS, PROGRESS)
    policy = DynamicPolicy(
        trial_budget_fraction=1.0,
        trial_fraction=0.001,
        min_trial_images=1,
        images_per_parameter=1e-6,
        plateau_slope=100,
        freeze_fraction=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        callback = make_run_callback(Path(folder), history)
        display_and_log = median_microseconds(
            lambda: callback.on_progress(trial, STATUS, PROGRESS), 50
        )
    child = replace(survivors[0], id="9999", parent_id=survivors[0].id, round=history.round)
    history_with_child = history.with_round((child,), history.survivor_ids)
    history_of_many_workers = replace(history, num_workers=NUM_WORKERS)
    return DriverCosts(
        update_bytes=len(pickle.dumps(updates[0])),
        display_and_log=display_and_log,
        select=median_microseconds(
            lambda: policy.select([child, *survivors], history_with_child), 5
        ),
        propose=median_microseconds(partial(policy.propose, survivors, history), 5),
        propose_for_many_workers=median_microseconds(
            partial(policy.propose, survivors, history_of_many_workers), 5
        ),
    )


def main() -> None:
    """Print the table."""
    print(
        "| candidates | update size, bytes | display and log, µs | select, µs "
        f"| propose for 1 worker, µs | propose for {NUM_WORKERS} workers, µs |"
    )
    print("|---|---|---|---|---|---|")
    for num_candidates in NUM_CANDIDATES:
        costs = measure_driver(make_history(num_candidates))
        print(
            f"| {num_candidates:,} | {costs.update_bytes:,} | {costs.display_and_log:,.0f} "
            f"| {costs.select:,.0f} | {costs.propose:,.0f} "
            f"| {costs.propose_for_many_workers:,.0f} |"
        )


if __name__ == "__main__":
    import argparse

    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    main()
