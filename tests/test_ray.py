"""Tests of searches on Ray workers: rounds, asynchronous mode, lost workers, per-class runs."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import growgan as gg
from growgan.artifacts.per_class_ensemble import PerClassEnsemble, create_or_open
from growgan.cli.app import main
from growgan.cli.per_class import RunOptions, _resource_overrides, _train_on_ray, train_class
from growgan.config import Settings, make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.execution import ray_cluster, ray_executor, ray_map
from growgan.execution.callback import NullCallback, TrainingStatus
from growgan.execution.executor import SerialExecutor
from growgan.execution.ray_cluster import RayCluster
from growgan.execution.ray_executor import RayExecutor
from growgan.execution.ray_map import map_on_workers
from growgan.execution.ray_worker import (
    OutOfMemoryUpdate,
    ProgressActor,
    ProgressReporter,
    ProgressUpdate,
    WorkerContext,
    extractor_to,
    train_candidate,
)
from growgan.execution.trial import Trial, TrialResult
from growgan.files import atomic_write
from growgan.jsonl import LEDGER_FORMAT
from growgan.metrics.features.own import untrained_own_extractor
from growgan.nets.growth_ops import Widen
from growgan.run.async_search import AsyncSearchLoop
from growgan.run.budget_allocator import BudgetAllocator, BudgetMeter, allocated_images
from growgan.run.grow import _fill_in_machine_defaults
from growgan.run.ledger import Ledger
from growgan.run.lock import run_lock
from growgan.run.search_state import SearchState
from growgan.search.budget import Budget
from growgan.search.growth import NO_GROWTH, Growth
from growgan.search.history import Candidate, History, Proposal, SearchSpace
from growgan.search.policies import DynamicPolicy, Selection
from growgan.training.checkpoint import gan_from_files, gan_to_files, save_gan
from growgan.training.distributed import DistributedContext
from growgan.training.gan import Gan
from growgan.training.loop import TrainingProgress, TrainingSegment
from growgan.training.runtime import Runtime

Make = Callable[..., ImageSet]
pytestmark = pytest.mark.usefixtures("temporary_cache")
# Several small trials in each round.
POLICY_SETTINGS = {
    "autoscale": False,
    "trials_per_round": 3,
    "min_trial_images": 1,
    "images_per_parameter": 1e-6,
    "trial_budget_fraction": 0.6,
    "plateau_slope": 100.0,
}
TIME_FIELDS = {
    "elapsed",
    "seconds",
    "train_seconds",
    "timestamp",
    "images_per_second",
    "peak_memory_mib",
    "cost",
    "machine",
}


def settings() -> Settings:
    return make_settings(
        {
            "policy": "dynamic",
            "growth": {**POLICY_SETTINGS, "start_resolution": 16, "trial_fraction": 0.1},
            "batch_size": 8,
            "network": {"latent_dim": 8, "width": 8},
            "score": {"kind": "swd", "num_samples": 32},
            "precision": "float32",
            "threads": 1,
        }
    )


@pytest.fixture
def data(make_blob_images: Make) -> ImageSet:
    return make_blob_images(96, 1, 16, 16)


def ledger_without_times(run: gg.Run) -> list[dict[str, Any]]:
    """Return the ledger of a run without the fields that depend on time."""
    return [{k: v for k, v in event.items() if k not in TIME_FIELDS} for event in run.events]


class ReversedExecutor:
    """An asynchronous executor in this process that finishes the newest trial first."""

    def __init__(self, inner: SerialExecutor, workers: int) -> None:
        self.inner, self.num_workers = inner, workers
        self.running: list[tuple[Trial, Gan | None]] = []
        self.max_running = 0

    def run(self, trials: Iterable[Trial]) -> Iterator[TrialResult]:
        yield from self.inner.run(trials)

    def submit(self, trial: Trial) -> None:
        parent = trial.proposal.parent_id
        self.running.append((trial, self.inner.load_parent(parent) if parent else None))
        self.max_running = max(self.max_running, len(self.running))

    def wait(self) -> TrialResult:
        return self.inner.trainer.run(*self.running.pop())


def grow_asynchronously(
    data: ImageSet, out: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> ReversedExecutor:
    """Run an asynchronous search in this process."""
    executors = []

    def run(search: AsyncSearchLoop, executor: SerialExecutor) -> Any:
        executors.append(ReversedExecutor(executor, workers))
        return search.run_async(executors[0])

    monkeypatch.setattr(AsyncSearchLoop, "run", run)
    gg.grow(data, out=out, images=2400, settings=settings())
    return executors[0]


def test_in_asynchronous_mode_no_worker_is_idle(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = grow_asynchronously(data, tmp_path / "run", monkeypatch, workers=3)
    assert executor.max_running == 3
    run = gg.Run.open(tmp_path / "run")
    children = [e for e in run.events if e["event"] == "candidate"]
    names = [e["id"] for e in children]
    assert names != sorted(names) and sorted(names) == [f"{i:04d}" for i in range(len(names))]
    check_parents(children)
    # No growth of the same parent is tried twice.
    tried = [(e["parent"], e["growth"]) for e in children]
    assert len(set(tried)) == len(tried)
    images_trained = [
        e["images"] - (0 if e["parent"] is None else parent_images(children, e)) for e in children
    ]
    assert sum(images_trained) <= 2400 and sum(images_trained) > 2400 - 8 * executor.num_workers
    assert run.best.sample(2).shape == (2, 16, 16, 1)
    # A search with rounds can resume the run.
    monkeypatch.undo()
    gg.grow(data, out=tmp_path / "run", images=3200, resume=True)
    later = [e["id"] for e in run.events if e["event"] == "candidate"]
    assert len(set(later)) == len(later) > len(names)


def test_one_asynchronous_worker_gives_the_ledger_of_rounds(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = gg.grow(data, out=tmp_path / "rounds", images=2400, settings=settings())
    grow_asynchronously(data, tmp_path / "async", monkeypatch, workers=1)
    events = ledger_without_times(gg.Run.open(tmp_path / "async"))
    assert {event["growth"] for event in events if "growth" in event} - {"no growth"}
    assert events == ledger_without_times(rounds)


class ScriptedSearch(AsyncSearchLoop):
    """A search whose finished trials are given by the test."""

    def __init__(self, *candidates: Candidate) -> None:
        space = SearchSpace("pggan", settings().network, 1, (16, 16))
        self.state = SearchState(History(space, Budget(images=2400), 0), settings())
        self.policy = DynamicPolicy()
        self.reasons: list[str] = []
        for candidate in candidates:
            self.state.pending.append(candidate)
            self.state.apply({"event": "select", "survivors": [candidate.id]})

    def record_selection(self, selection: Selection) -> None:
        self.state.apply({"event": "select", "survivors": list(selection.survivor_ids)})
        self.reasons.append(selection.reason)

    def finish_trial(self, child: Candidate, *running: Proposal) -> str:
        """Finish ``child`` while ``running`` are training; return the new leader."""
        segment = TrainingSegment(images=8)
        trials = [Trial("99", 0, proposal, segment, 0, settings()) for proposal in running]
        self.state.pending.append(child)
        self.on_trial_finished(child, trials)
        return self.state.history.survivor_ids[0]


def make_candidate(
    number: int, parent: int | None, score: float, round_: int, growth: Growth = NO_GROWTH
) -> Candidate:
    """Return a candidate of 16x16 pixels with a very small standard error."""
    specs = SearchSpace("pggan", settings().network, 1, (16, 16)).specs_at(2)
    parent_id = None if parent is None else f"{parent:04d}"
    name, rest = f"{number:04d}", (8, 1.0, 1.1, 8.0, score, 1e-6, 1.0, 0.1, {})
    return Candidate(name, parent_id, round_, growth, *specs, *rest)


WIDEN_GENERATOR = Growth((Widen(),), ())
CONTINUE_ROOT = Proposal("0000", 0.1)  # the unchanged root


def test_a_growth_waits_for_the_continuation_of_the_same_leader() -> None:
    for improved, score in ((True, 0.8), (False, 0.95)):
        search = ScriptedSearch(make_candidate(0, None, 1.0, 0))
        assert (
            search.finish_trial(make_candidate(2, 0, score, 1, WIDEN_GENERATOR), CONTINUE_ROOT)
            == "0000"
        )
        assert search.reasons == ["0002 waits for the next segment of 0000"]
        assert search.state.waiting_growth_ids() == ["0002"]
        assert search.finish_trial(make_candidate(1, 0, 0.9, 1)) == ("0002" if improved else "0001")
        assert search.state.waiting_growth_ids() == []


def test_a_growth_that_improved_is_selected_if_it_is_not_too_stale() -> None:
    for lag in range(4):
        search = ScriptedSearch(make_candidate(0, None, 1.0, 0))
        for k in range(lag + 1):  # continuations of the leader, each slightly better
            assert (
                search.finish_trial(make_candidate(k + 1, k, 0.9 - 0.06 * k, k + 1))
                == f"{k + 1:04d}"
            )
        is_selected = lag <= 2
        assert search.finish_trial(make_candidate(9, 0, 0.8, 1, WIDEN_GENERATOR)) == (
            "0009" if is_selected else f"{lag + 1:04d}"
        )
        assert search.reasons[-1].startswith("late: " if is_selected else "0009 came too late")
        # A running trial of the leader that lost is not selected.
        if is_selected:
            assert search.finish_trial(make_candidate(10, lag + 1, 0.5, lag + 2)) == "0009"
    search = ScriptedSearch(make_candidate(0, None, 1.0, 0))
    assert search.finish_trial(make_candidate(1, 0, 0.7, 1)) == "0001"
    assert (
        search.finish_trial(make_candidate(9, 0, 0.8, 1, WIDEN_GENERATOR)) == "0001"
    )  # worse than the continuation


def test_a_trial_proposed_alone_is_selected_alone() -> None:
    search = ScriptedSearch(make_candidate(0, None, 1.0, 0))
    assert search.finish_trial(make_candidate(1, 0, 3.0, 1, WIDEN_GENERATOR)) == "0001"
    wider = make_candidate(2, None, 9.0, 2)  # a new root
    assert search.finish_trial(wider) == "0002"


@pytest.mark.parametrize("policy", ["progressive", "dynamic"])
def test_resolutions_increase_in_asynchronous_mode(
    make_blob_images: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    growth = {"segment_fraction": 0.1, "start_resolution": 8} if policy == "dynamic" else {}
    values = settings().model_dump() | {"policy": policy, "growth": growth}

    def run(search: AsyncSearchLoop, executor: SerialExecutor) -> Any:
        return search.run_async(ReversedExecutor(executor, 3))

    monkeypatch.setattr(AsyncSearchLoop, "run", run)
    finished = gg.grow(
        make_blob_images(96, 1, 16, 16), out=tmp_path / "run", images=800, settings=values
    )
    children = [e for e in finished.events if e["event"] == "candidate"]
    sides = [e["resolution"][0] for e in children if "strided" in e["growth"]]
    assert sides and sides == sorted(set(sides)) and sides[-1] == 16  # each doubling happens once
    assert children[0]["resolution"][0] < 16
    leaders = {e["survivors"][0] for e in finished.events if e["event"] == "select"}
    assert leaders >= {e["id"] for e in children if "strided" in e["growth"]}


def check_parents(children: list[dict[str, Any]]) -> None:
    """Check that each candidate follows its parent."""
    earlier_ids = {None}
    for child in children:
        assert child["parent"] in earlier_ids
        earlier_ids.add(child["id"])


def parent_images(children: list[dict[str, Any]], child: dict[str, Any]) -> int:
    (parent,) = [e for e in children if e["id"] == child["parent"]]
    return int(parent["images"])


def test_trials_of_a_round_do_not_depend_on_each_other(data: ImageSet) -> None:
    chosen = settings()
    space = SearchSpace("pggan", chosen.network, 1, (16, 16))
    proposals = [Proposal(None, 0.25, root_specs=space.specs_at(2)) for _ in range(6)]
    meter = BudgetMeter(Budget(images=100))
    history = History(space, meter.budget, 0)
    allocator = BudgetAllocator(meter, 8)
    all_trials = list(
        allocator.allocate_trials(proposals, history, chosen, first_id=0, overhead_seconds=1.0)
    )
    trials_one_by_one = []
    for trial in allocator.allocate_trials(
        proposals, history, chosen, first_id=0, overhead_seconds=1.0
    ):
        trials_one_by_one.append(trial)
        meter.images_seen += 8  # any number, for example after a divergence
    assert all_trials == trials_one_by_one
    assert [trial.segment.images for trial in all_trials] == [24, 24, 24, 24]
    assert allocated_images(all_trials) == 96
    meter.images_seen = 0
    assert [
        t.segment.images
        for t in allocator.allocate_trials(
            proposals, history, chosen, first_id=3, overhead_seconds=1.0, images_in_flight=80
        )
    ] == [16]


def test_more_workers_can_afford_more_trials() -> None:
    assert (
        DynamicPolicy(trial_fraction=0.04, trial_budget_fraction=0.08)._num_affordable_trials(
            history_with_workers(1)
        )
        == 2
    )
    assert (
        DynamicPolicy(trial_fraction=0.04, trial_budget_fraction=0.08)._num_affordable_trials(
            history_with_workers(8)
        )
        == 16
    )


def history_with_workers(workers: int) -> History:
    space = SearchSpace("pggan", settings().network, 1, (16, 16))
    return History(space, Budget(seconds=60), 0, num_workers=workers)


def test_checkpoint_files_restore_a_gan(tmp_path: Path, make_blob_images: Make) -> None:
    chosen = settings()
    specs = SearchSpace("pggan", chosen.network, 1, (16, 16)).specs_at(2)
    gan = Gan.create(*specs, chosen.optimizer, seed=3)
    save_gan(gan, tmp_path / "gan")

    files = gan_to_files(gan)
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "gan").iterdir()}
    again = gan_from_files(files)
    for mine, other in zip(gan.generator.parameters(), again.generator.parameters(), strict=True):
        np.testing.assert_array_equal(mine.detach(), other.detach())


def test_cluster_options_are_validated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def error_of(*options: str) -> str:
        assert main(["grow", "glyphs", "--out", str(tmp_path / "run"), *options]) == 2
        return capsys.readouterr().err

    assert "unknown executor 'slurm'" in error_of("--executor", "slurm")
    assert "--gpus-per-worker and --async need --executor ray" in error_of("--async")
    monkeypatch.setitem(sys.modules, "ray", None)
    valid_options = ("--images", "800", "--resolution", "16", "--executor", "ray")
    assert "pip install 'growgan[cluster]'" in error_of(*valid_options)


@pytest.fixture
def fake_ray_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the extra ``cluster`` is installed."""
    monkeypatch.setattr(ray_cluster, "require_extra", lambda *args: None)


