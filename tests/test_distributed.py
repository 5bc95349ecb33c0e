"""Distributed training equals training in one process and stops cleanly if a process is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from distributed_study import run_study

import growgan as gg
from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.errors import UserError
from growgan.execution.callback import NullCallback
from growgan.execution.candidate_scorer import CandidateScorer
from growgan.execution.distributed import check_batch_size, follower_loop
from growgan.execution.scoring import build_batches, build_scorer
from growgan.nets.distributed import PeerLostError, SyncBatchNorm
from growgan.objectives import make_objective
from growgan.objectives.step_context import Shard, ShardedRng
from growgan.run.grow import build_trainer
from growgan.run.ledger import Ledger
from growgan.training import runtime
from growgan.training.batch import sample_batch
from growgan.training.checkpoint import load_gan
from growgan.training.distributed import DistributedContext, init_distributed

STUDY = Path(__file__).with_name("distributed_study.py")
CASES: dict[str, dict[str, Any]] = {
    "relativistic, R1 and R2": {},
    "Wasserstein, penalty between": {
        "loss": "wasserstein",
        "regularizers": {"gp": {}, "drift": {}},
    },
    "batch norm, augmented": {
        "network": {"norm": "batch", "discriminator_norm": "batch"},
        "loss": "hinge",
        "regularizers": {"r1": {}},
        "augmentation": "diffaugment",
    },
    "adaptive augmentation": {
        "augmentation": "ada",
        "augmentation_options": {"initial_probability": 0.5, "ramp_images": 1000},
        "loss": "non-saturating",
    },
    # Half of the shards of 8 replace no image, but G's batch norm waits for all shards.
    "some fakes as reals, batch norm": {
        "network": {"norm": "batch"},
        "augmentation": "apa",
        "augmentation_options": {"initial_probability": 0.08, "ramp_images": 0},
        "loss": "non-saturating",
    },
}
# These terms use statistics of one shard. They differ from training in one process, but the state
# must be equal in all processes.
SHARD_CASES: dict[str, dict[str, Any]] = {
    "LeCam": {"loss": "hinge", "regularizers": {"lecam": {"weight": 0.3}}},
    "path length": {
        "preset": "stylegan2",
        "network": {
            "block": "modulated",
            "discriminator_block": "blur-residual",
            "style_mixing_prob": 0.5,
        },
        "regularizers": {"path-length": {"interval": 2}, "r1": {}},
        "loss": "non-saturating",
    },
}


def torchrun(
    num_processes: int, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(num_processes), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, **options)


def run_distributed_study(values: dict[str, Any], num_processes: int, folder: Path) -> Any:
    values["network"] = {"latent_dim": 8, "width": 8, **values.get("network", {})}
    (folder / "settings.json").write_text(json.dumps(values))
    arguments = [str(STUDY), str(folder / "out.npz"), str(folder / "settings.json")]
    process = torchrun(num_processes, *arguments, timeout=120)
    assert process.returncode == 0, process.stderr[:3000]
    result = np.load(folder / "out.npz")
    assert result["num_gloo_threads"] == 0
    return result


def check_study(name: str, num_processes: int, folder: Path) -> None:
    values = dict(CASES[name])
    result = run_distributed_study(values, num_processes, folder)
    for key, expected in run_study(values).items():
        np.testing.assert_allclose(result[key], expected, rtol=1e-9, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_like_one(name: str, tmp_path: Path) -> None:
    check_study(name, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_four_processes_train_like_one(name: str, tmp_path: Path) -> None:
    check_study(name, 4, tmp_path)


@pytest.mark.parametrize("name", SHARD_CASES)
def test_the_objective_state_stays_equal_in_two_processes(name: str, tmp_path: Path) -> None:
    """One process has the original GAN; the other loads it from files with sorted names."""
    assert run_distributed_study(dict(SHARD_CASES[name]), 2, tmp_path)["max_difference"] == 0


def test_a_shard_draws_its_rows_of_the_whole_batch() -> None:
    def make_rng(num_samples: int, shard: Shard) -> ShardedRng:
        return ShardedRng(torch.Generator().manual_seed(3), num_samples, shard)

    full_batch, halves = make_rng(8, Shard()), [make_rng(4, Shard(0, 2)), make_rng(4, Shard(1, 2))]
    for method in ("uniform", "normal"):
        for num_sets in (1, 2):
            expected = getattr(full_batch, method)(8 * num_sets, 3).view(num_sets, 2, 4, 3)
            for index, half in enumerate(halves):
                rows = getattr(half, method)(4 * num_sets, 3).view(num_sets, 4, 3)
                torch.testing.assert_close(rows, expected[:, index], rtol=0, atol=0)
    expected = full_batch.integers(0, 100, 8)
    assert torch.equal(torch.cat([half.integers(0, 100, 4) for half in halves]), expected)


def test_a_single_process_does_not_communicate() -> None:
    context = init_distributed({})
    assert context == DistributedContext() and context.is_main_process
    assert context.broadcast(0.25, 1.0) == (0.25, 1.0) and context.broadcast_object("x") == "x"
    value = torch.tensor([1.0, 2.0])
    context.all_reduce_mean([value])
    assert value.tolist() == [1.0, 2.0]


def test_cpu_tensors_use_gloo_even_with_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(dist, "init_process_group", calls.append)
    monkeypatch.setattr(dist, "get_rank", lambda: 5)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    environment = {"WORLD_SIZE": "8", "LOCAL_RANK": "5"}
    for num_gpus in (0, 1, 8):  # SLURM may show each process only its own GPU
        monkeypatch.setattr(torch.cuda, "device_count", lambda num_gpus=num_gpus: num_gpus)
        assert init_distributed(environment) == DistributedContext(5, 8)
    assert calls == ["gloo", 0, "cpu:gloo,cuda:nccl", 5, "cpu:gloo,cuda:nccl"]


@pytest.mark.parametrize(
    ("message", "is_lost"),
    [
        ("Connection closed by peer [127.0.0.1]:4711", True),
        ("Timed out waiting 1800000ms for send operation to complete", True),
        ("ncclRemoteError: remote process exited or there was a network error", True),
        ("The size of tensor a (3) must match the size of tensor b (4)", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_only_connection_errors_are_lost_peers(message: str, is_lost: bool) -> None:
    def fail() -> None:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError) as caught:
        DistributedContext(0, 2)._raise_on_lost_peer(fail)
    assert isinstance(caught.value, PeerLostError) == is_lost


def test_batch_norm_reports_a_lost_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward and the backward pass both need the other process."""
    num_calls = 0

    def all_reduce(total: torch.Tensor) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            raise RuntimeError("Connection closed by peer [127.0.0.1]:4711")

    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 0}.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    norm, x = SyncBatchNorm(4), torch.ones(2, 4, 3, 3, requires_grad=True)
    with pytest.raises(PeerLostError, match="rank 0 of 2 has lost the connection to another rank"):
        norm(x).sum().backward()
    num_calls = 1
    with pytest.raises(PeerLostError, match="continue the run with --resume"):
        norm(x)


