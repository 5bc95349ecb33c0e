"""Crashes, signals, damaged files and full disks that a run survives: see docs/RELIABILITY.md."""

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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from growgan.config import (
    EditSettings,
    NetworkConfig,
    OptimizerSettings,
    Settings,
    make_settings,
)
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.execution.trial import TrialResult
from growgan.files import atomic_write, replace_file
from growgan.jsonl import backup_path
from growgan.objectives.objective import Objective
from growgan.objectives.step_context import StepContext
from growgan.run import checkpointer, run_directory
from growgan.run import grow as run_module
from growgan.run import ledger as ledger_module
from growgan.run.grow import grow
from growgan.run.ledger import Ledger
from growgan.run.run import Run
from growgan.run.search_loop import SearchLoop
from growgan.search.growth import legal_edits
from growgan.search.history import Candidate, History, Proposal, SearchSpace
from growgan.search.policies.base import Selection
from growgan.training import checkpoint, loop, memory
from growgan.training.checkpoint import load_gan, save_gan
from growgan.training.gan import Gan
from growgan.training.health import Diagnosis
from growgan.training.progress import SilentDisplay

IMAGES = 1600
slow = partial(pytest.param, marks=pytest.mark.slow)
TIMING_KEYS = {
    "seconds",
    "train_seconds",
    "images_per_second",
    "elapsed",
    "cost",
    "timestamp",
    "peak_memory_mib",
}  # ledger keys that differ between two runs of the same seed

# A fork server that has imported growgan: a fork of this process could deadlock on a lock that one
# of its threads holds, and a new process takes seconds to start.
forkserver = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
if forkserver is not None:
    forkserver.set_forkserver_preload(["growgan.run.grow"])


pytestmark = pytest.mark.usefixtures("temporary_cache")


@pytest.fixture(scope="module")
def data(make_blob_images: Callable[..., ImageSet]) -> ImageSet:
    return make_blob_images(128, 1, 16, 16)


def searching() -> Settings:
    """Return settings of a search with fade-ins, trials and pruned candidates."""
    growth = {
        "min_trial_images": 1,
        "images_per_parameter": 1e-6,
        "plateau_slope": 100.0,
        "max_fraction_per_resolution": 0.06,
        "sample_prob": 1.0,
        "start_resolution": 8,
    }
    return make_settings(
        {
            "batch_size": 8,
            "precision": "float32",
            "network": {"latent_dim": 16, "width": 8},
            "score": {"kind": "swd", "num_samples": 64},
            "growth": growth,
            "edits": {"max_width": 16},
        }
    )


def fixed_settings() -> Settings:
    """Return the settings of :func:`searching` without growth."""
    update = {"policy": "fixed", "growth": {}, "edits": EditSettings()}
    return searching().model_copy(update=update)


def run_to_the_end(data: ImageSet, out: Path, interval: float = 1e9) -> None:
    """Start or resume the run in ``out``, with a checkpoint every ``interval`` seconds."""
    torch.set_num_threads(1)  # in a forked process as well
    checkpointer.CHECKPOINT_INTERVAL_SECONDS, checkpointer.MAX_CHECKPOINT_TIME_FRACTION = (
        interval,
        1e9,
    )
    resume = (out / "ledger.jsonl").exists() and bool(Run.open(out).events)
    grow(data, out=out, images=IMAGES, settings=searching(), resume=resume)