def make_node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": resources}


def test_concurrent_trials_are_counted_per_node() -> None:
    max_trials, nodes = ray_cluster.max_concurrent_trials, [{"CPU": 2.0}, {"CPU": 2.0}]
    assert max_trials(nodes, 3, 0) == 0  # no single node has three CPUs
    assert max_trials(nodes, 1, 0) == 4
    assert max_trials([{"CPU": 32.0, "GPU": 8.0}, {"CPU": 64.0}], 4, 1) == 8
    assert max_trials([{"CPU": 64.0, "GPU": 1.0}], 1, 0.1) == 10  # although 1 // 0.1 is 9.0
    ray = SimpleNamespace(
        nodes=lambda: [make_node(CPU=4), {"Alive": False, "Resources": {"CPU": 8}}]
    )
    assert ray_cluster.alive_nodes(ray) == [{"CPU": 4}]


@pytest.mark.usefixtures("fake_ray_extra")
def test_a_trial_gets_the_share_of_cpus_of_its_gpus() -> None:
    machines = [{"CPU": 32.0, "GPU": 8.0}, {"CPU": 12.0, "GPU": 4.0}, {"CPU": 64.0}]
    resources = ray_cluster.resources_per_trial
    assert resources(machines, RayCluster(gpus_per_trial=1), 32) == (3, 1)
    assert resources(machines, RayCluster(gpus_per_trial=0.5), 32) == (1, 0.5)
    assert resources(machines, RayCluster(cpus_per_trial=5, gpus_per_trial=1), 32) == (5, 1)
    assert resources(machines, RayCluster(), 4) == (4, 0)
    assert resources(machines, RayCluster(), None) == (1, 0)