def test_processes_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    tested_threads: list[int] = []
    monkeypatch.setattr(
        runtime, "_convolution_seconds", lambda n: tested_threads.append(n) or 1 / n
    )
    monkeypatch.setattr(runtime, "num_available_cores", lambda: 12)
    assert runtime.fastest_num_threads() == 12 and tested_threads == [1, 12]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert runtime.fastest_num_threads() == 3


def test_noise_differs_between_processes() -> None:
    values = [noise_of(DistributedContext(rank, 2)) for rank in (0, 1)]
    assert not torch.equal(*values)
    assert torch.equal(values[0], noise_of(DistributedContext()))


def noise_of(context: DistributedContext) -> torch.Tensor:
    """Return the first global random numbers of a step with a stochastic generator."""
    settings = make_settings({"batch_size": 8})
    gan: Any = SimpleNamespace(
        steps=3,
        images_seen=24,
        resolution=(16, 16),
        generator=SimpleNamespace(
            is_stochastic=True,
            fade_resample_factor=1,
            spec=SimpleNamespace(image_channels=1, source_channels=0, latent_dim=4, label_dim=0),
        ),
        discriminator=SimpleNamespace(fade_resample_factor=1),
    )
    pixels = np.zeros((16, 1, 16, 16), np.uint8)
    batches = Batches(ImageSet("black", pixels, None, (), "black"), 8, 0)
    local_runtime = replace(runtime.make_runtime("cpu", "float32"), distributed=context)
    with torch.random.fork_rng():
        sample_batch(gan, batches, make_objective(settings), settings, runtime=local_runtime)
        return torch.rand(8)


def test_the_batch_of_each_process_must_hold_whole_minibatch_stddev_groups() -> None:
    settings = make_settings({"batch_size": 16})
    check_batch_size(DistributedContext(0, 4), settings)
    with pytest.raises(UserError, match="batch_size must be a multiple of 32"):
        check_batch_size(DistributedContext(0, 8), settings)
    check_batch_size(
        DistributedContext(0, 8),
        make_settings({"batch_size": 16, "network": {"mbstd_group_size": 0}}),
    )


def test_micro_batches_are_not_used_with_several_processes(tmp_path: Path) -> None:
    """The other processes do not split batches, and synchronized norms wait for all processes."""
    settings = make_settings({"batch_size": 16, "score": {"kind": "swd", "num_samples": 32}})
    pixels = np.zeros((64, 1, 16, 16), np.uint8)
    data, ledger = ImageSet("black", pixels, None, (), "black"), Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"event": "start", "format": 1, "budget": {"images": 80}})
    search: Any = SimpleNamespace(
        run_dir=tmp_path,
        ledger=ledger,
        callback=NullCallback(),
        state=SimpleNamespace(num_micro_batches=4),
    )
    local_runtime = runtime.make_runtime("cpu", "float32")
    assert build_trainer(search, settings, data, local_runtime).num_micro_batches == 4
    distributed_runtime = replace(local_runtime, distributed=DistributedContext(0, 2))
    assert build_trainer(search, settings, data, distributed_runtime).num_micro_batches == 1


