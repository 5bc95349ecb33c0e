"""Searches on workers: the same ledger in rounds, order without them, and what dies on the way."""

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
from growgan.cli.app import main
from growgan.cli.per_label import _own, _there
from growgan.config import Settings, make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.growth import cluster as on_cluster
from growgan.growth.actions import UNCHANGED, Growth
from growgan.growth.budget import Budget, Meter
from growgan.growth.cluster import Cluster, RayExecutor, spread
from growgan.growth.desk import Desk, planned
from growgan.growth.executor import Outcome, SerialExecutor, Silent, Task
from growgan.growth.history import Candidate, History, Proposal, Space
from growgan.growth.ledger import Ledger
from growgan.growth.lock import held
from growgan.growth.policies import Dynamic, Selection
from growgan.growth.pool import Pool, begin, train_label
from growgan.growth.run import _settled
from growgan.growth.search import Search
from growgan.growth.stop import Stop
from growgan.growth.worker import Board, Common, Seen, Teller, make, moved
from growgan.metrics.features import untrained
from growgan.nets.edits import Widen
from growgan.report.files import replacing
from growgan.training.checkpoint import packed, save_gan, unpacked
from growgan.training.gan import Gan
from growgan.training.ranks import Ranks
from growgan.training.runtime import Runtime
from growgan.training.stage import Progress, Slice

Make = Callable[..., ImageSet]
pytestmark = pytest.mark.usefixtures("own_cache")
# Trials in each round, of small pairs.
POLICY = {"anew": False, "tries": 3, "images": 1, "shown": 1e-6, "search": 0.6, "threshold": 100.0}
CLOCK = {"elapsed", "seconds", "trained", "time", "rate", "memory", "cost", "crc", "machine"}


def settings() -> Settings:
    return make_settings(
        {
            "policy": "dynamic",
            "growth": {**POLICY, "start": 16, "trial": 0.1},
            "batch": 8,
            "stack": {"latent": 8, "width": 8},
            "score": {"kind": "swd", "samples": 32},
            "precision": "float32",
            "threads": 1,
        }
    )


@pytest.fixture
def data(make_images: Make) -> ImageSet:
    return make_images(96, 1, 16, 16)


def told(run: gg.Run) -> list[dict[str, Any]]:
    """Return a run's ledger without what the clock says."""
    return [{k: v for k, v in event.items() if k not in CLOCK} for event in run.events]


class Shuffled:
    """A crew of this process, whose newest child is always finished first."""

    def __init__(self, inner: SerialExecutor, workers: int) -> None:
        self.inner, self.workers = inner, workers
        self.flying: list[tuple[Task, Gan | None]] = []
        self.most = 0

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        yield from self.inner.run(tasks)

    def submit(self, task: Task) -> None:
        parent = task.proposal.parent
        self.flying.append((task, self.inner.parent(parent) if parent else None))
        self.most = max(self.most, len(self.flying))

    def wait(self) -> Outcome:
        return self.inner.trainer.make(*self.flying.pop())