@pytest.mark.usefixtures("fake_ray_extra")
def test_trials_without_gpus_train_on_cpus(data: ImageSet) -> None:
    assert ray_executor._worker_settings(settings(), RayCluster()).device == "cpu"
    assert ray_executor._worker_settings(settings(), RayCluster(gpus_per_trial=1)).device == "auto"
    with pytest.raises(UserError, match="device 'cuda' needs --gpus-per-worker above 0"):
        ray_executor._worker_settings(
            settings().model_copy(update={"device": "cuda"}), RayCluster()
        )


def test_the_driver_sets_the_precision_of_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    automatic = settings().model_copy(update={"precision": "auto"})

    def worker_precision(kind: str, fast: bool, gpus: float) -> str:
        driver_runtime = Runtime(torch.device(kind), fast)
        monkeypatch.setattr(ray_executor, "runtime_from_settings", lambda settings: driver_runtime)
        return ray_executor._worker_settings(
            automatic, SimpleNamespace(gpus_per_trial=gpus)
        ).precision

    assert (
        worker_precision("cpu", False, 0) == "float32"
        and worker_precision("cpu", True, 0) == "bfloat16"
    )
    assert worker_precision("cuda", True, 0.5) == "bfloat16"
    assert worker_precision("cpu", False, 1) == "auto"  # a driver without GPU cannot know


