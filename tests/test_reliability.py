"""What a run promises to survive: see docs/RELIABILITY.md."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from growgan.config import (
    ActionSettings,
    OptimiserSettings,
    Settings,
    StackSettings,
    make_settings,
)
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.growth import Run, grow, keeper
from growgan.growth.actions import player_edits
from growgan.growth.history import Space
from growgan.objectives.objective import Objective
from growgan.objectives.step import Step
from growgan.plain import copy_of
from growgan.training import checkpoint, memory, stage
from growgan.training.checkpoint import load_gan, save_gan
from growgan.training.gan import Gan
from growgan.training.progress import SilentDisplay

IMAGES = 1600
TIMES = {
    "seconds",
    "trained",
    "rate",
    "elapsed",
    "cost",
    "time",
    "memory",
}  # what no two runs share

# A server of its own, which has read what a run needs: a copy of this process would wait forever
# for what one of its threads holds, and a fresh one takes seconds to begin.
apart = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
if apart is not None:
    apart.set_forkserver_preload(["growgan.growth.run"])


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def data(make_images: Callable[..., ImageSet]) -> ImageSet:
    return make_images(128, 1, 16, 16)


def searching() -> Settings:
    """A search in which layers fade in, trials are made, and losers are dropped."""
    tries = {"images": 1, "shown": 1e-6, "threshold": 100.0, "reach": 0.06, "keep": 1.0, "start": 8}
    return make_settings(
        {
            "batch": 8,
            "precision": "float32",
            "stack": {"latent": 16, "width": 8},
            "score": {"kind": "swd", "samples": 64},
            "growth": tries,
            "actions": {"widest": 16},
        }
    )


def run_to_the_end(data: ImageSet, out: Path, pause: float = 1e9) -> None:
    """Start the run in ``out``, or go on with it, saving every ``pause`` seconds."""
    torch.set_num_threads(1)  # in a process apart, too
    keeper.KEEP_EVERY, keeper.KEEP_SHARE = pause, 1e9
    resume = (out / "ledger.jsonl").exists() and bool(Run.open(out).events)
    grow(data, out=out, images=IMAGES, settings=searching(), resume=resume)


@pytest.fixture(scope="module")
def whole(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_to_the_end(data, out)
    return out


def story(out: Path) -> list[dict[str, Any]]:
    """Return the ledger without what is a matter of time."""
    return [
        {key: value for key, value in event.items() if key not in TIMES}
        for event in Run.open(out).events
        if event["event"] in ("candidate", "select", "end")
    ]


def weights(out: Path) -> dict[str, bytes]:
    """Return what is kept of every candidate, by path: weights, averages and moments."""
    files = sorted((out / "candidates").rglob("*.safetensors"))
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def survive(data: ImageSet, whole: Path, folder: Path, kills: int) -> None:
    """Kill runs at random instants until there were so many kills; each must end as if alone."""
    assert apart is not None
    seconds = next(e["elapsed"] for e in Run.open(whole).events if e["event"] == "end")
    instants, done, number = random.Random(0), 0, 0
    while done < kills:
        out, number, finished = folder / f"torn-{number}", number + 1, False
        while not finished:
            child = apart.Process(target=run_to_the_end, args=(data, out, 0.02))
            child.start()
            child.join(instants.uniform(0, seconds / 2) if done < kills else None)
            finished = child.exitcode == 0
            assert child.exitcode in (0, None)
            if not finished:
                child.kill()
                child.join()
                done += 1
        assert story(out) == story(whole)
        assert weights(out) == weights(whole)
        assert not list((out / "candidates").glob(".*"))


@pytest.mark.skipif(apart is None, reason="needs fork")
def test_a_run_killed_at_random_instants_ends_as_one_that_was_not(
    data: ImageSet, whole: Path, tmp_path: Path
) -> None:
    survive(data, whole, tmp_path, kills=6)


def test_a_run_that_has_ended_is_not_ended_again(data: ImageSet, whole: Path) -> None:
    before = story(whole), weights(whole)
    grow(data, out=whole, images=IMAGES, resume=True)
    assert (story(whole), weights(whole)) == before


@pytest.mark.slow
@pytest.mark.skipif(apart is None, reason="needs fork")
def test_thirty_kills(data: ImageSet, whole: Path, tmp_path: Path) -> None:
    survive(data, whole, tmp_path, kills=30)


@pytest.mark.skipif(apart is None, reason="needs fork")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_what_is_in_training(
    number: signal.Signals, data: ImageSet, whole: Path, tmp_path: Path
) -> None:
    assert apart is not None
    out = tmp_path / "stopped"
    child = apart.Process(target=run_to_the_end, args=(data, out))
    child.start()
    while not list(out.glob("candidates/0001")) and child.is_alive():
        time.sleep(0.001)
    time.sleep(0.02)  # the next child is in training
    os.kill(child.pid or 0, number)
    child.join()
    assert child.exitcode not in (0, -number), "it was stopped, and not by the system"
    assert len(list((out / "candidates").glob(".*.at-*"))) == 1
    run_to_the_end(data, out)
    assert story(out) == story(whole) and weights(out) == weights(whole)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_where_memory_runs_out_batches_go_through_in_parts(
    error: Exception, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, failures = 4, 0
    plain = stage.step

    def scarce(*arguments: Any) -> dict[str, Tensor]:
        nonlocal failures
        if 8 / arguments[5] > most:
            failures += 1
            raise error
        return plain(*arguments)

    monkeypatch.setattr(stage, "step", scarce)
    settings = searching().model_copy(update={"policy": "fixed", "growth": {}})
    run = grow(data, out=tmp_path / "run", images=400, settings=settings)
    (event,) = (e for e in run.events if e["event"] == "memory")
    assert (event["candidate"], event["parts"], failures) == ("0000", 2, 1)
    assert all(e["status"] == "scored" for e in run.events if e["event"] == "candidate")
    # A run that goes on does not try again what did not fit.
    grow(data, out=run.path, images=800, resume=True)
    assert failures == 1
    most = 2  # groups of four samples cannot be parted
    with pytest.raises(RuntimeError, match="does not fit into memory, 4 images a part"):
        grow(data, out=tmp_path / "small", images=400, settings=settings)


def test_a_batch_that_would_hardly_fit_goes_through_in_parts_from_the_start(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = searching().model_copy(update={"policy": "fixed", "growth": {}})
    space = Space("pggan", settings.stack, 1, (16, 16))
    pair = space.stacks(space.levels)
    whole, half = memory.needed(pair, 8), memory.needed(pair, 4)
    assert half < whole
    for free, parts in ((whole / 0.69, 1), ((whole + half) / 2 / 0.7, 2), (1.0, 2), (None, 1)):
        monkeypatch.setattr(memory, "available", lambda device, free=free: free)
        found = memory.parts_that_fit(pair, 8, 4, torch.device("cpu"))
        assert found == parts, "parts are of whole groups of four"
    monkeypatch.setattr(memory, "available", lambda device: 1.0)
    run = grow(data, out=tmp_path / "run", budget="3s", settings=settings)
    (event,) = (e for e in run.events if e["event"] == "memory")
    assert (event["candidate"], event["parts"]) == ("0000", 2)
    run = grow(data, out=tmp_path / "exact", images=160, settings=settings)
    assert not [e for e in run.events if e["event"] == "memory"], "nothing hangs on what is free"


def test_free_memory_is_that_of_the_container_where_that_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "freed_and_kept", lambda: 0.0)
    whole = memory.available(torch.device("cpu"))
    if whole is None:
        pytest.skip("the system does not tell")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 300\nfile 700\ninactive_file 0\n")
    assert memory.available(torch.device("cpu")) == pytest.approx(whole, rel=0.5)
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory.available(torch.device("cpu")) == 4000
    (tmp_path / "memory.stat").write_text("anon 300\nfile 700\ninactive_file 600\n")
    assert memory.available(torch.device("cpu")) == 4600, "files that are not in use can go"


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_that_is_kept_counts_as_free() -> None:
    memory.keep_freed_memory()
    block = torch.ones(64 * 2**20 // 4)
    before = memory.freed_and_kept()
    del block
    kept = memory.freed_and_kept() - before
    memory.hand_back_freed_memory()
    if not memory.freed_and_kept():
        pytest.skip("another allocator")
    assert 60 * 2**20 < kept < 80 * 2**20


def test_memory_that_runs_out_in_a_step_of_g_leaves_d_trainable(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, plain = 0, Objective.generator

    def scarce(self: Objective, step: Step) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, step)

    monkeypatch.setattr(Objective, "generator", scarce)
    settings = searching().model_copy(update={"policy": "fixed", "growth": {}})
    run = grow(data, out=tmp_path / "run", images=400, settings=settings)
    assert [e["parts"] for e in run.events if e["event"] == "memory"] == [2]
    assert all(e["status"] == "scored" for e in run.events if e["event"] == "candidate")


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> dict[str, Tensor]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(stage, "step", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        grow(data, out=tmp_path / "run", images=400, settings=searching())


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def swap(file: Path) -> None:
    other = next(f for f in file.parents[1].glob(f"*/{file.name}") if f != file)
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        *((harm, "weights.safetensors") for harm in (flip, cut, swap, Path.unlink)),
        *((flip, name) for name in ("state.safetensors", "state.json", "manifest.json")),
    ],
)
def test_what_is_damaged_is_noticed_named_and_done_without(
    harm: Callable[[Path], None], name: str, data: ImageSet, tmp_path: Path
) -> None:
    settings = searching().model_copy(update={"policy": "fixed", "growth": {}})
    run = grow(data, out=tmp_path / "run", images=400, settings=settings)
    last = next(e["alive"][0] for e in reversed(run.events) if e["event"] == "select")
    before = next(e["parent"] for e in run.events if e.get("id") == last)
    harm(run.path / "candidates" / last / name)
    told: list[str] = []
    shown = SilentDisplay()
    shown.message = told.append  # type: ignore[method-assign]
    again = grow(data, out=run.path, images=800, resume=True, display=shown)
    (event,) = (e for e in again.events if e["event"] == "damage")
    assert last in event["lost"] and event["alive"] == [before]
    assert any(f"{last}/" in text and before in text for text in told)
    after = again.events[again.events.index(event) :]
    assert next(e for e in after if e["event"] == "candidate")["parent"] == before
    assert again.best.sample(2).shape == (2, 16, 16, 1)


def test_a_damaged_generator_is_not_sampled(data: ImageSet, tmp_path: Path) -> None:
    settings = searching().model_copy(update={"policy": "fixed", "growth": {}})
    run = grow(data, out=tmp_path / "run", images=80, settings=settings)
    for file in run.path.glob("candidates/*/weights.safetensors"):
        flip(file)
    with pytest.raises(UserError, match=r"weights.safetensors' is damaged"):
        run.best.sample(2)
    with pytest.raises(UserError, match=r"the run cannot go on: .*weights.safetensors' is damaged"):
        grow(data, out=run.path, images=160, resume=True)


def with_files_of_at_most(size: int, data: ImageSet, out: Path) -> None:
    """Go on with a run where every file ends at ``size`` bytes, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    run_to_the_end(data, out)


