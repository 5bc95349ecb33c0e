"""Several processes that train one pair: the same as one, and what happens when one is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_study import study

import growgan as gg
from growgan.config import make_settings
from growgan.errors import UserError
from growgan.growth.ranked import check_ranks
from growgan.objectives.step import Chance
from growgan.training.ranks import Ranks, join

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
}


def torchrun(count: int, *words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, **how)


def check_study(name: str, count: int, folder: Path) -> None:
    values = dict(CASES[name])
    values["stack"] = {"latent": 8, "width": 8, **values.get("stack", {})}
    (folder / "settings.json").write_text(json.dumps(values))
    done = torchrun(count, str(STUDY), str(folder / "out.npz"), str(folder / "settings.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(folder / "out.npz")
    for key, alone in study(values).items():
        np.testing.assert_allclose(found[key], alone, rtol=1e-9, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one_process_does(name: str, tmp_path: Path) -> None:
    check_study(name, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_four_ranks_train_as_one_process_does(name: str, tmp_path: Path) -> None:
    check_study(name, 4, tmp_path)


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


def test_each_rank_needs_whole_groups() -> None:
    settings = make_settings({"batch": 16})
    check_ranks(Ranks(0, 4), settings)
    with pytest.raises(UserError, match="batch 16 must be a multiple of 32"):
        check_ranks(Ranks(0, 8), settings)
    check_ranks(Ranks(0, 8), make_settings({"batch": 16, "stack": {"deviation_group": 0}}))


def grow(out: Path, *more: str) -> list[str]:
    words = ["-m", "growgan", "grow", "glyphs", "--resolution", "16", "--out", str(out)]
    small = ("batch=16", "stack.width=8", "stack.latent=8", "score.kind=swd", "score.samples=64")
    return [*words, *more, *(word for each in small for word in ("--set", each))]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_over_ranks_is_one_run_and_goes_on_with_another_number(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = torchrun(2, *grow(out, "--images", "4800", "--policy", "progressive"))
    assert done.returncode == 0, done.stderr[-3000:]
    run = gg.Run.open(out)
    first = [e for e in run.events if e["event"] == "candidate"]
    assert len(first) > 2 and run.events[-1]["event"] == "end" and not first[-1].get("error")
    alone = [sys.executable, *grow(out, "--images", "6400", "--resume")[:-10]]
    again = subprocess.run(alone, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    later = [e for e in run.events if e["event"] == "candidate"]
    assert later[: len(first)] == first and len(later) > len(first)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_rank_stops_all_with_a_clear_message(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *grow(out, "--budget", "10m")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (out / "stats.jsonl").is_file():
        assert begun.poll() is None
        time.sleep(0.1)
    workers = subprocess.run(
        ["pgrep", "-P", str(begun.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
    _, said = begun.communicate(timeout=120)
    assert begun.returncode != 0
    assert "has lost another one" in said or "SIGKILL" in said or "Signal 9" in said
    resumed = [sys.executable, *grow(out, "--images", "800")[:-10]]
    assert "already holds a run" in subprocess.run(resumed, capture_output=True, text=True).stderr