@pytest.mark.usefixtures("fake_ray_extra")
def test_a_trial_uses_as_many_threads_as_cpus(
    data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(cluster: RayCluster, requested: int | None = None) -> int | None:
        chosen, contexts = settings().model_copy(update={"threads": requested}), []
        chosen = _fill_in_machine_defaults(chosen, Budget(images=80), data, cluster)
        ray = SimpleNamespace(nodes=lambda: [make_node(CPU=8, GPU=2)], put=contexts.append)
        ray.remote = lambda **options: lambda make: None
        monkeypatch.setattr(ray_executor, "connect", lambda address: (ray, False))
        actor = SimpleNamespace(drain=SimpleNamespace(remote=lambda: None))
        monkeypatch.setattr(ray_executor, "_start_progress_actor", lambda ray: actor)
        context = WorkerContext("run", data, chosen, None)
        RayExecutor(
            cluster,
            context,
            load_parent=lambda name: {},
            callback=NullCallback(),
            should_stop=lambda: False,
        )
        return contexts[0].settings.threads

    assert (
        threads(RayCluster(gpus_per_trial=1)) == 4 and threads(RayCluster(gpus_per_trial=0.5)) == 2
    )
    assert (
        threads(RayCluster(cpus_per_trial=3, gpus_per_trial=1)) == 3
        and threads(RayCluster(gpus_per_trial=1), requested=2) == 2
    )
    assert threads(RayCluster()) == 1 and threads(RayCluster(cpus_per_trial=3)) == 3
    assert threads(RayCluster(), requested=2) == 2


def test_a_feature_extractor_is_copied_to_another_device(data: ImageSet) -> None:
    scorer = untrained_own_extractor(data.images)
    again = extractor_to(scorer, torch.device("cpu"))
    assert (
        again is not scorer
        and again is not None
        and extractor_to(None, torch.device("cpu")) is None
    )
    images = torch.from_numpy(data.images[:4])
    assert again.fingerprint == scorer.fingerprint
    assert torch.equal(again(images), scorer(images))


def test_the_progress_actor_keeps_the_newest_update_of_each_kind() -> None:
    actor, point = ProgressActor(), TrainingProgress(0.5, 8, 1.0, 1.0, {})
    for images in (8, 16):
        actor.publish(ProgressUpdate("0001", TrainingStatus((16, 16), 1.0, images), point))
    actor.publish(OutOfMemoryUpdate("0001", 2))
    actor.publish(ProgressUpdate("0002", TrainingStatus((16, 16), 1.0, 8), None))
    assert actor.drain() == [
        ProgressUpdate("0001", TrainingStatus((16, 16), 1.0, 16), point),
        OutOfMemoryUpdate("0001", 2),
        ProgressUpdate("0002", TrainingStatus((16, 16), 1.0, 8), None),
    ]
    assert actor.drain() == []


def test_progress_updates_are_rate_limited() -> None:
    updates: list[Any] = []
    reporter = ProgressReporter(
        SimpleNamespace(publish=SimpleNamespace(remote=updates.append)), interval_seconds=1000
    )
    trial, status = make_trial(), TrainingStatus((16, 16), 1.0, 8)
    for _ in range(5):
        reporter.on_progress(trial, status, TrainingProgress(0.5, 8, 1.0, 1.0, {}))
    assert len(updates) == 1
    reporter.on_progress(trial, status, None)  # the start of scoring is reported immediately
    reporter.on_out_of_memory(trial, 2)
    assert [update.trial_id for update in updates] == ["0001"] * 3
    assert len(pickle.dumps(updates[0])) < 400


def make_trial() -> Trial:
    specs = SearchSpace("pggan", settings().network, 1, (16, 16)).specs_at(2)
    return Trial(
        "0001", 0, Proposal(None, 0.1, root_specs=specs), TrainingSegment(images=8), 0, settings()
    )


def test_a_worker_with_another_version_is_refused(data: ImageSet) -> None:
    context = WorkerContext("run", data, settings(), None, version="0.0.1")
    with pytest.raises(UserError, match=r"but the driver has 0\.0\.1; install the same"):
        train_candidate(context, None, make_trial(), None)


class FailingRay:
    """A stand-in for Ray whose ``get`` raises the given errors first, then returns a result."""

    class exceptions:  # Ray's name
        RayError = type("RayError", (Exception,), {})
        RayTaskError = type("RayTaskError", (RayError,), {})
        WorkerCrashedError = type("WorkerCrashedError", (RayError,), {})

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references[:1], []

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        if reference == "updates":
            raise self.exceptions.RayError("the actor is gone")
        if self.errors:
            raise self.errors.pop(0)
        return TrialResult(make_trial(), images_trained=8)


def make_executor(ray: Any, remote: Callable[..., Any], workers: int = 1) -> RayExecutor:
    """Return an executor with ``workers`` workers that starts trials with ``remote``."""
    executor = RayExecutor.__new__(RayExecutor)
    executor._ray, executor._num_losses = ray, Counter()
    executor._should_stop = lambda: False
    executor._running_trials, executor._parent_refs, executor._context_ref = {}, {}, None
    executor._num_workers, executor._counted_at = workers, float("inf")
    actor = SimpleNamespace(drain=SimpleNamespace(remote=lambda: "updates"))
    executor._progress_actor, executor._callback, executor._pending_updates = (
        actor,
        NullCallback(),
        "updates",
    )
    executor._remote_train = SimpleNamespace(remote=remote)
    return executor


def run_failing_trial(*errors: Exception) -> TrialResult:
    """Return the result of a trial whose worker fails with these errors first."""
    executor = make_executor(FailingRay(*errors), lambda *words: object())
    executor.submit(make_trial())
    return executor.wait()


class SimulatedRay:
    """A stand-in for Ray with two workers. A trial takes as long as its segment."""

    exceptions = FailingRay.exceptions

    def __init__(self, meter: BudgetMeter) -> None:
        self.meter, self.free_at, self.max_running = meter, [0.0, 0.0], 0
        self.ends: dict[str, float] = {}  # by trial
        self.finished: list[str] = []

    def begin(self, context: Any, actor: Any, trial: Trial, files: Any) -> str:
        start = max(self.meter.elapsed, self.free_at.pop(0))
        self.ends[trial.id] = start + (trial.segment.seconds or 0)
        self.free_at = sorted([*self.free_at, self.ends[trial.id]])
        self.max_running = max(self.max_running, len(self.ends))
        return trial.id

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        waiting = [name for name in references if name in self.ends]
        return sorted(waiting, key=self.ends.__getitem__)[:1], []

    def get(self, reference: str) -> TrialResult:
        self.meter.add_elapsed(max(0.0, self.ends.pop(reference) - self.meter.elapsed))
        self.finished.append(reference)
        return TrialResult(make_trial())


def test_a_segment_is_allocated_when_a_worker_is_idle() -> None:
    """The 20 proposals would take two workers 190 s, but the budget is 100 s."""
    chosen, meter = settings(), BudgetMeter(Budget(seconds=100))
    space = SearchSpace("pggan", chosen.network, 1, (16, 16))
    fractions = [0.3, 0.1] * 10
    proposals = [Proposal(None, share, root_specs=space.specs_at(2)) for share in fractions]
    history, ray = History(space, meter.budget, 0), SimulatedRay(meter)
    trials = BudgetAllocator(meter, 8).allocate_trials(
        proposals, history, chosen, first_id=0, overhead_seconds=1.0
    )
    names = [result.trial.id for result in make_executor(ray, ray.begin, workers=2).run(trials)]
    assert 95 < meter.elapsed < 100 and ray.max_running == 2
    assert names == sorted(names) == sorted(ray.finished) and ray.finished != names


def test_the_driver_never_waits_for_updates() -> None:
    executor = RayExecutor.__new__(RayExecutor)
    executor._ray = SimpleNamespace(wait=lambda references, timeout: ([], references))
    executor._pending_updates = "pending"
    assert executor._fetch_updates() == [] and executor._pending_updates == "pending"


def test_a_trial_whose_worker_is_lost_restarts(data: ImageSet, tmp_path: Path) -> None:
    exceptions = FailingRay.exceptions
    assert run_failing_trial(*[exceptions.RayError("a machine died")] * 3).images_trained == 8
    result = run_failing_trial(*[exceptions.RayError("a machine died")] * 4)
    assert result.worker_lost and result.error == "its worker was lost 4 times: a machine died"
    assert run_failing_trial(exceptions.WorkerCrashedError("it crashed")).worker_lost
    with pytest.raises(exceptions.RayTaskError):
        run_failing_trial(*[exceptions.RayTaskError("a bug")] * 4)
    mistake = exceptions.RayTaskError("a mistake")
    mistake.cause = UserError("no such thing")
    with pytest.raises(UserError, match="no such thing"):
        run_failing_trial(mistake)


def test_a_lost_worker_is_recorded_without_mitigation(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original_run, lost_ids = SerialExecutor.run, []

    def run(executor: SerialExecutor, trials: Any) -> Iterator[TrialResult]:
        for result in original_run(executor, trials):
            is_lost = result.trial.id == "0001"
            lost_ids.append(result.trial.id) if is_lost else None
            yield (
                TrialResult(result.trial, error="its worker was lost", worker_lost=True)
                if is_lost
                else result
            )

    monkeypatch.setattr(SerialExecutor, "run", run)
    finished = gg.grow(data, out=tmp_path / "run", images=1600, settings=settings())
    assert lost_ids == ["0001"]
    (child,) = [e for e in finished.events if e["event"] == "candidate" and e["id"] == "0001"]
    assert child["error"] == "its worker was lost" and child["failure"] is None
    assert not [e for e in finished.events if e["event"] == "mitigation"]


def test_a_history_finds_candidates_by_id_and_its_best() -> None:
    space = SearchSpace("pggan", settings().network, 1, (16, 16))
    specs = space.specs_at(2)
    rest = (NO_GROWTH, *specs, 8, 1.0, 1.0, 8.0)
    children = tuple(
        Candidate(f"{i:04d}", f"{i - 1:04d}" if i else None, i, *rest, 9.0 - i, 0.1, 1.0, 0.1, {})
        for i in range(5)
    )
    history = History(space, Budget(images=80), 0).with_round(children, ("0004",))
    assert history["0003"] is children[3] and history.best is children[4]
    assert history.lineage(children[4]) == list(children)
    with pytest.raises(KeyError):
        history["0005"]
    assert replace(history, corrupted_ids=frozenset(["0004"])).best is children[3]
    assert history.with_round((replace(children[0], id="0005", score=0.1),), ()).best == (
        replace(children[0], id="0005", score=0.1)
    )


def test_ray_and_torchrun_cannot_be_combined(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("growgan.run.grow.init_distributed", lambda: DistributedContext(1, 2))
    with pytest.raises(UserError, match="no meaning under torchrun"):
        gg.grow(data, out=tmp_path / "run", images=80, settings=settings(), cluster=RayCluster())


# One run per class

RUN_OPTIONS = RunOptions(
    preset="pggan",
    source="glyphs",
    resolution="16",
    max_broken=0.05,
    seed=0,
    budget="10m",
    images=None,
)


def make_ensemble(folder: Path) -> PerClassEnsemble:
    return create_or_open(folder, {"classes": ["one"], "command": [], "settings": []})


def test_a_class_that_stopped_early_is_not_finished(tmp_path: Path) -> None:
    ensemble = make_ensemble(tmp_path / "ensemble")
    ledger = ensemble.run_dir(0) / "ledger.jsonl"
    ledger.parent.mkdir()
    ledger.touch()  # killed before the first event
    assert not ensemble.has_started(0) and not ensemble.is_finished(0)
    Ledger(ledger).append({"event": "start", "format": LEDGER_FORMAT})
    assert ensemble.has_started(0) and not ensemble.is_finished(0)
    Ledger(ledger).append({"event": "end", "best": "0000", "stop_reason": "it diverged"})
    assert not ensemble.is_finished(0)
    Ledger(ledger).append({"event": "end", "best": "0000"})
    assert ensemble.is_finished(0)


def start_training_a_class(folder: Path, stop: Event) -> Path:
    """Start a long run of a class in a thread; return its ledger once it trains."""
    overrides = ["score.kind=swd", "batch_size=8", "network.width=8", "threads=1"]
    ensemble = make_ensemble(folder)
    kwargs = {"options": RUN_OPTIONS, "overrides": overrides, "stop": stop}
    Thread(target=train_class, args=(ensemble, 0), kwargs=kwargs, daemon=True).start()
    wait_for(lambda: (ensemble.run_dir(0) / "stats.jsonl").is_file())
    return ensemble.run_dir(0) / "ledger.jsonl"


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("fake_ray_extra")
def test_workers_get_absolute_paths_and_a_share_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_ensemble(Path("ensemble"))
    (tmp_path / "photos").mkdir()
    calls: list[Any] = []
    monkeypatch.setattr(
        ray_map, "map_on_workers", lambda cluster, make, labels: calls.append(make) or []
    )
    for data in ("photos", "digits"):
        _train_on_ray(
            PerClassEnsemble(Path("ensemble")),
            [],
            options=replace(RUN_OPTIONS, source=data),
            overrides=[],
            cluster=RayCluster(),
        )
    assert [call.args[0].path for call in calls] == [tmp_path / "ensemble"] * 2
    assert [call.keywords["options"].source for call in calls] == [
        str(tmp_path / "photos"),
        "digits",
    ]
    assert _resource_overrides(RayCluster(cpus_per_trial=3), 1) == ["threads=3", "device=cpu"]
    assert _resource_overrides(RayCluster(gpus_per_trial=1), 1) == ["threads=1"]
    monkeypatch.setattr("growgan.data.parallel.num_available_cores", lambda: 8)
    assert _resource_overrides(None, 3) == ["threads=2"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stopped_class_saves_a_checkpoint(tmp_path: Path) -> None:
    stop = Event()
    run = start_training_a_class(tmp_path / "ensemble", stop).parent
    stop.set()
    wait_for(lambda: not (run / ".owner").exists())
    assert list((run / "candidates").glob(".0000.checkpoint-*"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_a_class_dies_with_the_worker_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from growgan.artifacts.per_class_ensemble import PerClassEnsemble\n"
        "from growgan.cli.per_class import RunOptions, train_class\n"
        "options = RunOptions(preset='pggan', source='glyphs', resolution='16', max_broken=0.05,\n"
        "    seed=0, budget='10m', images=None)\n"
        "overrides = 'score.kind=swd batch_size=8 network.width=8 threads=1'.split()\n"
        "ensemble = PerClassEnsemble(Path(sys.argv[1]))\n"
        "train_class(ensemble, 0, options=options, overrides=overrides)\n"
    )
    ensemble = make_ensemble(tmp_path / "ensemble")
    worker = subprocess.Popen([sys.executable, "-c", program, str(ensemble.path)])
    wait_for(lambda: (ensemble.run_dir(0) / "stats.jsonl").is_file())
    worker.kill()
    worker.wait()
    time.sleep(0.5)
    with run_lock(ensemble.run_dir(0)):  # the lock is free
        pass


# With Ray itself


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    module = pytest.importorskip("ray")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    module.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield module
    module.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_rounds_on_a_cluster_give_the_serial_ledger_even_if_a_worker_dies(
    data: ImageSet, tmp_path: Path, ray: Any
) -> None:
    serial = gg.grow(data, out=tmp_path / "alone", images=2400, settings=settings())
    assert sum(bool(e.get("parent")) for e in serial.events) > 5
    shared = gg.grow(
        data, out=tmp_path / "shared", images=2400, settings=settings(), cluster=RayCluster()
    )
    assert ledger_without_times(shared) == ledger_without_times(serial)
    np.testing.assert_array_equal(shared.best.sample(8), serial.best.sample(8))
    killed = []

    def kill() -> None:
        while not killed:
            process = subprocess.run(
                ["pgrep", "-f", "ray::train_candidate"], capture_output=True, text=True
            )
            for pid in process.stdout.split()[:1]:
                os.kill(int(pid), signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.05)

    threading.Thread(target=kill, daemon=True).start()
    again = gg.grow(
        data, out=tmp_path / "again", images=2400, settings=settings(), cluster=RayCluster()
    )
    assert killed and ledger_without_times(again) == ledger_without_times(serial)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_asynchronous_mode_on_a_cluster_spends_the_budget(
    data: ImageSet, tmp_path: Path, ray: Any
) -> None:
    run = gg.grow(
        data,
        out=tmp_path / "run",
        images=2400,
        settings=settings(),
        cluster=RayCluster(asynchronous=True),
    )
    children = [e for e in run.events if e["event"] == "candidate"]
    check_parents(children)
    assert not any(child.get("error") for child in children)
    assert len(children) > 4 and run.events[-1]["event"] == "end"
    assert (run.path / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_a_killed_driver_resumes_from_the_ledger(data: ImageSet, tmp_path: Path, ray: Any) -> None:
    uninterrupted = gg.grow(data, out=tmp_path / "uninterrupted", images=2400, settings=settings())
    assert data.labels is not None
    np.savez(tmp_path / "data.npz", images=data.images.transpose(0, 2, 3, 1), labels=data.labels)
    program = (
        "import sys, growgan as gg\n"
        "from growgan.config import Settings\n"
        "from pathlib import Path\n"
        "d = gg.load_images(sys.argv[1]); s = Settings.from_yaml(Path(sys.argv[3]))\n"
        "gg.grow(d, out=sys.argv[2], images=2400, settings=s, cluster=gg.RayCluster())\n"
    )
    (tmp_path / "settings.yaml").write_text(settings().to_yaml())
    arguments = [str(tmp_path / "data.npz"), str(tmp_path / "run"), str(tmp_path / "settings.yaml")]
    driver = subprocess.Popen([sys.executable, "-c", program, *arguments])
    ledger = tmp_path / "run" / "ledger.jsonl"
    while not ledger.is_file() or ledger.read_text().count('"candidate"') < 4:
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    loaded = gg.load_images(str(tmp_path / "data.npz"))
    run = gg.grow(loaded, out=tmp_path / "run", resume=True, cluster=RayCluster())
    event_names = ("candidate", "select")
    first, second = (
        [e for e in ledger_without_times(r) if e["event"] in event_names]
        for r in (uninterrupted, run)
    )
    assert second == first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_trial_that_fits_on_no_node_is_refused(data: ImageSet, tmp_path: Path, ray: Any) -> None:
    with pytest.raises(UserError, match="no node of the Ray cluster has 64 CPUs"):
        gg.grow(
            data,
            out=tmp_path / "run",
            images=80,
            settings=settings(),
            cluster=RayCluster(cpus_per_trial=64),
        )
    gpu_cluster = replace(RayCluster(), gpus_per_trial=1)
    with pytest.raises(UserError, match="and 1 GPUs, which each trial needs"):
        gg.grow(data, out=tmp_path / "other", images=80, settings=settings(), cluster=gpu_cluster)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_per_class_runs_are_the_same_on_workers_and_locally(
    data: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray: Any
) -> None:
    """Workers give the same runs as local processes. An ensemble they cannot see is refused."""
    folder = tmp_path / "data"
    for label, name in enumerate(("one", "two")):
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(data.images[label::2][:16]):
            Image.fromarray(image[0]).save(folder / name / f"{i}.png")
    overrides = ["batch_size=8", "network.latent_dim=8", "network.width=8", "score.num_samples=16"]
    overrides += ["network.mbstd_group_size=4", "precision=float32"]
    command = ["per-class", "pggan", str(folder), "--images", "64", "--jobs", str(os.cpu_count())]
    command += [word for override in overrides for word in ("--set", override)]
    assert main([*command, "--out", str(tmp_path / "local")]) == 0
    assert main([*command, "--out", str(tmp_path / "remote"), "--executor", "ray"]) == 0
    local, remote = PerClassEnsemble(tmp_path / "local"), PerClassEnsemble(tmp_path / "remote")
    assert remote.is_finished(0) and remote.is_finished(1)
    assert np.array_equal(local.sample(8), remote.sample(8))
    train_unseen = partial(
        train_class, PerClassEnsemble(tmp_path / "nowhere"), options=RUN_OPTIONS, overrides=[]
    )
    with pytest.raises(UserError, match="a worker cannot see"):
        list(map_on_workers(RayCluster(), train_unseen, [0]))
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "x"), "--ray-address", "somewhere"]) == 2
    assert "need --executor ray" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("executor_options", [[], ["--executor", "ray"]], ids=["local", "ray"])
def test_sigterm_lets_classes_save(tmp_path: Path, executor_options: list[str]) -> None:
    """This also holds where SIGINT is ignored, as in the background of a batch job."""
    pytest.importorskip("ray")
    out = tmp_path / "ensemble"
    command = [
        "per-class",
        "pggan",
        "digits",
        "--out",
        str(out),
        "--only-class",
        "0",
        *executor_options,
    ]
    command += [
        word for override in ("batch_size=8", "network.width=8") for word in ("--set", override)
    ]
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from growgan.cli.app import main; sys.exit(main(sys.argv[1:]))\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", program, *command])
    run = out / "class-000"
    wait_for(lambda: (run / "stats.jsonl").is_file())
    caller.terminate()
    assert caller.wait(timeout=100) == 130
    assert list((run / "candidates").glob(".0000.checkpoint-*")) and not (run / ".owner").exists()


def test_two_atomic_writers_use_different_temporary_files(tmp_path: Path) -> None:
    """The names differ even between machines with the same process and thread ids."""
    with atomic_write(tmp_path / "x.json") as mine, atomic_write(tmp_path / "x.json") as other:
        mine.write_text("mine")
        other.write_text("other")
        assert mine != other and mine.suffix == other.suffix == ".json"
    assert (tmp_path / "x.json").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
