"""The simulation of benchmarks/scaling.py, where the answer is known."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "scaling.py"


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ideal(scaling: ModuleType) -> Any:
    """Tasks of ten seconds, and nothing else takes time."""
    nothing = dict.fromkeys(("head", "older", "begin", "carry", "size", "failures"), 0.0)
    return scaling.Figures(tasks=(10.0,), falls=(0.9,), **nothing)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("workers", [1, 4, 100])
def test_without_overhead_all_workers_are_busy(
    scaling: ModuleType, ideal: Any, workers: int, free: bool
) -> None:
    seen = scaling.play(ideal, workers, free, hours=1, children=workers)
    assert seen.utilisation == pytest.approx(1, abs=0.01)
    assert seen.rate == pytest.approx(360 * workers, rel=0.01)
    # 0.9 to the 22nd is below a tenth: so many rounds of ten seconds.
    assert seen.reached * 3600 == pytest.approx(220, abs=0.1)


def test_rounds_wait_for_the_slowest(scaling: ModuleType, ideal: Any) -> None:
    uneven = replace(ideal, tasks=(5.0, 10.0))
    rounds = scaling.play(uneven, 64, False, hours=2, children=64)
    free = scaling.play(uneven, 64, True, hours=2, children=64)
    assert rounds.utilisation == pytest.approx(0.75, abs=0.02)  # 7.5 s on average, 10 s a round
    assert free.utilisation == pytest.approx(1, abs=0.01)


def test_what_serves_one_at_a_time_is_the_limit(scaling: ModuleType, ideal: Any) -> None:
    head = scaling.play(replace(ideal, head=0.1), 1000, True, hours=1, children=1000)
    assert head.rate == pytest.approx(36_000, rel=0.01) and head.head > 0.98
    # A parent's files out and a child's files back for each candidate.
    link = scaling.play(replace(ideal, size=0.05 * ideal.link), 1000, True, hours=1, children=1000)
    assert link.rate == pytest.approx(36_000, rel=0.02) and link.link > 0.98


def test_a_worker_that_dies_costs_what_it_had_done(scaling: ModuleType, ideal: Any) -> None:
    hourly = 60.0
    seen = scaling.play(replace(ideal, failures=hourly), 8, True, hours=10, children=8)
    # Until a task of t seconds is through at a rate λ of deaths: (e^λt - 1) / λ.
    rate = hourly / 3600
    expected = (2.718281828 ** (10 * rate) - 1) / rate
    assert seen.utilisation == pytest.approx(10 / expected, rel=0.02)
