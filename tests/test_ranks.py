"""Several processes that train one pair: the same as one, and what happens when one is lost."""

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
from rank_study import study

import growgan as gg
from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.errors import UserError
from growgan.growth.executor import Silent, Trainer
from growgan.growth.ledger import Ledger
from growgan.growth.ranked import check_ranks, follow
from growgan.growth.scoring import batches_of, scorer_of, trainer_of
from growgan.nets.ranked import LostRank, RankedNorm
from growgan.objectives import make_objective
from growgan.objectives.step import Chance
from growgan.training import runtime
from growgan.training.checkpoint import load_gan
from growgan.training.ranks import Ranks, join
from growgan.training.stage import _inputs

STUDY = Path(__file__).with_name("rank_study.py")
CASES: dict[str, dict[str, Any]] = {
    "relativistic, R1 and R2": {},
    "Wasserstein, penalty between": {
        "loss": "wasserstein",
        "regularisers": {"gp": {}, "drift": {}},
    },
    "batch norm, augmented": {
        "stack": {"norm": "batch", "discriminator_norm": "batch"},
        "loss": "hinge",
        "regularisers": {"r1": {}},
        "augment": "diffaugment",
    },
    "adaptive augmentation": {
        "augment": "ada",
        "augment_options": {"p": 0.5, "pace": 1000},
        "loss": "non-saturating",
    },
    # A share of eight chooses none every other time; G's batch norm waits for all shares.
    "some fakes as reals, batch norm": {
        "stack": {"norm": "batch"},
        "augment": "apa",
        "augment_options": {"p": 0.08, "pace": 0},
        "loss": "non-saturating",
    },
}
# What looks at the mean of a rank's own share: not as one process, but the same on all ranks.
MIXING: dict[str, dict[str, Any]] = {
    "LeCam": {"loss": "hinge", "regularisers": {"lecam": {"weight": 0.3}}},
    "path length": {
        "preset": "stylegan2",
        "stack": {"kind": "modulated", "discriminator_kind": "smooth", "mixing": 0.5},
        "regularisers": {"path-length": {"every": 2}, "r1": {}},
        "loss": "non-saturating",
    },
}


def torchrun(count: int, *words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, **how)


def studied(values: dict[str, Any], count: int, folder: Path) -> Any:
    values["stack"] = {"latent": 8, "width": 8, **values.get("stack", {})}
    (folder / "settings.json").write_text(json.dumps(values))
    words = [str(STUDY), str(folder / "out.npz"), str(folder / "settings.json")]
    done = torchrun(count, *words, timeout=120)
    assert done.returncode == 0, done.stderr[:3000]
    found = np.load(folder / "out.npz")
    assert found["left"] == 0
    return found


