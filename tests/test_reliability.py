"""What a run promises to survive: see docs/RELIABILITY.md."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
from growgan.data.files import replace_file
from growgan.errors import UserError
from growgan.growth import Run, grow, keeper, place
from growgan.growth import ledger as ledger_module
from growgan.growth import run as run_module
from growgan.growth.actions import player_edits
from growgan.growth.executor import Outcome
from growgan.growth.history import Candidate, History, Proposal, Space
from growgan.growth.ledger import Ledger
from growgan.growth.policies.base import Selection
from growgan.growth.search import Search
from growgan.objectives.objective import Objective
from growgan.objectives.step import Step
from growgan.plain import copy_of
from growgan.report.files import replacing
from growgan.training import checkpoint, memory, stage
from growgan.training.checkpoint import load_gan, save_gan
from growgan.training.doctor import Diagnosis
from growgan.training.gan import Gan
from growgan.training.progress import SilentDisplay

IMAGES = 1600
slow = partial(pytest.param, marks=pytest.mark.slow)
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
@pytest.mark.parametrize("size", [slow(3_000), 30_000, slow(60_000)])
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


@pytest.mark.parametrize("call", [slow(1), 4, slow(7)])
def test_a_disk_that_turns_read_only_costs_nothing_that_was_written(
    call: int, data: ImageSet, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, save = 0, checkpoint.save_tensors

    def refuse(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        save(*arguments)

    out = tmp_path / "locked"
    monkeypatch.setattr(checkpoint, "save_tensors", refuse)
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


# --- a ledger that is damaged


@pytest.fixture(scope="module")
def plain(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a short run that trains one pair on and on."""
    settings = searching().model_copy(update={"policy": "fixed", "growth": {}})
    return grow(
        data, out=tmp_path_factory.mktemp("plain") / "run", images=160, settings=settings
    ).path


