"""The simulation of benchmarks/play.py, where the answer is known."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "play.py"


@pytest.fixture(scope="module")
def playing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("play", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["play"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ideal(playing: ModuleType) -> Any:
    """Tasks of ten seconds, and nothing else takes time."""
    nothing = dict.fromkeys("head older watch begin carry start size failures".split(), 0.0)
    enough = {"drawn": 10_000, "there": 10_000}
    nothing |= {"lonely": 0.0, "early": 0}
    return playing.Figures(tasks=(10.0,), lone=(), falls=(0.9,), **nothing, **enough)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("workers", [1, 4, 100])
def test_without_overhead_all_workers_are_busy(
    playing: ModuleType, ideal: Any, workers: int, free: bool
) -> None:
    seen = playing.play(ideal, workers, free, hours=1, children=workers)
    assert seen.utilisation == pytest.approx(1, abs=0.01)
    assert seen.rate == pytest.approx(360 * workers, rel=0.01)
    # 0.9 to the 22nd is below a tenth: so many rounds of ten seconds.
    assert seen.reached * 3600 == pytest.approx(220, abs=0.1)


def test_rounds_wait_for_the_slowest(playing: ModuleType, ideal: Any) -> None:
    uneven = replace(ideal, tasks=(5.0, 10.0))
    rounds = playing.play(uneven, 64, False, hours=2, children=64)
    free = playing.play(uneven, 64, True, hours=2, children=64)
    assert rounds.utilisation == pytest.approx(0.75, abs=0.02)  # 7.5 s on average, 10 s a round
    assert free.utilisation == pytest.approx(1, abs=0.01)


def test_what_serves_one_at_a_time_is_the_limit(playing: ModuleType, ideal: Any) -> None:
    head = playing.play(replace(ideal, head=0.1), 1000, True, hours=1, children=1000)
    assert head.rate == pytest.approx(36_000, rel=0.01) and head.head > 0.98
    # A parent's files out and a child's files back for each candidate.
    link = playing.play(replace(ideal, size=0.05 * ideal.link), 1000, True, hours=1, children=1000)
    assert link.rate == pytest.approx(36_000, rel=0.02) and link.link > 0.98


def test_a_worker_that_dies_costs_what_it_had_done(playing: ModuleType, ideal: Any) -> None:
    hourly = 60.0
    seen = playing.play(replace(ideal, failures=hourly), 8, True, hours=10, children=8)
    # Until a task of t seconds is through at a rate λ of deaths: (e^λt - 1) / λ.
    rate = hourly / 3600
    expected = (2.718281828 ** (10 * rate) - 1) / rate
    assert seen.utilisation == pytest.approx(10 / expected, rel=0.02)


def test_a_new_worker_takes_time_to_begin(playing: ModuleType, ideal: Any) -> None:
    rare = replace(ideal, failures=3600 / 100)
    quick = playing.play(rare, 64, True, hours=2, children=64)
    slow = playing.play(replace(rare, start=10.0), 64, True, hours=2, children=64)
    assert slow.rate < 0.95 * quick.rate


def test_a_child_alone_leaves_the_other_workers_idle(playing: ModuleType, ideal: Any) -> None:
    figures = replace(ideal, lone=(10.0,), lonely=1.0)
    seen = playing.play(figures, 4, False, hours=1, children=4)  # 10 s of one, then of four
    assert seen.utilisation == pytest.approx(5 / 8, abs=0.01)
    figures = replace(ideal, lone=(1800.0,), early=1)  # freely once, and then no more
    seen = playing.play(figures, 4, True, hours=1, children=4)
    assert seen.utilisation == pytest.approx(5 / 8, abs=0.01)


def test_after_a_growth_the_leader_trains_on_alone(playing: ModuleType, ideal: Any) -> None:
    # Each wave of four children of 10 s ends with a growth that is taken: then two slices of one.
    figures = replace(ideal, lone=(10.0,), lonely=float(playing.PAUSE))
    seen = playing.play(figures, 4, True, hours=1, children=4)
    assert seen.utilisation == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("free", [False, True])
def test_more_workers_than_growths_have_nothing_to_do(
    playing: ModuleType, ideal: Any, free: bool
) -> None:
    few = replace(ideal, drawn=10, there=10)
    seen = playing.play(few, 40, free, hours=1, children=40)
    assert seen.utilisation == pytest.approx(0.25, abs=0.01)