@pytest.fixture(scope="module")
def uninterrupted(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run without interruptions."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_to_the_end(data, out)
    return out


def main_events(run_dir: Path) -> list[dict[str, Any]]:
    """Return the main events of a ledger without their timing."""
    return [
        {key: value for key, value in event.items() if key not in TIMING_KEYS}
        for event in Run.open(run_dir).events
        if event["event"] in ("candidate", "select", "end")
    ]


def weights(out: Path) -> dict[str, bytes]:
    """Return the weights and optimizer states of all candidates, by path."""
    files = sorted((out / "candidates").rglob("*.safetensors"))
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def survive_kills(data: ImageSet, uninterrupted: Path, folder: Path, kills: int) -> None:
    """Kill runs at random times, ``kills`` times in total; check that each ends undisturbed."""
    assert forkserver is not None
    seconds = next(e["elapsed"] for e in Run.open(uninterrupted).events if e["event"] == "end")
    rng, num_kills, number = random.Random(0), 0, 0
    while num_kills < kills:
        out, number, finished = folder / f"torn-{number}", number + 1, False
        while not finished:
            child = forkserver.Process(target=run_to_the_end, args=(data, out, 0.02))
            child.start()
            child.join(rng.uniform(0, seconds / 2) if num_kills < kills else None)
            finished = child.exitcode == 0
            assert child.exitcode in (0, None)
            if not finished:
                child.kill()
                child.join()
                num_kills += 1
        assert main_events(out) == main_events(uninterrupted)
        assert weights(out) == weights(uninterrupted)
        assert not list((out / "candidates").glob(".*"))


@pytest.mark.skipif(forkserver is None, reason="needs fork")
def test_a_run_killed_at_random_times_ends_like_an_uninterrupted_one(
    data: ImageSet, uninterrupted: Path, tmp_path: Path
) -> None:
    survive_kills(data, uninterrupted, tmp_path, kills=6)


def test_resuming_a_finished_run_changes_nothing(data: ImageSet, uninterrupted: Path) -> None:
    before = main_events(uninterrupted), weights(uninterrupted)
    grow(data, out=uninterrupted, images=IMAGES, resume=True)
    assert (main_events(uninterrupted), weights(uninterrupted)) == before


@pytest.mark.slow
@pytest.mark.skipif(forkserver is None, reason="needs fork")
def test_thirty_kills(data: ImageSet, uninterrupted: Path, tmp_path: Path) -> None:
    survive_kills(data, uninterrupted, tmp_path, kills=30)


@pytest.mark.skipif(forkserver is None, reason="needs fork")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_trial_in_training(
    number: signal.Signals, data: ImageSet, uninterrupted: Path, tmp_path: Path
) -> None:
    assert forkserver is not None
    out = tmp_path / "stopped"
    child = forkserver.Process(target=run_to_the_end, args=(data, out))
    child.start()
    while not list(out.glob("candidates/0001")) and child.is_alive():
        time.sleep(0.001)
    time.sleep(0.02)  # the next candidate is in training
    os.kill(child.pid or 0, number)
    child.join()
    assert child.exitcode not in (0, -number), "it must exit by itself"
    assert len(list((out / "candidates").glob(".*.checkpoint-*"))) == 1
    run_to_the_end(data, out)
    assert main_events(out) == main_events(uninterrupted) and weights(out) == weights(uninterrupted)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_batches_are_divided_when_memory_runs_out(
    error: Exception, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    max_images, failures = 4, 0
    original_step = loop.training_step

    def limited_step(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        nonlocal failures
        if 8 / options["num_micro_batches"] > max_images:
            failures += 1
            raise error
        return original_step(*arguments, **options)

    monkeypatch.setattr(loop, "training_step", limited_step)
    settings = fixed_settings()
    run = grow(data, out=tmp_path / "run", images=400, settings=settings)
    (event,) = (e for e in run.events if e["event"] == "micro_batches")
    assert (event["candidate"], event["num_micro_batches"], failures) == ("0000", 2, 1)
    assert all(e["status"] == "scored" for e in run.events if e["event"] == "candidate")
    # A resumed run starts with the division that fitted.
    grow(data, out=run.path, images=800, resume=True)
    assert failures == 1
    max_images = 2  # groups of four samples cannot be divided
    with pytest.raises(
        RuntimeError, match="does not fit into memory, even with micro-batches of 4 images"
    ):
        grow(data, out=tmp_path / "small", images=400, settings=settings)


def test_a_batch_that_would_hardly_fit_is_divided_from_the_start(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = fixed_settings()
    space = SearchSpace("pggan", settings.network, 1, (16, 16))
    specs = space.specs_at(space.max_level)
    full, half = memory.estimate_bytes(specs, 8), memory.estimate_bytes(specs, 4)
    assert half < full
    for free_bytes, expected in (
        (full / 0.69, 1),
        ((full + half) / 2 / 0.7, 2),
        (1.0, 2),
        (None, 1),
    ):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free_bytes=free_bytes: free_bytes)
        num_micro_batches = memory.choose_num_micro_batches(specs, 8, 4, torch.device("cpu"))
        assert num_micro_batches == expected, "a micro-batch holds complete groups of four"
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1.0)
    run = grow(data, out=tmp_path / "run", budget="3s", settings=settings)
    (event,) = (e for e in run.events if e["event"] == "micro_batches")
    assert (event["candidate"], event["num_micro_batches"]) == ("0000", 2)
    run = grow(data, out=tmp_path / "exact", images=160, settings=settings)
    assert not [e for e in run.events if e["event"] == "micro_batches"], (
        "a repeatable run must not depend on free memory"
    )


def test_free_memory_respects_the_limit_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CGROUP_DIR", tmp_path)
    monkeypatch.setattr(memory, "free_heap_bytes", lambda: 0.0)
    uninterrupted = memory.free_bytes(torch.device("cpu"))
    if uninterrupted is None:
        pytest.skip("the free memory is unknown on this system")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 300\nfile 700\ninactive_file 0\n")
    assert memory.free_bytes(torch.device("cpu")) == pytest.approx(uninterrupted, rel=0.5)
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory.free_bytes(torch.device("cpu")) == 4000
    (tmp_path / "memory.stat").write_text("anon 300\nfile 700\ninactive_file 600\n")
    assert memory.free_bytes(torch.device("cpu")) == 4600, "inactive file pages can be reclaimed"


@pytest.mark.skipif(sys.platform != "linux", reason="uses glibc")
def test_memory_in_the_heap_that_was_freed_counts_as_free() -> None:
    memory.keep_freed_heap()
    block = torch.ones(64 * 2**20 // 4)
    before = memory.free_heap_bytes()
    del block
    heap_bytes = memory.free_heap_bytes() - before
    memory.trim_heap()
    if not memory.free_heap_bytes():
        pytest.skip("another allocator is in use")
    assert 60 * 2**20 < heap_bytes < 80 * 2**20


def test_running_out_of_memory_in_a_step_of_g_leaves_d_trainable(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original_terms = 0, Objective.generator_terms

    def fail_once(self: Objective, step: StepContext) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original_terms(self, step)

    monkeypatch.setattr(Objective, "generator_terms", fail_once)
    settings = fixed_settings()
    run = grow(data, out=tmp_path / "run", images=400, settings=settings)
    assert [e["num_micro_batches"] for e in run.events if e["event"] == "micro_batches"] == [2]
    assert all(e["status"] == "scored" for e in run.events if e["event"] == "candidate")


def test_other_errors_are_not_mistaken_for_a_lack_of_memory(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **options: Any) -> dict[str, Tensor]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(loop, "training_step", broken)
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
    ("damage", "name"),
    [
        *((damage, "weights.safetensors") for damage in (flip, cut, swap, Path.unlink)),
        *((flip, name) for name in ("state.safetensors", "state.json", "manifest.json")),
    ],
)
def test_a_damaged_candidate_is_reported_and_replaced_by_its_parent(
    damage: Callable[[Path], None], name: str, data: ImageSet, tmp_path: Path
) -> None:
    settings = fixed_settings()
    run = grow(data, out=tmp_path / "run", images=400, settings=settings)
    last = next(e["survivors"][0] for e in reversed(run.events) if e["event"] == "select")
    before = next(e["parent"] for e in run.events if e.get("id") == last)
    damage(run.path / "candidates" / last / name)
    messages: list[str] = []
    display = SilentDisplay()
    display.message = messages.append  # type: ignore[method-assign]
    again = grow(data, out=run.path, images=800, resume=True, display=display)
    (event,) = (e for e in again.events if e["event"] == "corruption")
    assert last in event["corrupted"] and event["survivors"] == [before]
    assert any(f"{last}/" in text and before in text for text in messages)
    after = again.events[again.events.index(event) :]
    assert next(e for e in after if e["event"] == "candidate")["parent"] == before
    assert again.best.sample(2).shape == (2, 16, 16, 1)


def test_a_damaged_generator_is_not_sampled(data: ImageSet, tmp_path: Path) -> None:
    settings = fixed_settings()
    run = grow(data, out=tmp_path / "run", images=80, settings=settings)
    for file in run.path.glob("candidates/*/weights.safetensors"):
        flip(file)
    with pytest.raises(UserError, match=r"weights.safetensors' is damaged"):
        run.best.sample(2)
    with pytest.raises(
        UserError, match=r"the run cannot continue: .*weights.safetensors' is damaged"
    ):
        grow(data, out=run.path, images=160, resume=True)


def run_with_file_size_limit(size: int, data: ImageSet, out: Path) -> None:
    """Start or resume a run in which no file may exceed ``size`` bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    run_to_the_end(data, out)


@pytest.mark.skipif(forkserver is None, reason="needs fork")
@pytest.mark.parametrize("size", [slow(3_000), 30_000, slow(60_000)])
def test_a_full_disk_loses_nothing_that_was_written(
    size: int, data: ImageSet, uninterrupted: Path, tmp_path: Path
) -> None:
    assert forkserver is not None
    out = tmp_path / "full"
    largest = max(file.stat().st_size for file in uninterrupted.rglob("*.safetensors"))
    assert largest > size
    child = forkserver.Process(target=run_with_file_size_limit, args=(size, data, out))
    child.start()
    child.join()
    assert child.exitcode == 1
    run_to_the_end(data, out)
    assert main_events(out) == main_events(uninterrupted) and weights(out) == weights(uninterrupted)


@pytest.mark.parametrize("call", [slow(1), 4, slow(7)])
def test_a_disk_that_becomes_read_only_loses_nothing_that_was_written(
    call: int, data: ImageSet, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, save = 0, checkpoint.save_safetensors

    def refuse(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        save(*arguments)

    out = tmp_path / "locked"
    monkeypatch.setattr(checkpoint, "save_safetensors", refuse)
    with pytest.raises(OSError, match="Read-only"):
        run_to_the_end(data, out)
    run_to_the_end(data, out)
    assert main_events(out) == main_events(uninterrupted) and weights(out) == weights(uninterrupted)


def test_a_flipped_bit_in_the_ledger_is_repaired_from_its_copy(
    data: ImageSet, tmp_path: Path
) -> None:
    settings = fixed_settings()
    run = grow(data, out=tmp_path / "run", images=400, settings=settings)
    file, before = run.path / "ledger.jsonl", run.events
    uninterrupted = file.read_bytes()
    lines = uninterrupted.splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if b'"0003"' in line and b"candidate" in line)
    lines[number] = lines[number].replace(b'"images": ', b'"images":1')  # still JSON
    file.write_bytes(b"".join(lines))
    assert run.events == before
    grow(data, out=run.path, images=480, resume=True)
    assert file.read_bytes().startswith(uninterrupted)
    # A line that is damaged in both files is reported.
    for path in (file, backup_path(file)):
        flip_line(path, number)
    with pytest.raises(UserError, match=rf"ledger.jsonl' is damaged in line {number + 1}: "):
        _ = run.events
    with pytest.raises(
        UserError, match=rf"damaged in line {number + 1}: its checksum does not match"
    ):
        grow(data, out=run.path, images=560, resume=True)


def flip_line(file: Path, number: int) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number].replace(b'"images": ', b'"images":1')
    file.write_bytes(b"".join(lines))


def num_live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(obj), Tensor) for obj in gc.get_objects())


@pytest.mark.slow
def test_five_hundred_growths_leak_nothing(tmp_path: Path) -> None:
    space = SearchSpace(
        "pggan", NetworkConfig(latent_dim=8, width=4), 1, (8, 8), EditSettings(max_width=32)
    )
    rng = random.Random(0)
    files = Path("/proc/self/fd")

    def grow_once(seed: int) -> None:
        gan = Gan.create(*space.specs_at(0), OptimizerSettings(), seed=seed)
        for number in range(10):
            edits = legal_edits(gan.generator.spec, space.edit_settings, 8)
            edits = [edit for edit in edits if edit.resample_factor == 1]
            gan = gan.grown_copy((rng.choice(edits),), seed=number)
            gan.finish_fade()
        save_gan(gan, tmp_path / "gan")
        load_gan(tmp_path / "gan")

    for seed in range(5):  # warm up caches
        grow_once(seed)
    before = num_live_tensors(), len(list(files.iterdir())), threading.active_count()
    for seed in range(50):
        grow_once(seed)
    after = num_live_tensors(), len(list(files.iterdir())), threading.active_count()
    assert after == before
    assert [path.name for path in tmp_path.iterdir()] == ["gan"]


def test_jumps_of_the_system_clock_change_nothing(
    data: ImageSet, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 4e9))
    out = tmp_path / "run"
    run_to_the_end(data, out)
    assert main_events(out) == main_events(uninterrupted) and weights(out) == weights(uninterrupted)
    elapsed = [e["elapsed"] for e in Run.open(out).events if "elapsed" in e]
    assert elapsed == sorted(elapsed) and elapsed[-1] < 600


# --- a damaged ledger


@pytest.fixture(scope="module")
def short_run(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a short run that never grows."""
    settings = fixed_settings()
    return grow(
        data, out=tmp_path_factory.mktemp("short") / "run", images=160, settings=settings
    ).path


@pytest.fixture
def run_copy(short_run: Path, tmp_path: Path) -> Path:
    """Return a copy of that directory."""
    return Path(shutil.copytree(short_run, tmp_path / "run"))


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def rewrite_ledger(run_dir: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the events of a ledger, with valid checksums in both files."""
    events = list(Ledger(run_dir / "ledger.jsonl").read())
    change(events)
    Ledger(run_dir / "ledger.jsonl").delete()
    for event in events:
        Ledger(run_dir / "ledger.jsonl").append(event)


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:3],
        lambda lines: [*lines[:3], lines[3][:100]],
        lambda lines: [],
        lambda lines: lines[:2] + lines[3:],
        lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
        lambda lines: lines[1:],
    ],
)
@pytest.mark.parametrize("which", [lambda file: file, backup_path])
def test_missing_or_moved_lines_are_read_from_the_copy(
    damage: Callable[[list[bytes]], list[bytes]], which: Callable[[Path], Path], run_copy: Path
) -> None:
    ledger = Ledger(run_copy / "ledger.jsonl")
    uninterrupted, before = ledger.path.read_bytes(), list(ledger.read())
    which(ledger.path).write_bytes(b"".join(damage(lines_of(ledger.path))))
    assert list(ledger.read()) == before
    ledger.repair()
    assert ledger.path.read_bytes() == backup_path(ledger.path).read_bytes() == uninterrupted


def test_a_truncated_ledger_loses_no_candidate(run_copy: Path, data: ImageSet) -> None:
    ledger, weights_before, events_before = (
        run_copy / "ledger.jsonl",
        weights(run_copy),
        main_events(run_copy),
    )
    ledger.write_bytes(ledger.read_bytes()[: ledger.stat().st_size // 3])
    grow(data, out=run_copy, resume=True)
    assert (weights(run_copy), main_events(run_copy)) == (weights_before, events_before)


def test_candidates_that_are_missing_in_the_ledger_are_not_deleted(
    run_copy: Path, data: ImageSet
) -> None:
    weights_before = weights(run_copy)
    for file in (run_copy / "ledger.jsonl", backup_path(run_copy / "ledger.jsonl")):
        file.write_bytes(b"".join(lines_of(file)[:5]))
    with pytest.raises(UserError, match=r"' lacks lines: it does not contain the candidates 0"):
        grow(data, out=run_copy, resume=True)
    assert weights(run_copy) == weights_before


def test_a_line_that_is_missing_in_both_files_is_reported(run_copy: Path, data: ImageSet) -> None:
    for file in (run_copy / "ledger.jsonl", backup_path(run_copy / "ledger.jsonl")):
        lines = lines_of(file)
        file.write_bytes(b"".join(lines[:3] + lines[4:]))
    with pytest.raises(
        UserError, match=r"line 4: its checksum does not match, or the line before it is missing"
    ):
        grow(data, out=run_copy, resume=True)


def test_the_ledger_of_another_run_is_refused(
    run_copy: Path, data: ImageSet, tmp_path: Path
) -> None:
    settings = fixed_settings().model_copy(update={"seed": 7})
    other = grow(data, out=tmp_path / "other", images=160, settings=settings).path
    shutil.copy(other / "ledger.jsonl", run_copy)
    with pytest.raises(UserError, match=r"and its copy '.ledger.jsonl.copy' differ from line 1 on"):
        grow(data, out=run_copy, resume=True)
    shutil.copy(other / ".ledger.jsonl.copy", run_copy)
    with pytest.raises(UserError, match=r"config.yaml' has changed since the run started"):
        grow(data, out=run_copy, resume=True)


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
        ("candidate", "score_components", []),
        ("candidate", "score", "good"),
        ("candidate", "images", 10**400),
        ("candidate", "generator_spec", {}),
        ("candidate", "health_metrics", {"images_seen": 1}),
        ("select", "survivors", ["0099"]),
        ("select", "survivors", None),
        ("select", "event", "candidate"),
        ("candidate", "event", "select"),
        ("candidate", "event", "mitigation"),
        ("candidate", "event", "micro_batches"),
        ("candidate", "event", "corruption"),
        ("protocol", "protocol", []),
        ("end", "best", "0099"),
    ],
)
def test_an_invalid_event_is_reported(
    kind: str, key: str, value: object, run_copy: Path, data: ImageSet
) -> None:
    number = 0

    def change(events: list[dict[str, Any]]) -> None:
        nonlocal number
        number = next(i for i, event in enumerate(events) if event["event"] == kind)
        events[number][key] = value

    rewrite_ledger(run_copy, change)
    message = rf"ledger.jsonl' has an invalid event in line {number + 1}: "
    with pytest.raises(UserError, match=message):
        grow(data, out=run_copy, resume=True)


def test_unknown_settings_of_a_mitigation_are_reported(run_copy: Path, data: ImageSet) -> None:
    event = {"event": "mitigation", "mitigation": "rest", "diagnosis": "", "settings": {"rest": 1}}
    rewrite_ledger(run_copy, lambda events: events.append(event))
    with pytest.raises(
        UserError, match=r"has an invalid event in line \d+: unknown setting 'rest'"
    ):
        grow(data, out=run_copy, resume=True)


# --- other files of a run directory


def test_edited_settings_are_refused(run_copy: Path, data: ImageSet) -> None:
    file = run_copy / "config.yaml"
    before = file.read_text()
    file.write_text(before.replace("beta2: 0.99", "beta2: 0.9"))
    assert file.read_text() != before
    with pytest.raises(
        UserError, match=r"config.yaml' has changed .* settings cannot change within"
    ):
        grow(data, out=run_copy, resume=True)
    file.write_text(before)
    (run_copy / "data.json").write_text("{}")
    with pytest.raises(UserError, match=r"data.json' is damaged: it has changed since the run"):
        grow(data, out=run_copy, resume=True)


def test_a_candidate_with_the_files_of_another_is_replaced_by_its_parent(
    run_copy: Path, data: ImageSet
) -> None:
    last = Run.open(run_copy).best_id
    before = next(e["parent"] for e in Run.open(run_copy).events if e.get("id") == last)
    shutil.rmtree(run_copy / "candidates" / last)
    shutil.copytree(run_copy / "candidates" / before, run_copy / "candidates" / last)
    again = grow(data, out=run_copy, images=240, resume=True)
    (event,) = (e for e in again.events if e["event"] == "corruption")
    assert (
        last in event["corrupted"] and f"{last}/' is damaged: its files belong" in event["reason"]
    )


def test_a_file_with_the_name_of_a_candidate_is_reported(run_copy: Path, data: ImageSet) -> None:
    (run_copy / "candidates" / "0099").symlink_to(run_copy / "candidates" / "0000")
    with pytest.raises(UserError, match="0099' has the name of a candidate, but is not a folder"):
        grow(data, out=run_copy, resume=True)
    assert (run_copy / "candidates" / "0099").is_symlink()
    shutil.rmtree(run_copy / "candidates")
    with pytest.raises(
        UserError, match=r"the run cannot continue: .*manifest.json' cannot be read"
    ):
        grow(data, out=run_copy, resume=True)


def test_temporary_files_of_killed_processes_are_deleted(run_copy: Path, data: ImageSet) -> None:
    names = (".tmp-a", ".report.1.part.html", "candidates/0000/.samples.1.part.png")
    stale, fresh = [run_copy / name for name in names], run_copy / ".tmp-fresh"
    for path in (*stale, fresh):
        path.write_text("")
    for path in stale:
        os.utime(path, (1e9, 1e9))
    grow(data, out=run_copy, resume=True)
    assert not any(path.exists() for path in stale) and fresh.exists()


# --- interruptions of the start, of a mitigation and of the end


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_an_interrupted_start_does_not_prevent_a_new_one(
    writes: int, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, num_writes, write = tmp_path / "run", 0, run_directory.replace_file

    def killed(path: Path, content: bytes) -> None:
        nonlocal num_writes
        if num_writes == writes:
            (path.parent / ".tmp-1").write_bytes(content[:10])
            raise KeyboardInterrupt
        num_writes += 1
        write(path, content)

    settings = fixed_settings()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_directory, "replace_file", killed)
        if writes == 2:
            patch.setattr(Ledger, "append", lambda self, _: killed(self.path, b""))
        grow(data, out=out, images=80, settings=settings)
    if writes == 2:
        (out / "ledger.jsonl").write_bytes(b'{"event": "sta')
    with pytest.raises(UserError, match=r"no run to resume in .*; leave out --resume to "):
        grow(data, out=out, resume=True)
    run = grow(data, out=out, images=80, settings=settings)
    assert (run.events[0]["event"], run.events[-1]["event"]) == ("start", "end")


def test_files_with_the_names_of_run_files_are_not_overwritten(
    data: ImageSet, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1")
    with pytest.raises(UserError, match="is not an empty folder"):
        grow(data, out=tmp_path, images=80, settings=searching())
    assert (tmp_path / "config.yaml").read_text() == "mine: 1"


class Twins:
    """Continue the leader twice in every round."""

    def propose(self, survivors: Sequence[Candidate], history: History) -> list[Proposal]:
        if not survivors:
            return [Proposal(None, 0.2, root_specs=history.space.specs_at(history.space.max_level))]
        return [Proposal(survivors[0].id, 0.2)] * 2

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        return Selection(("0000",), "")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_mitigation_is_not_lost(
    when: str, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_health, mitigate = SearchLoop._check_health, SearchLoop._mitigate

    def fail_0001(self: SearchLoop, result: TrialResult) -> Diagnosis | None:
        if result.trial.id != "0001":
            return check_health(self, result)
        result.error, result.score = "it is unstable", None
        return Diagnosis("instability", "it is unstable")

    def killed(self: SearchLoop, *arguments: Any) -> None:
        if when == "after":
            mitigate(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(SearchLoop, "_check_health", fail_0001)
    options: dict[str, Any] = {"policy": Twins(), "images": 160, "settings": searching()}
    one = grow(data, out=tmp_path / "one", **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SearchLoop, "_mitigate", killed)
        grow(data, out=tmp_path / "two", **options)
    two = grow(data, out=tmp_path / "two", **options, resume=True)
    assert [e["candidate"] for e in two.events if e["event"] == "mitigation"] == ["0001"]
    assert main_events(two.path) == main_events(one.path) and weights(two.path) == weights(one.path)


def test_an_error_of_the_report_does_not_hide_that_of_the_search(
    run_copy: Path, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise UserError("report cannot be written: No space left on device")

    def stopped(*_: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "write_report", full)
    with pytest.raises(UserError, match="No space left"):
        grow(data, out=run_copy, resume=True)
    monkeypatch.setattr(loop, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        grow(data, out=run_copy, images=240, resume=True)


# --- checkpoints of trials in training


@pytest.fixture(scope="module")
def longer_run(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run with segments of six steps."""
    settings = fixed_settings()
    out = tmp_path_factory.mktemp("longer") / "run"
    return grow(data, out=out, images=480, settings=settings).path


@pytest.mark.parametrize(("damaged", "steps"), [(0, 1), (1, 2), (9, 6)])
def test_a_trial_resumes_from_its_newest_intact_checkpoint(
    damaged: int,
    steps: int,
    longer_run: Path,
    data: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that stops before the last of six steps, with a checkpoint after each, repeats one."""
    settings = fixed_settings()
    num_steps, original_step = 0, loop.training_step

    def counted(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 12:
            raise KeyboardInterrupt
        return original_step(*arguments, **options)

    out = tmp_path / "run"
    monkeypatch.setattr(loop, "training_step", counted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpointer, "CHECKPOINT_INTERVAL_SECONDS", 0.0)
        patch.setattr(checkpointer, "MAX_CHECKPOINT_TIME_FRACTION", 1e9)
        patch.setattr(checkpointer.TrialCheckpointer, "prune", lambda *_, **__: None)
        grow(data, out=out, images=480, settings=settings)
    checkpoints = sorted((out / "candidates").glob(".0001.checkpoint-*"), reverse=True)
    assert len(checkpoints) == 5
    for folder in checkpoints[:damaged]:
        flip(folder / "weights.safetensors")
    grow(data, out=out, resume=True)
    assert num_steps - 12 == steps + 8 * 6
    assert main_events(out) == main_events(longer_run) and weights(out) == weights(longer_run)


# --- the order of writes to disk


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("writer", ["replace_file", "atomic_write", "save_gan"])
def test_a_file_is_on_disk_before_it_is_renamed(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls_in_order: list[tuple[str, str]] = []
    sync, names = os.fsync, {"replace": os.replace, "rename": os.rename}

    def synced(descriptor: int) -> None:
        calls_in_order.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def renamed(name: str, old: Any, new: Any) -> None:
        calls_in_order.append(("rename", f"{old}"))
        names[name](old, new)

    monkeypatch.setattr(os, "fsync", synced)
    for name in names:
        monkeypatch.setattr(os, name, partial(renamed, name))
    if writer == "replace_file":
        replace_file(tmp_path / "file", b"data")
    elif writer == "atomic_write":
        with atomic_write(tmp_path / "file") as part:
            part.write_bytes(b"data")
    else:
        space = SearchSpace("pggan", NetworkConfig(latent_dim=8, width=4), 1, (8, 8))
        save_gan(Gan.create(*space.specs_at(0), OptimizerSettings(), seed=1), tmp_path / "file")
    ((at, temporary),) = (
        (i, path) for i, (what, path) in enumerate(calls_in_order) if what == "rename"
    )
    before, after = (
        {path for _, path in part} for part in (calls_in_order[:at], calls_in_order[at + 1 :])
    )
    files = {"", *(p.name for p in (tmp_path / "file").glob("*"))}
    assert before >= {str(Path(temporary) / name) for name in files}
    assert after == {str(tmp_path)}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_line_of_the_ledger_is_on_disk_before_work_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls_in_order: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: calls_in_order.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    ledger = Ledger(tmp_path / "ledger.jsonl")
    files = [str(ledger.path), str(backup_path(ledger.path))]
    ledger.append({"event": "start"})
    assert calls_in_order == [files[0], str(tmp_path), files[1], str(tmp_path)]
    calls_in_order.clear()
    ledger.append({"event": "end"})
    assert calls_in_order == files


@pytest.mark.parametrize("call", [2, slow(5), slow(6), 7])
def test_a_ledger_that_becomes_read_only_loses_nothing_that_was_written(
    call: int, data: ImageSet, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, append = 0, ledger_module._append_line

    def refuse(path: Path, line: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        append(path, line)

    out = tmp_path / "locked"
    monkeypatch.setattr(ledger_module, "_append_line", refuse)
    with pytest.raises((OSError, UserError), match="Read-only"):
        run_to_the_end(data, out)
    run_to_the_end(data, out)
    assert main_events(out) == main_events(uninterrupted) and weights(out) == weights(uninterrupted)


# --- the command line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_exits_with_130_and_says_how_to_resume(
    number: signal.Signals, data: ImageSet, tmp_path: Path
) -> None:
    pixels = np.asarray(data.images).transpose(0, 2, 3, 1)
    np.savez(tmp_path / "data.npz", images=pixels)
    out = tmp_path / "run"
    settings = (
        "batch_size=8",
        "network.latent_dim=16",
        "network.width=8",
        "score.kind=swd",
        "score.num_samples=64",
        "threads=1",
    )
    words = ["grow", str(tmp_path / "data.npz"), "--out", str(out), "--images", "100k"]
    words += [word for setting in settings for word in ("--set", setting)]
    with subprocess.Popen(
        [sys.executable, "-m", "growgan", *words], stderr=subprocess.PIPE, text=True
    ) as child:
        while not list(out.glob("stats.jsonl")) and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(number)
        output = child.communicate()[1]
    assert child.returncode == 130
    assert f"resume with: growgan grow {tmp_path / 'data.npz'}" in output and "--resume" in output
    assert len(list((out / "candidates").glob(".*.checkpoint-*"))) == 1


def test_sigterm_while_images_are_loaded_exits_with_130(tmp_path: Path) -> None:
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
        output = child.communicate()[1]
    assert child.returncode == 130 and "nothing was saved yet; run the same command again" in output
