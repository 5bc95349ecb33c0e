"""The simulation in benchmarks/search_simulation.py, in cases where the result is known."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "search_simulation.py"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("search_simulation", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["search_simulation"] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ideal(simulation: ModuleType) -> Any:
    """Return inputs with trials of ten seconds and no overhead."""
    return simulation.SimulationInputs(
        trial_seconds=(10.0,),
        solo_trial_seconds=(),
        solo_ratio=0.0,
        num_initial_solo=0,
        score_ratios=(0.9,),
        driver_seconds_per_trial=0.0,
        driver_seconds_per_earlier_trial=0.0,
        polling_fraction=0.0,
        dispatch_seconds=0.0,
        empty_task_seconds=0.0,
        worker_start_seconds=0.0,
        checkpoint_bytes=0.0,
        failures_per_worker_hour=0.0,
        max_trials_per_round=10_000,
        max_trials_in_flight=10_000,
    )


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("num_workers", [1, 4, 100])
def test_without_overhead_all_workers_are_busy(
    simulation: ModuleType, ideal: Any, num_workers: int, asynchronous: bool
) -> None:
    result = simulation.simulate(
        ideal, num_workers, asynchronous=asynchronous, hours=1, trials_per_round=num_workers
    )
    assert result.utilization == pytest.approx(1, abs=0.01)
    assert result.candidates_per_hour == pytest.approx(360 * num_workers, rel=0.01)
    # 0.9 ** 22 is below a tenth, and each round takes ten seconds.
    assert result.hours_to_tenth * 3600 == pytest.approx(220, abs=0.1)


def test_rounds_wait_for_the_slowest_trial(simulation: ModuleType, ideal: Any) -> None:
    uneven = replace(ideal, trial_seconds=(5.0, 10.0))
    rounds, asynchronous = (
        simulation.simulate(uneven, 64, asynchronous=mode, hours=2, trials_per_round=64)
        for mode in (False, True)
    )
    assert rounds.utilization == pytest.approx(0.75, abs=0.02)  # 7.5 s on average, 10 s per round
    assert asynchronous.utilization == pytest.approx(1, abs=0.01)


def test_the_driver_and_the_link_limit_the_rate(simulation: ModuleType, ideal: Any) -> None:
    slow_driver = replace(ideal, driver_seconds_per_trial=0.1)
    result = simulation.simulate(
        slow_driver, 1000, asynchronous=True, hours=1, trials_per_round=1000
    )
    assert result.candidates_per_hour == pytest.approx(36_000, rel=0.01)
    assert result.driver_utilization > 0.98
    # Each candidate sends its parent's checkpoint and receives its own.
    large_files = replace(ideal, checkpoint_bytes=0.05 * ideal.link_bytes_per_second)
    result = simulation.simulate(
        large_files, 1000, asynchronous=True, hours=1, trials_per_round=1000
    )
    assert result.candidates_per_hour == pytest.approx(36_000, rel=0.02)
    assert result.link_utilization > 0.98


def test_a_failed_worker_loses_the_work_on_its_trial(simulation: ModuleType, ideal: Any) -> None:
    failures_per_hour = 60.0
    failing = replace(ideal, failures_per_worker_hour=failures_per_hour)
    result = simulation.simulate(failing, 8, asynchronous=True, hours=10, trials_per_round=8)
    # With a failure rate λ, a trial of t seconds takes (e^λt - 1) / λ seconds.
    rate = failures_per_hour / 3600
    expected = (2.718281828 ** (10 * rate) - 1) / rate
    assert result.utilization == pytest.approx(10 / expected, rel=0.02)


def test_starting_a_new_worker_takes_time(simulation: ModuleType, ideal: Any) -> None:
    fast_start = replace(ideal, failures_per_worker_hour=3600 / 100)
    slow_start = replace(fast_start, worker_start_seconds=10.0)
    fast, slow = (
        simulation.simulate(inputs, 64, asynchronous=True, hours=2, trials_per_round=64)
        for inputs in (fast_start, slow_start)
    )
    assert slow.candidates_per_hour < 0.95 * fast.candidates_per_hour


def test_solo_trials_leave_the_other_workers_idle(simulation: ModuleType, ideal: Any) -> None:
    inputs = replace(ideal, solo_trial_seconds=(10.0,), solo_ratio=1.0)
    # Ten seconds of one trial alternate with ten seconds of four trials.
    result = simulation.simulate(inputs, 4, asynchronous=False, hours=1, trials_per_round=4)
    assert result.utilization == pytest.approx(5 / 8, abs=0.01)
    # In asynchronous mode, a single solo trial takes half of the time.
    inputs = replace(ideal, solo_trial_seconds=(1800.0,), num_initial_solo=1)
    result = simulation.simulate(inputs, 4, asynchronous=True, hours=1, trials_per_round=4)
    assert result.utilization == pytest.approx(5 / 8, abs=0.01)


def test_after_an_accepted_growth_the_leader_is_trained_alone(
    simulation: ModuleType, ideal: Any
) -> None:
    # Each wave of four trials ends with an accepted growth, which is followed by two solo segments.
    solo_ratio = float(simulation.SEGMENTS_BETWEEN_GROWTHS)
    inputs = replace(ideal, solo_trial_seconds=(10.0,), solo_ratio=solo_ratio)
    result = simulation.simulate(inputs, 4, asynchronous=True, hours=1, trials_per_round=4)
    assert result.utilization == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_workers_beyond_the_number_of_growths_are_idle(
    simulation: ModuleType, ideal: Any, asynchronous: bool
) -> None:
    few_growths = replace(ideal, max_trials_per_round=10, max_trials_in_flight=10)
    result = simulation.simulate(
        few_growths, 40, asynchronous=asynchronous, hours=1, trials_per_round=40
    )
    assert result.utilization == pytest.approx(0.25, abs=0.01)
