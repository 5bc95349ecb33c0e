"""Searches on workers: the same ledger in rounds, order without them, and what dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import growgan as gg
from growgan.cli.app import main
from growgan.config import Settings, make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.growth.budget import Budget, Meter
from growgan.growth.cluster import Cluster, spread
from growgan.growth.desk import Desk, planned
from growgan.growth.executor import Outcome, SerialExecutor, Task
from growgan.growth.history import History, Proposal, Space
from growgan.growth.policies import Dynamic
from growgan.growth.pool import Pool, train_label
from growgan.growth.search import Search
from growgan.training.checkpoint import packed, save_gan, unpacked
from growgan.training.gan import Gan

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
    assert "--address, --gpus and --free are of --executor ray" in said("--free")
    monkeypatch.setitem(sys.modules, "ray", None)
    ends = ("--images", "800", "--resolution", "16", "--executor", "ray")
    assert "pip install 'growgan[cluster]'" in said(*ends)


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