def freely(data: ImageSet, out: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> Shuffled:
    """Run a search without rounds in this process."""
    crews = []

    def run(search: Search, executor: SerialExecutor) -> Any:
        crews.append(Shuffled(executor, workers))
        return search.run_freely(crews[0])

    monkeypatch.setattr(Search, "run", run)
    gg.grow(data, out=out, images=2400, settings=settings())
    return crews[0]


def test_without_rounds_every_worker_has_something_to_do(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = freely(data, tmp_path / "run", monkeypatch, workers=3)
    assert crew.most == 3
    run = gg.Run.open(tmp_path / "run")
    children = [e for e in run.events if e["event"] == "candidate"]
    names = [e["id"] for e in children]
    assert names != sorted(names) and sorted(names) == [f"{i:04d}" for i in range(len(names))]
    check_parents(children)
    # Not even a parent that was a little better is trained on twice.
    tried = [(e["parent"], e["growth"]) for e in children]
    assert len(set(tried)) == len(tried)
    own = [e["images"] - (0 if e["parent"] is None else by_id(children, e)) for e in children]
    assert sum(own) <= 2400 and sum(own) > 2400 - 8 * crew.workers
    assert run.best.sample(2).shape == (2, 16, 16, 1)
    # What one left behind another may take up, with rounds again.
    monkeypatch.undo()
    gg.grow(data, out=tmp_path / "run", images=3200, resume=True)
    later = [e["id"] for e in run.events if e["event"] == "candidate"]
    assert len(set(later)) == len(later) > len(names)


def test_a_single_free_worker_tries_growths_as_rounds_do(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = gg.grow(data, out=tmp_path / "rounds", images=2400, settings=settings())
    freely(data, tmp_path / "free", monkeypatch, workers=1)
    found = told(gg.Run.open(tmp_path / "free"))
    assert {event["growth"] for event in found if "growth" in event} - {"train on"}
    assert found == told(alone)


class Judge(Search):
    """A search that is told who arrives, of pairs that nobody trained."""

    def __init__(self, *known: Candidate) -> None:
        space = Space("pggan", settings().stack, 1, (16, 16))
        self.history = History(space, Budget(images=2400), 0)
        self.policy, self.settings, self._since = Dynamic(), settings(), 0
        self.reasons: list[str] = []
        for each in known:
            self._adopt(self.history.with_round((each,), (each.id,)))

    def _settle(self, known: History, choice: Selection) -> None:
        self._adopt(replace(known, alive=choice.alive))
        self.reasons.append(choice.reason)

    def arrives(self, child: Candidate, *flying: Proposal) -> str:
        """Return who leads once a child is back, others being under way."""
        piece, own = Slice(images=8), settings()
        tasks = [Task("99", 0, each, piece, 0, own) for each in flying]
        self._arrived(child, tasks)
        return self.history.alive[0]


def born(
    number: int, parent: int | None, score: float, round_: int, growth: Growth = UNCHANGED
) -> Candidate:
    """Return a candidate of 16 x 16 pixels whose score is nearly certain."""
    specs = Space("pggan", settings().stack, 1, (16, 16)).stacks(2)
    before = None if parent is None else f"{parent:04d}"
    name, rest = f"{number:04d}", (8, 1.0, 1.1, 8.0, score, 1e-6, 1.0, 0.1, {})
    return Candidate(name, before, round_, growth, *specs, *rest)


WIDER = Growth((Widen(),), ())
ON = Proposal("0000", 0.1)  # the leader trains on


def test_a_growth_waits_for_who_trains_on_from_the_same_leader() -> None:
    for gained, score in ((True, 0.8), (False, 0.95)):
        judge = Judge(born(0, None, 1.0, 0))
        assert judge.arrives(born(2, 0, score, 1, WIDER), ON) == "0000"
        assert judge.reasons == ["0002 waits until 0000 has trained on"]
        assert judge._waiting() == ["0002"]
        assert judge.arrives(born(1, 0, 0.9, 1)) == ("0002" if gained else "0001")
        assert judge._waiting() == []


def test_a_growth_that_gained_is_taken_up_soon_after() -> None:
    for lag in range(4):
        judge = Judge(born(0, None, 1.0, 0))
        for k in range(lag + 1):  # the leader trains on, each time a little better
            assert judge.arrives(born(k + 1, k, 0.9 - 0.06 * k, k + 1)) == f"{k + 1:04d}"
        taken = lag <= 2
        assert judge.arrives(born(9, 0, 0.8, 1, WIDER)) == ("0009" if taken else f"{lag + 1:04d}")
        assert judge.reasons[-1].startswith("late: " if taken else "0009 came too late")
        # What was under way from the leader that was given up comes to nothing.
        if taken:
            assert judge.arrives(born(10, lag + 1, 0.5, lag + 2)) == "0009"
    judge = Judge(born(0, None, 1.0, 0))
    assert judge.arrives(born(1, 0, 0.7, 1)) == "0001"
    assert judge.arrives(born(9, 0, 0.8, 1, WIDER)) == "0001"  # worse than who trained on


def test_what_was_proposed_alone_is_judged_alone() -> None:
    judge = Judge(born(0, None, 1.0, 0))
    assert judge.arrives(born(1, 0, 3.0, 1, WIDER)) == "0001"
    wider = born(2, None, 9.0, 2)  # begun anew
    assert judge.arrives(wider) == "0002"


@pytest.mark.parametrize("policy", ["progressive", "dynamic"])
def test_resolutions_are_climbed_without_rounds(
    make_images: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    growth = {"step": 0.1, "start": 8} if policy == "dynamic" else {}
    own = settings().model_dump() | {"policy": policy, "growth": growth}

    def run(search: Search, executor: SerialExecutor) -> Any:
        return search.run_freely(Shuffled(executor, 3))

    monkeypatch.setattr(Search, "run", run)
    made = gg.grow(make_images(96, 1, 16, 16), out=tmp_path / "run", images=800, settings=own)
    children = [e for e in made.events if e["event"] == "candidate"]
    sides = [e["resolution"][0] for e in children if "strided" in e["growth"]]
    assert sides and sides == sorted(set(sides)) and sides[-1] == 16  # each doubling but once
    assert children[0]["resolution"][0] < 16
    led = {e["alive"][0] for e in made.events if e["event"] == "select"}
    assert led >= {e["id"] for e in children if "strided" in e["growth"]}


def check_parents(children: list[dict[str, Any]]) -> None:
    """Whoever goes on from another one comes after it."""
    seen = {None}
    for child in children:
        assert child["parent"] in seen
        seen.add(child["id"])


def by_id(children: list[dict[str, Any]], child: dict[str, Any]) -> int:
    (parent,) = [e for e in children if e["id"] == child["parent"]]
    return int(parent["images"])


def test_tasks_of_a_round_do_not_hang_on_each_other(data: ImageSet) -> None:
    chosen = settings()
    space = Space("pggan", chosen.stack, 1, (16, 16))
    proposals = [Proposal(None, 0.25, stacks=space.stacks(2)) for _ in range(6)]
    meter = Meter(Budget(images=100))
    history = History(space, meter.budget, 0)
    desk = Desk(meter, 8)
    at_once = list(desk.tasks(proposals, history, chosen, 0, 1.0))
    in_turn = []
    for task in desk.tasks(proposals, history, chosen, 0, 1.0):
        in_turn.append(task)
        meter.images += 8  # whatever it was, up to a divergence
    assert at_once == in_turn
    assert [task.piece.images for task in at_once] == [24, 24, 24, 24]
    assert planned(at_once) == 96
    meter.images = 0
    assert [t.piece.images for t in desk.tasks(proposals, history, chosen, 3, 1.0, 80)] == [16]


def test_time_on_more_workers_is_time_for_more_trials() -> None:
    assert Dynamic(trial=0.04, search=0.08)._affordable(at(1)) == 2
    assert Dynamic(trial=0.04, search=0.08)._affordable(at(8)) == 16


def at(workers: int) -> History:
    space = Space("pggan", settings().stack, 1, (16, 16))
    return History(space, Budget(seconds=60), 0, workers=workers)


def test_a_pair_travels_as_its_files(tmp_path: Path, make_images: Make) -> None:
    chosen = settings()
    specs = Space("pggan", chosen.stack, 1, (16, 16)).stacks(2)
    gan = Gan.create(*specs, chosen.optimiser, seed=3)
    save_gan(gan, tmp_path / "gan")

    files = packed(gan)
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "gan").iterdir()}
    again = unpacked(files)
    for mine, other in zip(gan.generator.parameters(), again.generator.parameters(), strict=True):
        np.testing.assert_array_equal(mine.detach(), other.detach())


def test_options_of_a_cluster_are_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def said(*options: str) -> str:
        assert main(["grow", "glyphs", "--out", str(tmp_path / "run"), *options]) == 2
        return capsys.readouterr().err

    assert "unknown executor 'slurm'" in said("--executor", "slurm")
    assert "--address, --cpus, --gpus and --free are of --executor ray" in said("--free")
    monkeypatch.setitem(sys.modules, "ray", None)
    ends = ("--images", "800", "--resolution", "16", "--executor", "ray")
    assert "pip install 'growgan[cluster]'" in said(*ends)


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra ``cluster`` as if installed, for what only describes a cluster."""
    monkeypatch.setattr(on_cluster, "require", lambda *words: None)


def machine(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": resources}


def test_room_is_counted_machine_by_machine() -> None:
    room, halves = on_cluster._room, [{"CPU": 2.0}, {"CPU": 2.0}]
    assert room(halves, 3, 0) == 0  # four CPUs together are no room for three
    assert room(halves, 1, 0) == 4
    assert room([{"CPU": 32.0, "GPU": 8.0}, {"CPU": 64.0}], 4, 1) == 8
    assert room([{"CPU": 64.0, "GPU": 1.0}], 1, 0.1) == 10  # and 1 // 0.1 is 9.0
    ray = SimpleNamespace(nodes=lambda: [machine(CPU=4), {"Alive": False, "Resources": {"CPU": 8}}])
    assert on_cluster._machines(ray) == [{"CPU": 4}]


@pytest.mark.usefixtures("extra")
def test_a_child_takes_its_gpus_share_of_the_cpus() -> None:
    machines = [{"CPU": 32.0, "GPU": 8.0}, {"CPU": 12.0, "GPU": 4.0}, {"CPU": 64.0}]
    need = on_cluster._need
    assert need(machines, Cluster(gpus=1), 32) == (3, 1)
    assert need(machines, Cluster(gpus=0.5), 32) == (1, 0.5)
    assert need(machines, Cluster(cpus=5, gpus=1), 32) == (5, 1)
    assert need(machines, Cluster(), 4) == (4, 0)
    assert need(machines, Cluster(), None) == (1, 0)


@pytest.mark.usefixtures("extra")
def test_without_gpus_of_its_own_a_child_trains_on_cpus(data: ImageSet) -> None:
    assert on_cluster._placed(settings(), Cluster()).device == "cpu"
    assert on_cluster._placed(settings(), Cluster(gpus=1)).device == "auto"
    with pytest.raises(UserError, match="device 'cuda' needs --gpus above 0"):
        on_cluster._placed(settings().model_copy(update={"device": "cuda"}), Cluster())


def test_the_head_decides_the_precision_of_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    automatic = settings().model_copy(update={"precision": "auto"})

    def placed(kind: str, fast: bool, gpus: float) -> str:
        here = Runtime(torch.device(kind), fast)
        monkeypatch.setattr(on_cluster, "runtime_of", lambda settings: here)
        return on_cluster._placed(automatic, SimpleNamespace(gpus=gpus)).precision

    assert placed("cpu", False, 0) == "float32" and placed("cpu", True, 0) == "bfloat16"
    assert placed("cuda", True, 0.5) == "bfloat16"
    assert placed("cpu", False, 1) == "auto"  # a head without a GPU knows nothing of theirs


@pytest.mark.usefixtures("extra")
def test_a_child_computes_by_as_many_threads_as_it_takes_cpus(
    data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(cluster: Cluster, named: int | None = None) -> int | None:
        chosen, put = settings().model_copy(update={"threads": named}), []
        chosen = _settled(chosen, Budget(images=80), data, cluster)
        ray = SimpleNamespace(nodes=lambda: [machine(CPU=8, GPU=2)], put=put.append)
        ray.remote = lambda **how: lambda make: None
        monkeypatch.setattr(on_cluster, "_connected", lambda address: (ray, False))
        board = SimpleNamespace(take=SimpleNamespace(remote=lambda: None))
        monkeypatch.setattr(on_cluster, "_board", lambda ray: board)
        common = Common("run", data, chosen, None)
        RayExecutor(cluster, common, lambda name: {}, Silent(), Stop())
        return put[0].settings.threads

    assert threads(Cluster(gpus=1)) == 4 and threads(Cluster(gpus=0.5)) == 2
    assert threads(Cluster(cpus=3, gpus=1)) == 3 and threads(Cluster(gpus=1), named=2) == 2
    assert threads(Cluster()) == 1 and threads(Cluster(cpus=3)) == 3
    assert threads(Cluster(), named=2) == 2


def test_a_network_that_scores_moves_to_a_worker(data: ImageSet) -> None:
    scorer = untrained(data.images)
    again = moved(scorer, torch.device("cpu"))
    assert again is not scorer and again is not None and moved(None, torch.device("cpu")) is None
    images = torch.from_numpy(data.images[:4])
    assert again.fingerprint == scorer.fingerprint
    assert torch.equal(again(images), scorer(images))


def test_the_board_keeps_the_newest_word_of_each_child() -> None:
    board, point = Board(), Progress(0.5, 8, 1.0, 1.0, {})
    for images in (8, 16):
        board.write(("0001", Seen((16, 16), 1.0, images), point))
    board.write(("0001", 2, None))
    board.write(("0002", Seen((16, 16), 1.0, 8), None))
    seen = [Seen((16, 16), 1.0, 16), 2, Seen((16, 16), 1.0, 8)]
    assert [word[1] for word in board.take()] == seen and board.take() == []


def test_workers_of_a_large_cluster_tell_less_often() -> None:
    words: list[Any] = []
    teller = Teller(SimpleNamespace(write=SimpleNamespace(remote=words.append)), every=1000)
    task, gan = a_task(), SimpleNamespace(resolution=(16, 16), alpha=1.0, images=8)
    for _ in range(5):
        teller.report(task, gan, Progress(0.5, 8, 1.0, 1.0, {}))
    assert len(words) == 1
    teller.report(task, gan, None)  # that it is being scored is said at once
    teller.out_of_memory(task, 2)
    assert [word[0] for word in words] == ["0001"] * 3 and len(pickle.dumps(words[0])) < 400


def a_task() -> Task:
    stacks = Space("pggan", settings().stack, 1, (16, 16)).stacks(2)
    return Task("0001", 0, Proposal(None, 0.1, stacks=stacks), Slice(images=8), 0, settings())


def test_a_worker_of_another_version_is_refused(data: ImageSet) -> None:
    common = Common("run", data, settings(), None, version="0.0.1")
    with pytest.raises(UserError, match=r"and the head has 0\.0\.1: install the same"):
        make(common, None, a_task(), None)


class Broken:
    """Ray, as an executor sees it: whatever is asked for raises the next error, then is there."""

    class exceptions:  # as Ray names it
        RayError = type("RayError", (Exception,), {})
        RayTaskError = type("RayTaskError", (RayError,), {})
        WorkerCrashedError = type("WorkerCrashedError", (RayError,), {})

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.begun = list(errors), 0

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references[:1], []

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        if reference == "board":
            raise self.exceptions.RayError("the board is gone")
        if self.errors:
            raise self.errors.pop(0)
        return Outcome(a_task(), images=8)


def executor_of(ray: Any, remote: Callable[..., Any], workers: int = 1) -> RayExecutor:
    """Return an executor of so many workers, who begin a task by ``remote``."""
    executor = RayExecutor.__new__(RayExecutor)
    executor._ray, executor._stop, executor._lost = ray, Stop(), Counter()
    executor._flying, executor._parents, executor._common = {}, {}, None
    executor._workers, executor._counted = workers, float("inf")
    take = SimpleNamespace(take=SimpleNamespace(remote=lambda: "board"))
    executor._board, executor._keeper, executor._asked = take, Silent(), "board"
    executor._make = SimpleNamespace(remote=remote)
    return executor


def outcome(*errors: Exception) -> Outcome:
    """Return what an executor makes of a task whose worker fails so often."""
    executor = executor_of(Broken(*errors), lambda *words: object())
    executor.submit(a_task())
    return executor.wait()


class Timed:
    """Ray with two workers, as an executor sees it: a child takes as long as its slice says."""

    exceptions = Broken.exceptions

    def __init__(self, meter: Meter) -> None:
        self.meter, self.free, self.most = meter, [0.0, 0.0], 0
        self.ends: dict[str, float] = {}  # by task
        self.finished: list[str] = []

    def begin(self, common: Any, board: Any, task: Task, files: Any) -> str:
        begun = max(self.meter.elapsed, self.free.pop(0))
        self.ends[task.id] = begun + (task.piece.seconds or 0)
        self.free = sorted([*self.free, self.ends[task.id]])
        self.most = max(self.most, len(self.ends))
        return task.id

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        known = [each for each in references if each in self.ends]
        return sorted(known, key=self.ends.__getitem__)[:1], []

    def get(self, reference: str) -> Outcome:
        self.meter.advance(max(0.0, self.ends.pop(reference) - self.meter.elapsed))
        self.finished.append(reference)
        return Outcome(a_task())


def test_a_round_cuts_a_slice_of_time_when_there_is_a_worker_for_it() -> None:
    """What 20 proposals ask for would take two workers 190 s, and there are 100."""
    chosen, meter = settings(), Meter(Budget(seconds=100))
    space = Space("pggan", chosen.stack, 1, (16, 16))
    shares = [0.3, 0.1] * 10
    proposals = [Proposal(None, share, stacks=space.stacks(2)) for share in shares]
    history, ray = History(space, meter.budget, 0), Timed(meter)
    tasks = Desk(meter, 8).tasks(proposals, history, chosen, 0, 1.0)
    names = [made.task.id for made in executor_of(ray, ray.begin, workers=2).run(tasks)]
    assert 95 < meter.elapsed < 100 and ray.most == 2
    assert names == sorted(names) == sorted(ray.finished) and ray.finished != names


def test_the_head_never_waits_for_what_workers_tell() -> None:
    executor = RayExecutor.__new__(RayExecutor)
    executor._ray = SimpleNamespace(wait=lambda references, timeout: ([], references))
    executor._asked = "asked"
    assert executor._words() == [] and executor._asked == "asked"


def test_a_task_whose_worker_is_lost_begins_anew_and_is_no_divergence(
    data: ImageSet, tmp_path: Path
) -> None:
    kinds = Broken.exceptions
    assert outcome(*[kinds.RayError("a machine died")] * 3).images == 8
    lost = outcome(*[kinds.RayError("a machine died")] * 4)
    assert lost.lost and lost.error == "its worker was lost 4 times: a machine died"
    assert outcome(kinds.WorkerCrashedError("it crashed")).lost
    with pytest.raises(kinds.RayTaskError):
        outcome(*[kinds.RayTaskError("a bug")] * 4)
    mistake = kinds.RayTaskError("a mistake")
    mistake.cause = UserError("no such thing")
    with pytest.raises(UserError, match="no such thing"):
        outcome(mistake)


def test_a_lost_worker_is_written_down_and_changes_no_settings(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, lost = SerialExecutor.run, []

    def run(executor: SerialExecutor, tasks: Any) -> Iterator[Outcome]:
        for made in plain(executor, tasks):
            unlucky = made.task.id == "0001"
            lost.append(made.task.id) if unlucky else None
            yield Outcome(made.task, error="its worker was lost", lost=True) if unlucky else made

    monkeypatch.setattr(SerialExecutor, "run", run)
    run_ = gg.grow(data, out=tmp_path / "run", images=1600, settings=settings())
    assert lost == ["0001"]
    (child,) = [e for e in run_.events if e["event"] == "candidate" and e["id"] == "0001"]
    assert child["error"] == "its worker was lost" and child["ailment"] is None
    assert not [e for e in run_.events if e["event"] == "doctor"]


def test_a_history_finds_by_id_and_knows_its_best_at_once() -> None:
    space = Space("pggan", settings().stack, 1, (16, 16))
    specs = space.stacks(2)
    rest = (UNCHANGED, *specs, 8, 1.0, 1.0, 8.0)
    children = tuple(
        Candidate(f"{i:04d}", f"{i - 1:04d}" if i else None, i, *rest, 9.0 - i, 0.1, 1.0, 0.1, {})
        for i in range(5)
    )
    history = History(space, Budget(images=80), 0).with_round(children, ("0004",))
    assert history["0003"] is children[3] and history.best is children[4]
    assert history.lineage(children[4]) == list(children)
    with pytest.raises(KeyError):
        history["0005"]
    assert replace(history, lost=frozenset(["0004"])).best is children[3]
    assert history.with_round((replace(children[0], id="0005", score=0.1),), ()).best == (
        replace(children[0], id="0005", score=0.1)
    )


def test_a_cluster_and_torchrun_exclude_each_other(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("growgan.growth.run.join", lambda: Ranks(1, 2))
    with pytest.raises(UserError, match="no meaning under torchrun"):
        gg.grow(data, out=tmp_path / "run", images=80, settings=settings(), cluster=Cluster())


# Pairs for labels


def pool_of(folder: Path) -> Pool:
    return begin(folder, {"classes": ["one"], "command": [], "settings": []})


def test_a_label_that_was_given_up_is_not_finished(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool")
    ledger = pool.folder(0) / "ledger.jsonl"
    ledger.parent.mkdir()
    ledger.touch()  # killed before the first line
    assert not pool.begun(0) and not pool.finished(0)
    Ledger(ledger).append({"event": "start"})
    assert pool.begun(0) and not pool.finished(0)
    Ledger(ledger).append({"event": "end", "best": "0000", "stopped": "it diverged"})
    assert not pool.finished(0)
    Ledger(ledger).append({"event": "end", "best": "0000"})
    assert pool.finished(0)


def a_label(folder: Path, stop: Event) -> Path:
    """Begin a long run of a label in a thread; return its ledger, once it trains."""
    words = ["pggan", "glyphs", "--resolution", "16", "--seed", "0", "--budget", "10m"]
    changes = ["score.kind=swd", "batch=8", "stack.width=8", "threads=1"]
    pool = pool_of(folder)
    how = {"words": words, "changes": changes, "stop": stop}
    Thread(target=train_label, args=(pool, 0), kwargs=how, daemon=True).start()
    wait_for(lambda: (pool.folder(0) / "stats.jsonl").is_file())
    return pool.folder(0) / "ledger.jsonl"


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.usefixtures("extra")
def test_workers_get_whole_paths_and_a_share_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pool_of(Path("pool"))
    (tmp_path / "photos").mkdir()
    made: list[Any] = []
    monkeypatch.setattr(on_cluster, "spread", lambda cluster, make, labels: made.append(make) or [])
    for data in ("photos", "digits"):
        _there(Cluster(), Pool(Path("pool")), [], ["pggan", data, "--seed", "0"], [])
    assert [each.args[0].path for each in made] == [tmp_path / "pool"] * 2
    assert [each.keywords["words"][1] for each in made] == [str(tmp_path / "photos"), "digits"]
    assert _own(Cluster(cpus=3), 1) == ["threads=3", "device=cpu"]
    assert _own(Cluster(gpus=1), 1) == ["threads=1"]
    monkeypatch.setattr("growgan.data.parallel.cores", lambda: 8)
    assert _own(None, 3) == ["threads=2"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stopped_label_saves_what_is_in_training(tmp_path: Path) -> None:
    stop = Event()
    run = a_label(tmp_path / "pool", stop).parent
    stop.set()
    wait_for(lambda: not (run / ".owner").exists())
    assert list((run / "candidates").glob(".0000.at-*"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="the system tells nobody of a parent's death")
def test_a_label_dies_with_the_worker_that_began_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from growgan.growth.pool import Pool, train_label\n"
        "words = 'pggan glyphs --resolution 16 --seed 0 --budget 10m'.split()\n"
        "changes = 'score.kind=swd batch=8 stack.width=8 threads=1'.split()\n"
        "train_label(Pool(Path(sys.argv[1])), 0, words=words, changes=changes)\n"
    )
    pool = pool_of(tmp_path / "pool")
    worker = subprocess.Popen([sys.executable, "-c", program, str(pool.path)])
    wait_for(lambda: (pool.folder(0) / "stats.jsonl").is_file())
    worker.kill()
    worker.wait()
    time.sleep(0.5)
    with held(pool.folder(0)):  # nobody has it
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
def test_rounds_on_a_cluster_give_the_serial_ledger_also_where_a_worker_is_killed(
    data: ImageSet, tmp_path: Path, ray: Any
) -> None:
    alone = gg.grow(data, out=tmp_path / "alone", images=2400, settings=settings())
    assert sum(bool(e.get("parent")) for e in alone.events) > 5
    shared = gg.grow(
        data, out=tmp_path / "shared", images=2400, settings=settings(), cluster=Cluster()
    )
    assert told(shared) == told(alone)
    np.testing.assert_array_equal(shared.best.sample(8), alone.best.sample(8))
    killed = []

    def kill() -> None:
        while not killed:
            found = subprocess.run(["pgrep", "-f", "ray::make"], capture_output=True, text=True)
            for number in found.stdout.split()[:1]:
                os.kill(int(number), signal.SIGKILL)
                killed.append(number)
            time.sleep(0.05)

    threading.Thread(target=kill, daemon=True).start()
    again = gg.grow(
        data, out=tmp_path / "again", images=2400, settings=settings(), cluster=Cluster()
    )
    assert killed and told(again) == told(alone)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_without_rounds_spends_the_budget_on_sound_children(
    data: ImageSet, tmp_path: Path, ray: Any
) -> None:
    run = gg.grow(
        data, out=tmp_path / "run", images=2400, settings=settings(), cluster=Cluster(free=True)
    )
    children = [e for e in run.events if e["event"] == "candidate"]
    check_parents(children)
    assert not any(child.get("error") for child in children)
    assert len(children) > 4 and run.events[-1]["event"] == "end"
    assert (run.path / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_a_killed_head_goes_on_from_the_ledger(data: ImageSet, tmp_path: Path, ray: Any) -> None:
    whole = gg.grow(data, out=tmp_path / "whole", images=2400, settings=settings())
    assert data.labels is not None
    np.savez(tmp_path / "data.npz", images=data.images.transpose(0, 2, 3, 1), labels=data.labels)
    program = (
        "import sys, growgan as gg\n"
        "from growgan.config import Settings\n"
        "from pathlib import Path\n"
        "d = gg.load_images(sys.argv[1]); s = Settings.from_yaml(Path(sys.argv[3]))\n"
        "gg.grow(d, out=sys.argv[2], images=2400, settings=s, cluster=gg.Cluster())\n"
    )
    (tmp_path / "settings.yaml").write_text(settings().to_yaml())
    words = [str(tmp_path / "data.npz"), str(tmp_path / "run"), str(tmp_path / "settings.yaml")]
    head = subprocess.Popen([sys.executable, "-c", program, *words])
    ledger = tmp_path / "run" / "ledger.jsonl"
    while not ledger.is_file() or ledger.read_text().count('"candidate"') < 4:
        assert head.poll() is None
        time.sleep(0.05)
    head.kill()
    head.wait()
    loaded = gg.load_images(str(tmp_path / "data.npz"))
    run = gg.grow(loaded, out=tmp_path / "run", resume=True, cluster=Cluster())
    kinds = ("candidate", "select")
    first, second = ([e for e in told(r) if e["event"] in kinds] for r in (whole, run))
    assert second == first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_child_that_no_worker_can_take_is_refused(
    data: ImageSet, tmp_path: Path, ray: Any
) -> None:
    with pytest.raises(UserError, match="no worker of the cluster has 64 CPUs"):
        gg.grow(
            data, out=tmp_path / "run", images=80, settings=settings(), cluster=Cluster(cpus=64)
        )
    told_ = replace(Cluster(), gpus=1)
    with pytest.raises(UserError, match="and 1 GPUs, which a task takes"):
        gg.grow(data, out=tmp_path / "other", images=80, settings=settings(), cluster=told_)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_a_pair_for_each_label_is_trained_by_workers_as_here(
    data: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray: Any
) -> None:
    """The same runs as by processes of this machine's own; and a pool that workers cannot see."""
    folder = tmp_path / "data"
    for label, name in enumerate(("one", "two")):
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(data.images[label::2][:16]):
            Image.fromarray(image[0]).save(folder / name / f"{i}.png")
    small = ["batch=8", "stack.latent=8", "stack.width=8", "score.samples=16"]
    small += ["stack.deviation_group=4", "precision=float32"]
    command = ["per-label", "pggan", str(folder), "--images", "64", "--jobs", str(os.cpu_count())]
    command += [word for each in small for word in ("--set", each)]
    assert main([*command, "--out", str(tmp_path / "here")]) == 0
    assert main([*command, "--out", str(tmp_path / "there"), "--executor", "ray"]) == 0
    here, there = Pool(tmp_path / "here"), Pool(tmp_path / "there")
    assert there.finished(0) and there.finished(1)
    assert np.array_equal(here.sample(8), there.sample(8))
    unseen = partial(train_label, Pool(tmp_path / "nowhere"), words=[], changes=[])
    with pytest.raises(UserError, match="is not seen by a worker"):
        list(spread(Cluster(), unseen, [0]))
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "x"), "--address", "somewhere"]) == 2
    assert "are of --executor ray" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [[], ["--executor", "ray"]], ids=["here", "ray"])
def test_sigterm_lets_labels_save(tmp_path: Path, how: list[str]) -> None:
    """Also where Ctrl-C is ignored, as in the background of a batch job."""
    pytest.importorskip("ray")
    out = tmp_path / "pool"
    words = ["per-label", "pggan", "digits", "--out", str(out), "--only-label", "0", *how]
    words += [word for each in ("batch=8", "stack.width=8") for word in ("--set", each)]
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from growgan.cli.app import main; sys.exit(main(sys.argv[1:]))\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", program, *words])
    run = out / "label-000"
    wait_for(lambda: (run / "stats.jsonl").is_file())
    caller.terminate()
    assert caller.wait(timeout=100) == 130
    assert list((run / "candidates").glob(".0000.at-*")) and not (run / ".owner").exists()


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Their temporary files have other names, also on other machines in threads of one number."""
    with replacing(tmp_path / "x.json") as mine, replacing(tmp_path / "x.json") as other:
        mine.write_text("mine")
        other.write_text("other")
        assert mine != other and mine.suffix == other.suffix == ".json"
    assert (tmp_path / "x.json").read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]