@pytest.fixture
def copied(plain: Path, tmp_path: Path) -> Path:
    """Return a copy of that directory."""
    return Path(shutil.copytree(plain, tmp_path / "run"))


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def rewritten(out: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Write a run's ledger anew, in two copies that are whole, with a change."""
    events = list(Ledger(out / "ledger.jsonl").read())
    change(events)
    Ledger(out / "ledger.jsonl").clear()
    for event in events:
        Ledger(out / "ledger.jsonl").append(event)


@pytest.mark.parametrize(
    "harm",
    [
        lambda lines: lines[:3],
        lambda lines: [*lines[:3], lines[3][:100]],
        lambda lines: [],
        lambda lines: lines[:2] + lines[3:],
        lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
        lambda lines: lines[1:],
    ],
)
@pytest.mark.parametrize("which", [lambda file: file, copy_of])
def test_lines_that_are_missing_or_moved_are_read_from_the_copy(
    harm: Callable[[list[bytes]], list[bytes]], which: Callable[[Path], Path], copied: Path
) -> None:
    ledger = Ledger(copied / "ledger.jsonl")
    whole, before = ledger.path.read_bytes(), list(ledger.read())
    which(ledger.path).write_bytes(b"".join(harm(lines_of(ledger.path))))
    assert list(ledger.read()) == before
    ledger.mend()
    assert ledger.path.read_bytes() == copy_of(ledger.path).read_bytes() == whole


def test_a_truncated_ledger_costs_no_candidate(copied: Path, data: ImageSet) -> None:
    ledger, kept, story_ = copied / "ledger.jsonl", weights(copied), story(copied)
    ledger.write_bytes(ledger.read_bytes()[: ledger.stat().st_size // 3])
    grow(data, out=copied, resume=True)
    assert (weights(copied), story(copied)) == (kept, story_)


def test_candidates_that_the_ledger_does_not_know_are_not_deleted(
    copied: Path, data: ImageSet
) -> None:
    kept = weights(copied)
    for file in (copied / "ledger.jsonl", copy_of(copied / "ledger.jsonl")):
        file.write_bytes(b"".join(lines_of(file)[:5]))
    with pytest.raises(UserError, match=r"' lacks lines: it does not know candidates 0"):
        grow(data, out=copied, resume=True)
    assert weights(copied) == kept


def test_a_line_that_is_missing_in_both_is_named(copied: Path, data: ImageSet) -> None:
    for file in (copied / "ledger.jsonl", copy_of(copied / "ledger.jsonl")):
        lines = lines_of(file)
        file.write_bytes(b"".join(lines[:3] + lines[4:]))
    with pytest.raises(UserError, match=r"line 4: its checksum is another, or a line is missing"):
        grow(data, out=copied, resume=True)


def test_the_ledger_of_another_run_is_refused(copied: Path, data: ImageSet, tmp_path: Path) -> None:
    settings = searching().model_copy(update={"policy": "fixed", "growth": {}, "seed": 7})
    other = grow(data, out=tmp_path / "other", images=160, settings=settings).path
    shutil.copy(other / "ledger.jsonl", copied)
    with pytest.raises(UserError, match=r"and its copy '.ledger.jsonl.copy' differ from line 1 on"):
        grow(data, out=copied, resume=True)
    shutil.copy(other / ".ledger.jsonl.copy", copied)
    with pytest.raises(UserError, match=r"config.yaml' is not as the run began with it"):
        grow(data, out=copied, resume=True)


def test_a_ledger_without_a_chain_goes_on(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    text = b'{"event": "start", "seed": 1}'
    ledger.path.write_bytes(text[:-1] + b', "crc": %d}\n' % zlib.crc32(text))
    ledger.mend()
    ledger.append({"event": "end"})
    assert list(ledger.read()) == [{"event": "start", "seed": 1}, {"event": "end"}]
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"seed": 1', b'"seed": 2'))
    assert next(ledger.read())["seed"] == 1


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("start", "budget", None),
        ("start", "budget", {"images": -1}),
        ("start", "budget", {"images": 1, "seconds": 1}),
        ("start", "data", {}),
        ("start", "data", "blobs"),
        ("start", "event", "begin"),
        ("start", "elapsed", "long"),
        ("candidate", "id", "one"),
        ("candidate", "parent", "0099"),
        ("candidate", "parts", []),
        ("candidate", "score", "good"),
        ("candidate", "images", 10**400),
        ("candidate", "generator", {}),
        ("candidate", "vitals", {"images": 1}),
        ("select", "alive", ["0099"]),
        ("select", "alive", None),
        ("select", "event", "candidate"),
        ("candidate", "event", "select"),
        ("candidate", "event", "doctor"),
        ("candidate", "event", "memory"),
        ("candidate", "event", "damage"),
        ("protocol", "protocol", []),
        ("end", "best", "0099"),
    ],
)
def test_an_event_of_another_form_is_named(
    kind: str, key: str, value: object, copied: Path, data: ImageSet
) -> None:
    number = 0

    def change(events: list[dict[str, Any]]) -> None:
        nonlocal number
        number = next(i for i, event in enumerate(events) if event["event"] == kind)
        events[number][key] = value

    rewritten(copied, change)
    message = rf"ledger.jsonl' makes no sense in line {number + 1}: "
    with pytest.raises(UserError, match=message):
        grow(data, out=copied, resume=True)


def test_settings_of_the_doctor_that_do_not_exist_are_named(copied: Path, data: ImageSet) -> None:
    event = {"event": "doctor", "remedy": "rest", "diagnosis": "", "settings": {"rest": 1}}
    rewritten(copied, lambda events: events.append(event))
    with pytest.raises(UserError, match=r"makes no sense in line \d+: unknown setting 'rest'"):
        grow(data, out=copied, resume=True)


# --- what else lies in a run's directory


def test_settings_that_were_edited_are_refused(copied: Path, data: ImageSet) -> None:
    file = copied / "config.yaml"
    before = file.read_text()
    file.write_text(before.replace("beta2: 0.99", "beta2: 0.9"))
    assert file.read_text() != before
    with pytest.raises(UserError, match=r"config.yaml' is not as .* settings cannot change within"):
        grow(data, out=copied, resume=True)
    file.write_text(before)
    (copied / "data.json").write_text("{}")
    with pytest.raises(UserError, match=r"data.json' is damaged: it is not what the run began"):
        grow(data, out=copied, resume=True)


def test_a_candidate_in_the_place_of_another_is_done_without(copied: Path, data: ImageSet) -> None:
    last = Run.open(copied).best_id
    before = next(e["parent"] for e in Run.open(copied).events if e.get("id") == last)
    shutil.rmtree(copied / "candidates" / last)
    shutil.copytree(copied / "candidates" / before, copied / "candidates" / last)
    again = grow(data, out=copied, images=240, resume=True)
    (event,) = (e for e in again.events if e["event"] == "damage")
    assert last in event["lost"] and f"{last}/' is damaged: what it holds" in event["reason"]


def test_what_is_named_as_a_candidate_and_is_none_is_named(copied: Path, data: ImageSet) -> None:
    (copied / "candidates" / "0099").symlink_to(copied / "candidates" / "0000")
    with pytest.raises(UserError, match="0099' has a candidate's name, and is no folder"):
        grow(data, out=copied, resume=True)
    assert (copied / "candidates" / "0099").is_symlink()
    shutil.rmtree(copied / "candidates")
    with pytest.raises(UserError, match=r"the run cannot go on: .*manifest.json' cannot be read"):
        grow(data, out=copied, resume=True)


def test_temporary_files_of_killed_processes_are_swept_up(copied: Path, data: ImageSet) -> None:
    names = (".tmp-a", ".report.1.part.html", "candidates/0000/.samples.1.part.png")
    stale, fresh = [copied / name for name in names], copied / ".tmp-fresh"
    for path in (*stale, fresh):
        path.write_text("")
    for path in stale:
        os.utime(path, (1e9, 1e9))
    grow(data, out=copied, resume=True)
    assert not any(path.exists() for path in stale) and fresh.exists()


# --- a start, a treatment and an end that are cut short


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_start_that_was_cut_short_is_in_nobodys_way(
    writes: int, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, done, write = tmp_path / "run", 0, place.replace_file

    def killed(path: Path, content: bytes) -> None:
        nonlocal done
        if done == writes:
            (path.parent / ".tmp-1").write_bytes(content[:10])
            raise KeyboardInterrupt
        done += 1
        write(path, content)

    settings = searching().model_copy(update={"policy": "fixed", "growth": {}})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, "replace_file", killed)
        if writes == 2:
            patch.setattr(Ledger, "append", lambda self, _: killed(self.path, b""))
        grow(data, out=out, images=80, settings=settings)
    if writes == 2:
        (out / "ledger.jsonl").write_bytes(b'{"event": "sta')
    with pytest.raises(UserError, match=r"no run to resume in .*; leave out --resume to "):
        grow(data, out=out, resume=True)
    run = grow(data, out=out, images=80, settings=settings)
    assert (run.events[0]["event"], run.events[-1]["event"]) == ("start", "end")


def test_files_like_those_of_a_start_are_somebodys_own(data: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1")
    with pytest.raises(UserError, match="is not an empty folder"):
        grow(data, out=tmp_path, images=80, settings=searching())
    assert (tmp_path / "config.yaml").read_text() == "mine: 1"


class Twins:
    """Two children of the best, again and again."""

    def propose(self, alive: Sequence[Candidate], history: History) -> list[Proposal]:
        if not alive:
            return [Proposal(None, 0.2, stacks=history.space.stacks(history.space.levels))]
        return [Proposal(alive[0].id, 0.2)] * 2

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        return Selection(("0000",), "")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_treatment_is_not_lost(
    when: str, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diagnose, treat = Search._diagnose, Search._treat

    def ails(self: Search, outcome: Outcome) -> Diagnosis | None:
        if outcome.task.id != "0001":
            return diagnose(self, outcome)
        outcome.error, outcome.score = "it ails", None
        return Diagnosis("instability", "it ails")

    def killed(self: Search, *arguments: Any) -> None:
        if when == "after":
            treat(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "_diagnose", ails)
    given: dict[str, Any] = {"policy": Twins(), "images": 160, "settings": searching()}
    one = grow(data, out=tmp_path / "one", **given)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Search, "_treat", killed)
        grow(data, out=tmp_path / "two", **given)
    two = grow(data, out=tmp_path / "two", **given, resume=True)
    assert [e["candidate"] for e in two.events if e["event"] == "doctor"] == ["0001"]
    assert story(two.path) == story(one.path) and weights(two.path) == weights(one.path)


def test_a_report_that_cannot_be_written_hides_no_cause(
    copied: Path, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise UserError("report cannot be written: No space left on device")

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "write_report", full)
    with pytest.raises(UserError, match="No space left"):
        grow(data, out=copied, resume=True)
    monkeypatch.setattr(stage, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        grow(data, out=copied, images=240, resume=True)


# --- saves of what is in training


@pytest.fixture(scope="module")
def longer(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of slices of six steps."""
    settings = searching().model_copy(update={"policy": "fixed", "growth": {}})
    out = tmp_path_factory.mktemp("longer") / "run"
    return grow(data, out=out, images=480, settings=settings).path


@pytest.mark.parametrize(("damaged", "steps"), [(0, 1), (1, 2), (9, 6)])
def test_the_newest_whole_save_is_gone_on_from(
    damaged: int,
    steps: int,
    longer: Path,
    data: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped before the last of six steps, with a save after each, one is to be taken again."""
    settings = searching().model_copy(update={"policy": "fixed", "growth": {}})
    taken, one = 0, stage.step

    def counted(*arguments: Any) -> dict[str, Tensor]:
        nonlocal taken
        taken += 1
        if taken == 12:
            raise KeyboardInterrupt
        return one(*arguments)

    out = tmp_path / "run"
    monkeypatch.setattr(stage, "step", counted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keeper, "KEEP_EVERY", 0.0)
        patch.setattr(keeper, "KEEP_SHARE", 1e9)
        patch.setattr(keeper.RunKeeper, "drop", lambda *_, **__: None)
        grow(data, out=out, images=480, settings=settings)
    saves = sorted((out / "candidates").glob(".0001.at-*"), reverse=True)
    assert len(saves) == 5
    for folder in saves[:damaged]:
        flip(folder / "weights.safetensors")
    grow(data, out=out, resume=True)
    assert taken - 12 == steps + 8 * 6
    assert story(out) == story(longer) and weights(out) == weights(longer)


# --- the order of what goes to the disk


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells what is synced")
@pytest.mark.parametrize("kind", ["replace_file", "replacing", "save_gan"])
def test_what_is_written_is_on_the_disk_before_it_gets_its_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    sync, names = os.fsync, {"replace": os.replace, "rename": os.rename}

    def synced(descriptor: int) -> None:
        told.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def renamed(name: str, old: Any, new: Any) -> None:
        told.append(("rename", f"{old}"))
        names[name](old, new)

    monkeypatch.setattr(os, "fsync", synced)
    for name in names:
        monkeypatch.setattr(os, name, partial(renamed, name))
    if kind == "replace_file":
        replace_file(tmp_path / "file", b"data")
    elif kind == "replacing":
        with replacing(tmp_path / "file") as part:
            part.write_bytes(b"data")
    else:
        space = Space("pggan", StackSettings(latent=8, width=4), 1, (8, 8))
        save_gan(Gan.create(*space.stacks(0), OptimiserSettings(), seed=1), tmp_path / "file")
    ((at, temporary),) = ((i, path) for i, (what, path) in enumerate(told) if what == "rename")
    before, after = ({path for _, path in part} for part in (told[:at], told[at + 1 :]))
    files = {"", *(p.name for p in (tmp_path / "file").glob("*"))}
    assert before >= {str(Path(temporary) / name) for name in files}
    assert after == {str(tmp_path)}


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells what is synced")
def test_a_line_of_the_ledger_is_on_the_disk_before_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda each: told.append(os.readlink(f"/proc/self/fd/{each}")))
    ledger = Ledger(tmp_path / "ledger.jsonl")
    files = [str(ledger.path), str(copy_of(ledger.path))]
    ledger.append({"event": "start"})
    assert told == [files[0], str(tmp_path), files[1], str(tmp_path)]
    told.clear()
    ledger.append({"event": "end"})
    assert told == files


@pytest.mark.parametrize("call", [2, slow(5), slow(6), 7])
def test_a_ledger_that_turns_read_only_costs_nothing_that_was_written(
    call: int, data: ImageSet, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, append = 0, ledger_module._append

    def refuse(path: Path, line: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        append(path, line)

    out = tmp_path / "locked"
    monkeypatch.setattr(ledger_module, "_append", refuse)
    with pytest.raises((OSError, UserError), match="Read-only"):
        run_to_the_end(data, out)
    run_to_the_end(data, out)
    assert story(out) == story(whole) and weights(out) == weights(whole)


# --- the command line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_that_is_interrupted_ends_with_130_and_says_how_to_go_on(
    number: signal.Signals, data: ImageSet, tmp_path: Path
) -> None:
    pixels = np.asarray(data.images).transpose(0, 2, 3, 1)
    np.savez(tmp_path / "data.npz", images=pixels)
    out = tmp_path / "run"
    small = "batch=8 stack.latent=16 stack.width=8 score.kind=swd score.samples=64 threads=1"
    words = ["grow", str(tmp_path / "data.npz"), "--out", str(out), "--images", "100k"]
    words += [word for each in small.split() for word in ("--set", each)]
    with subprocess.Popen(
        [sys.executable, "-m", "growgan", *words], stderr=subprocess.PIPE, text=True
    ) as child:
        while not list(out.glob("stats.jsonl")) and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(number)
        said = child.communicate()[1]
    assert child.returncode == 130
    assert f"go on with: growgan grow {tmp_path / 'data.npz'}" in said and "--resume" in said
    assert len(list((out / "candidates").glob(".*.at-*"))) == 1


def test_sigterm_while_images_are_read_ends_with_130(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "import growgan.data\n"
        "from growgan.cli import main\n"
        "def slow(*_, **__):\n"
        "    print('reading', flush=True)\n"
        "    time.sleep(60)\n"
        "growgan.data.load_images = slow\n"
        f"sys.exit(main(['grow', 'digits', '--out', {str(tmp_path / 'run')!r}]))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "reading\n"
        child.terminate()
        said = child.communicate()[1]
    assert child.returncode == 130 and "nothing had begun; give the same command again" in said