def check_study(name: str, count: int, folder: Path) -> None:
    values = dict(CASES[name])
    found = studied(values, count, folder)
    for key, alone in study(values).items():
        np.testing.assert_allclose(found[key], alone, rtol=1e-9, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one_process_does(name: str, tmp_path: Path) -> None:
    check_study(name, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_four_ranks_train_as_one_process_does(name: str, tmp_path: Path) -> None:
    check_study(name, 4, tmp_path)


@pytest.mark.parametrize("name", MIXING)
def test_what_two_ranks_remember_stays_the_same_on_both(name: str, tmp_path: Path) -> None:
    """One has the pair as it was made, the other from files, where names are in order."""
    assert studied(dict(MIXING[name]), 2, tmp_path)["apart"] == 0


def test_a_share_of_a_batch_draws_its_own_rows_of_the_whole() -> None:
    def chance(rows: int, place: tuple[int, int]) -> Chance:
        return Chance(torch.Generator().manual_seed(3), rows, place)

    whole, halves = chance(8, (0, 1)), [chance(4, (0, 2)), chance(4, (1, 2))]
    for draw in ("uniform", "normal"):
        for sets in (1, 2):
            every = getattr(whole, draw)(8 * sets, 3).view(sets, 2, 4, 3)
            for place, half in enumerate(halves):
                own = getattr(half, draw)(4 * sets, 3).view(sets, 4, 3)
                torch.testing.assert_close(own, every[:, place], rtol=0, atol=0)
    every = whole.integers(0, 100, 8)
    assert torch.equal(torch.cat([half.integers(0, 100, 4) for half in halves]), every)


def test_alone_nothing_is_exchanged() -> None:
    ranks = join({})
    assert ranks == Ranks() and ranks.first
    assert ranks.agree(0.25, 1.0) == (0.25, 1.0) and ranks.tell("x") == "x"
    value = torch.tensor([1.0, 2.0])
    ranks.average([value])
    assert value.tolist() == [1.0, 2.0]


def test_what_is_on_the_cpu_is_exchanged_there_also_with_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(dist, "init_process_group", begun.append)
    monkeypatch.setattr(dist, "get_rank", lambda: 5)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", begun.append)
    told = {"WORLD_SIZE": "8", "LOCAL_RANK": "5"}
    for gpus in (0, 1, 8):  # of several, SLURM may show each process its own alone
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert join(told) == Ranks(5, 8)
    assert begun == ["gloo", 0, "cpu:gloo,cuda:nccl", 5, "cpu:gloo,cuda:nccl"]


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("Connection closed by peer [127.0.0.1]:4711", True),
        ("Timed out waiting 1800000ms for send operation to complete", True),
        ("ncclRemoteError: remote process exited or there was a network error", True),
        ("The size of tensor a (3) must match the size of tensor b (4)", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_only_a_lost_connection_is_called_one(said: str, lost: bool) -> None:
    def fail() -> None:
        raise RuntimeError(said)

    with pytest.raises(RuntimeError) as caught:
        Ranks(0, 2)._guarded(fail)
    assert isinstance(caught.value, LostRank) == lost


def test_batch_norm_says_clearly_that_a_rank_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forward, and in the backward, for which the other one must be there, too."""
    exchanges = 0

    def exchange(total: torch.Tensor) -> None:
        nonlocal exchanges
        exchanges += 1
        if exchanges == 2:
            raise RuntimeError("Connection closed by peer [127.0.0.1]:4711")

    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 0}.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    monkeypatch.setattr(dist, "all_reduce", exchange)
    norm, x = RankedNorm(4), torch.ones(2, 4, 3, 3, requires_grad=True)
    with pytest.raises(LostRank, match="rank 0 of 2 has lost another one: the run stops here"):
        norm(x).sum().backward()
    exchanges = 1
    with pytest.raises(LostRank, match="go on with --resume"):
        norm(x)


def test_processes_of_one_machine_share_what_they_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(runtime, "_time_convolution", lambda n: tried.append(n) or 1 / n)
    monkeypatch.setattr(runtime, "cores", lambda: 12)  # of a machine with more
    assert runtime.best_threads() == 12 and tried == [1, 12]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert runtime.best_threads() == 3


def test_noise_is_another_one_on_each_rank() -> None:
    drawn = [noise_of(Ranks(rank, 2)) for rank in (0, 1)]
    assert not torch.equal(*drawn)
    assert torch.equal(drawn[0], noise_of(Ranks()))


def noise_of(ranks: Ranks) -> torch.Tensor:
    """Return the first of torch's own random numbers in a step of a noisy pair."""
    settings = make_settings({"batch": 8})
    gan: Any = SimpleNamespace(
        steps=3,
        images=24,
        resolution=(16, 16),
        generator=SimpleNamespace(
            noisy=True,
            fade_factor=1,
            spec=SimpleNamespace(channels=1, given=0, latent=4, classes=0),
        ),
        discriminator=SimpleNamespace(fade_factor=1),
    )
    pixels = np.zeros((16, 1, 16, 16), np.uint8)
    batches = Batches(ImageSet("black", pixels, None, (), "black"), 8, 0)
    here = replace(runtime.make_runtime("cpu", "float32"), ranks=ranks)
    with torch.random.fork_rng():
        _inputs(gan, batches, make_objective(settings), settings, here)
        return torch.rand(8)


def test_each_rank_needs_whole_groups() -> None:
    settings = make_settings({"batch": 16})
    check_ranks(Ranks(0, 4), settings)
    with pytest.raises(UserError, match="batch 16 must be a multiple of 32"):
        check_ranks(Ranks(0, 8), settings)
    check_ranks(Ranks(0, 8), make_settings({"batch": 16, "stack": {"deviation_group": 0}}))


def test_what_went_in_parts_alone_goes_whole_over_ranks(tmp_path: Path) -> None:
    """The others take their shares of whole batches, and batch norm waits for all of them."""
    settings = make_settings({"batch": 16, "score": {"kind": "swd", "samples": 32}})
    pixels = np.zeros((64, 1, 16, 16), np.uint8)
    data, ledger = ImageSet("black", pixels, None, (), "black"), Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"event": "start", "budget": {"images": 80}})
    search: Any = SimpleNamespace(ledger=ledger, keeper=Silent(), parts=4)
    here = runtime.make_runtime("cpu", "float32")
    assert trainer_of(tmp_path, settings, search, data, here).parts == 4
    several = replace(here, ranks=Ranks(0, 2))
    assert trainer_of(tmp_path, settings, search, data, several).parts == 1


def test_a_rank_with_other_data_is_refused() -> None:
    pixels = np.zeros((16, 1, 16, 16), np.uint8)
    data = ImageSet("black", pixels, None, (), "black")
    told: Any = SimpleNamespace(rank=1, tell=lambda: (make_settings({}), "white"))
    with pytest.raises(UserError, match="'black' is other data on rank 1 than on the first"):
        follow(told, data)


def grow(out: Path, *more: str) -> list[str]:
    words = ["-m", "growgan", "grow", "glyphs", "--resolution", "16", "--out", str(out)]
    small = ("batch=16", "stack.width=8", "stack.latent=8", "score.kind=swd", "score.samples=64")
    return [*words, *more, *(word for each in small for word in ("--set", each))]


def check_score(run: gg.Run) -> None:
    """See that the best pair's score, for which both ranks drew, is what one would have found."""
    settings, data = run.best.settings, gg.load_images("glyphs", resolution=16)
    scorer, plain = scorer_of(data, settings, None), runtime.runtime_of(settings)
    trainer = Trainer(batches_of(data, settings), plain, scorer, Silent())
    gan = load_gan(run.best.folder)
    (found,) = (e["score"] for e in run.events if e.get("id") == run.best_id and "score" in e)
    assert trainer.score(gan, settings.batch).value == pytest.approx(found, rel=0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_over_ranks_is_one_run_and_goes_on_with_another_number(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = torchrun(2, *grow(out, "--images", "4800", "--policy", "progressive"))
    assert done.returncode == 0, done.stderr[-3000:]
    run = gg.Run.open(out)
    first = [e for e in run.events if e["event"] == "candidate"]
    assert len(first) > 2 and run.events[-1]["event"] == "end" and not first[-1].get("error")
    check_score(run)
    alone = [sys.executable, *grow(out, "--images", "6400", "--resume")[:-10]]
    again = subprocess.run(alone, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    later = [e for e in run.events if e["event"] == "candidate"]
    assert later[: len(first)] == first and len(later) > len(first)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_short_of_memory_goes_on_over_ranks(tmp_path: Path) -> None:
    out, norm = tmp_path / "run", ("--set", "stack.norm=batch")
    words = grow(out, "--images", "800", "--policy", "fixed", *norm)
    alone = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    Ledger(out / "ledger.jsonl").append({"event": "memory", "candidate": "0000", "parts": 2})
    done = torchrun(2, *grow(out, "--images", "1600", "--resume")[:-10], timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    run = gg.Run.open(out)
    made = [e["id"] for e in run.events if e["event"] == "candidate" and not e.get("error")]
    assert run.events[-1]["event"] == "end" and made[0] == "0000" and len(made) > 1


def begun(out: Path, *more: str) -> tuple[subprocess.Popen[str], list[int]]:
    """Return a run of two ranks in training, and their process ids, the first rank's first."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *grow(out, "--budget", "10m", "--policy", "fixed", *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env=environment, text=True, **both)  # type: ignore[call-overload]
    while not (out / "stats.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.1)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return process, sorted(map(int, found.stdout.split()))


def goes_on(out: Path) -> None:
    """Go on with a run alone, and see it end."""
    alone = [sys.executable, *grow(out, "--images", "800", "--resume")[:-10]]
    again = subprocess.run(alone, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert gg.Run.open(out).events[-1]["event"] == "end"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("norm", ["pixel", "batch"])
def test_a_lost_rank_stops_all_with_a_clear_message_and_one_goes_on(
    tmp_path: Path, norm: str
) -> None:
    out = tmp_path / "run"
    process, workers = begun(out, "--set", f"stack.norm={norm}")
    os.kill(workers[-1], signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "rank 0 of 2 has lost another one: the run stops here; go on with --resume" in said
    goes_on(out)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_what_is_in_training(
    tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    process, _ = begun(out)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert "has lost another one" not in said and "go on with: growgan grow" in said
    (saved,) = (out / "candidates").glob(".0000.at-*")
    assert int(saved.name.split("-")[-1]) > 0
    goes_on(out)