def test_a_process_with_different_data_is_refused() -> None:
    pixels = np.zeros((16, 1, 16, 16), np.uint8)
    data = ImageSet("black", pixels, None, (), "black")
    distributed: Any = SimpleNamespace(
        rank=1, broadcast_object=lambda: (make_settings({}), "white")
    )
    with pytest.raises(UserError, match="'black' differs between process 1 and the main process"):
        follower_loop(distributed, data)


def grow_command(out: Path, *options: str) -> list[str]:
    """Return the arguments of Python that run ``growgan grow``; the last ten are settings."""
    command = ["-m", "growgan", "grow", "glyphs", "--resolution", "16", "--out", str(out)]
    settings = (
        "batch_size=16",
        "network.width=8",
        "network.latent_dim=8",
        "score.kind=swd",
        "score.num_samples=64",
    )
    return [*command, *options, *(arg for setting in settings for arg in ("--set", setting))]


def check_score(run: gg.Run) -> None:
    """Check that the best score, computed by both processes, equals that of one process."""
    settings, data = run.best.settings, gg.load_images("glyphs", resolution=16)
    scorer, local_runtime = (
        build_scorer(data, settings, None),
        runtime.runtime_from_settings(settings),
    )
    candidate_scorer = CandidateScorer(build_batches(data, settings), local_runtime, scorer)
    gan = load_gan(run.best.checkpoint_dir)
    (expected,) = (e["score"] for e in run.events if e.get("id") == run.best_id and "score" in e)
    assert candidate_scorer.score(gan).value == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_distributed_search_can_be_resumed_by_one_process(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = torchrun(2, *grow_command(out, "--images", "4800", "--policy", "progressive"))
    assert process.returncode == 0, process.stderr[-3000:]
    run = gg.Run.open(out)
    first = [e for e in run.events if e["event"] == "candidate"]
    assert len(first) > 2 and run.events[-1]["event"] == "end" and not first[-1].get("error")
    check_score(run)
    command = [sys.executable, *grow_command(out, "--images", "6400", "--resume")[:-10]]
    resumed = subprocess.run(command, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    later = [e for e in run.events if e["event"] == "candidate"]
    assert later[: len(first)] == first and len(later) > len(first)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_with_micro_batches_can_be_resumed_by_two_processes(tmp_path: Path) -> None:
    out, norm = tmp_path / "run", ("--set", "network.norm=batch")
    arguments = grow_command(out, "--images", "800", "--policy", "fixed", *norm)
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    Ledger(out / "ledger.jsonl").append(
        {"event": "micro_batches", "candidate": "0000", "num_micro_batches": 2}
    )
    resumed = torchrun(2, *grow_command(out, "--images", "1600", "--resume")[:-10], timeout=120)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    run = gg.Run.open(out)
    candidate_ids = [
        e["id"] for e in run.events if e["event"] == "candidate" and not e.get("error")
    ]
    assert (
        run.events[-1]["event"] == "end" and candidate_ids[0] == "0000" and len(candidate_ids) > 1
    )


def start_torchrun(out: Path, *options: str) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a run with two processes; return torchrun and their process ids, rank 0 first."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [
        "--nproc-per-node",
        "2",
        *grow_command(out, "--budget", "10m", "--policy", "fixed", *options),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env=environment, text=True, **streams)  # type: ignore[call-overload]
    while not (out / "stats.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return process, sorted(map(int, children.stdout.split()))


def resume_with_one_process(out: Path) -> None:
    """Resume a run with one process until it ends."""
    command = [sys.executable, *grow_command(out, "--images", "800", "--resume")[:-10]]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert gg.Run.open(out).events[-1]["event"] == "end"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("norm", ["pixel", "batch"])
def test_a_lost_process_stops_the_run_which_can_be_resumed(tmp_path: Path, norm: str) -> None:
    out = tmp_path / "run"
    process, workers = start_torchrun(out, "--set", f"network.norm={norm}")
    os.kill(workers[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "rank 0 of 2 has lost the connection to another rank" in output
    assert "continue the run with --resume" in output
    resume_with_one_process(out)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_a_checkpoint(
    tmp_path: Path, signal_number: signal.Signals
) -> None:
    out = tmp_path / "run"
    process, _ = start_torchrun(out)
    process.send_signal(signal_number)
    output, _ = process.communicate(timeout=120)
    assert "has lost the connection" not in output and "resume with: growgan grow" in output
    (checkpoint,) = (out / "candidates").glob(".0000.checkpoint-*")
    assert int(checkpoint.name.split("-")[-1]) > 0
    resume_with_one_process(out)