@pytest.mark.skipif(apart is None, reason="needs fork")
@pytest.mark.parametrize("size", [3_000, 30_000, 60_000])
def test_a_full_disk_costs_nothing_that_was_written(
    size: int, data: ImageSet, whole: Path, tmp_path: Path
) -> None:
    assert apart is not None
    out = tmp_path / "full"
    largest = max(file.stat().st_size for file in whole.rglob("*.safetensors"))
    assert largest > size
    child = apart.Process(target=with_files_of_at_most, args=(size, data, out))
    child.start()
    child.join()
    assert child.exitcode == 1
    run_to_the_end(data, out)
    assert story(out) == story(whole) and weights(out) == weights(whole)


@pytest.mark.parametrize("call", [1, 4, 7])
def test_a_disk_that_turns_read_only_costs_nothing_that_was_written(
    call: int, data: ImageSet, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, save = 0, checkpoint.save_file

    def refuse(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        save(*arguments)

    out = tmp_path / "locked"
    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(OSError, match="Read-only"):
        run_to_the_end(data, out)
    run_to_the_end(data, out)
    assert story(out) == story(whole) and weights(out) == weights(whole)


def test_a_flipped_bit_in_the_ledger_is_mended_from_its_copy(
    data: ImageSet, tmp_path: Path
) -> None:
    settings = searching().model_copy(update={"policy": "fixed", "growth": {}})
    run = grow(data, out=tmp_path / "run", images=400, settings=settings)
    file, before = run.path / "ledger.jsonl", run.events
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if b'"0003"' in line and b"candidate" in line)
    lines[number] = lines[number].replace(b'"images": ', b'"images":1')  # still JSON
    file.write_bytes(b"".join(lines))
    assert run.events == before
    grow(data, out=run.path, images=480, resume=True)
    assert file.read_bytes().startswith(whole)
    # Damaged in both, it is named.
    for each in (file, copy_of(file)):
        flip_line(each, number)
    with pytest.raises(UserError, match=rf"ledger.jsonl' is damaged in line {number + 1}: "):
        _ = run.events
    with pytest.raises(UserError, match=rf"damaged in line {number + 1}: its checksum is another"):
        grow(data, out=run.path, images=560, resume=True)


def flip_line(file: Path, number: int) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number].replace(b'"images": ', b'"images":1')
    file.write_bytes(b"".join(lines))


def alive_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


@pytest.mark.slow
def test_five_hundred_growths_leave_nothing_behind(tmp_path: Path) -> None:
    space = Space("pggan", StackSettings(latent=8, width=4), 1, (8, 8), ActionSettings(widest=32))
    dice = random.Random(0)
    files = Path("/proc/self/fd")

    def grow_once(seed: int) -> None:
        gan = Gan.create(*space.stacks(0), OptimiserSettings(), seed=seed)
        for number in range(10):
            edits = player_edits(gan.generator.spec, space.actions, 8)
            edits = [edit for edit in edits if edit.factor == 1]
            gan = gan.branch((dice.choice(edits),), seed=number)
            gan.finish_fade()
        save_gan(gan, tmp_path / "gan")
        load_gan(tmp_path / "gan")

    for seed in range(5):  # what is made once and stays
        grow_once(seed)
    before = alive_tensors(), len(list(files.iterdir())), threading.active_count()
    for seed in range(50):
        grow_once(seed)
    after = alive_tensors(), len(list(files.iterdir())), threading.active_count()
    assert after == before
    assert [path.name for path in tmp_path.iterdir()] == ["gan"]


def test_a_clock_that_jumps_changes_nothing(
    data: ImageSet, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 4e9))
    out = tmp_path / "run"
    run_to_the_end(data, out)
    assert story(out) == story(whole) and weights(out) == weights(whole)
    elapsed = [e["elapsed"] for e in Run.open(out).events if "elapsed" in e]
    assert elapsed == sorted(elapsed) and elapsed[-1] < 600
