"""What labels are worth: how few are enough, and is a pair for each better than one for all?

    python benchmarks/labels.py few --jobs 2         # some 40 minutes on two cores
    python benchmarks/labels.py apart                # some 25 minutes a seed

``few``: on Fashion-MNIST at 32×32, a pair is trained without labels for five minutes. Then, with 1,
10 and 100 % of the labels: InRep+ before the frozen generator (``reprogram``), all of it trained on
with a projection (``fine-tune``), two minutes each, and a conditional pair from scratch
(``scratch``), which sees the labelled images alone, for seven minutes.

``apart``: ten minutes of one core for a Wasserstein pair for each label, a minute each, and for one
conditional pair with the same stack and loss, and with the default loss. Here two labels are
trained at a time, each on one core, and so in half of the time by the clock.

Distances are those of the judge of ``benchmarks/growth.py``: to all reals, and the mean within
classes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from growth import judge, load
from mixture import figure

import growgan as gg
from growgan.config import Settings, make_settings
from growgan.growth.pool import Pool
from growgan.nets.presets import PRESETS
from growgan.training.runtime import machine

RESULTS = Path(__file__).parent / "results" / "labels.json"
RUNS = Path("runs/labels")
DATA = "fashion-mnist"
SHARES = (0.01, 0.1, 1.0)
WAYS = ("reprogram", "fine-tune", "scratch")
WASSERSTEIN = {"loss": "wasserstein", "regularisers": "gp,drift"}
BEFORE, AFTER = 300, 120  # seconds
QUICK = 2e-3  # the modifier's rate: two minutes are short, and it learns too little at its own
TOTAL = 600  # seconds of one core


def base(seed: int, threads: int) -> gg.Run:
    """Return the run without labels, made once."""
    out = RUNS / f"base-{seed}"
    if out.exists():
        return gg.Run.open(out)
    settings = {"policy": "fixed", "seed": seed, "threads": threads}
    data, budget = load(DATA), f"{BEFORE}s"
    return gg.grow(data, out=out, budget=budget, settings=settings)


def run(way: str, share: float, seed: int, threads: int) -> dict[str, Any]:
    """Teach one pair and measure it."""
    torch.set_num_threads(threads)
    data, out = load(DATA), RUNS / f"{way}-{share:g}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    known: dict[str, Any] = {"seed": seed, "threads": threads, "labels": {"share": share}}
    if way == "scratch":
        settings = {**known, "policy": "fixed", "conditioning": "projection"}
        made = gg.grow(data, out=out, budget=f"{BEFORE + AFTER}s", settings=settings)
    else:
        start = base(seed, threads)
        if way == "reprogram":
            known["optimiser"] = {"lr": QUICK}
        made = gg.condition(start, data, way=way, out=out, budget=f"{AFTER}s", settings=known)
    told = {"way": way, "share": share, "seed": seed, "machine": machine()}
    return told | judge(made.best, data)


def pooled(seed: int) -> Pool:
    """Return a pair for each label, trained two at a time by ``growgan per-label``."""
    out, usual = RUNS / f"apart-{seed}", make_settings(PRESETS["pggan"].small)
    shutil.rmtree(out, ignore_errors=True)
    words = ["per-label", "pggan", DATA, "--resolution", "32", "--out", str(out)]
    words += ["--budget", f"{TOTAL // 10}s", "--seed", str(seed), "--jobs", "2"]
    for change in ("threads=1", *differences(usual, make_settings(PRESETS["pggan"].published))):
        words += ["--set", change]
    subprocess.run([sys.executable, "-m", "growgan", *words], check=True)
    return Pool(out)


def differences(wanted: Settings, given: Settings) -> Iterator[str]:
    """Yield what is to be set of stack, optimiser and batch; the loss is per-label's own."""
    yield from (f"{key}={getattr(wanted, key)}" for key in ("batch", "anneal"))
    for group in ("stack", "optimiser", "average"):
        theirs = getattr(given, group).model_dump()
        for key, value in getattr(wanted, group).model_dump().items():
            if value != theirs[key]:
                yield f"{group}.{key}={'null' if value is None else value}"


def apart(seed: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of a pair for each label, and of one for all by two losses."""
    data, losses = load(DATA), {"the same loss": WASSERSTEIN, "the default loss": {}}
    makes: dict[str, Callable[[], gg.Run | Pool]] = {"a pair for each label": lambda: pooled(seed)}
    for name, loss in losses.items():
        out = RUNS / f"one-{name.replace(' ', '-')}-{seed}"
        shutil.rmtree(out, ignore_errors=True)
        settings = {"policy": "fixed", "conditioning": "projection", "threads": 1, "seed": seed}
        makes[f"one for all, {name}"] = partial(
            gg.grow, data, out=out, budget=f"{TOTAL}s", settings=settings | loss
        )
    for name, make in makes.items():
        begun = time.perf_counter()
        made = make()
        row = {"way": name, "seed": seed, "seconds": time.perf_counter() - begun}
        row["machine"] = machine()
        runs = [made.run(k) for k in range(10)] if isinstance(made, Pool) else [made]
        steps = [e for run in runs for e in run.events if e["event"] == "candidate"]
        row["rate"] = sum(e["images"] for e in last_of(runs)) / sum(e["trained"] for e in steps)
        yield row | judge(made.best, data)


def last_of(runs: list[gg.Run]) -> Iterator[dict[str, Any]]:
    """Yield each run's last candidate, whose images are those of all before it."""
    for run in runs:
        yield [e for e in run.events if e["event"] == "candidate"][-1]


def apart_table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown, means over seeds."""
    lines = [
        "| | seeds | FD within classes | FD | images/s while training | minutes by the clock |",
        "|---|---|---|---|---|---|",
    ]
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        cells = [figure([row[key] for row in own], 2) for key in ("intra", "fd")]
        cells += [figure([row["rate"] for row in own], 0)]
        cells += [figure([row["seconds"] / 60 for row in own], 1)]
        lines.append(f"| {way} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def few_table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown: distance within classes / to all reals, over seeds."""
    lines = ["| labels | " + " | ".join(WAYS) + " |", "|---" * (len(WAYS) + 1) + "|"]
    for share in SHARES:
        groups = [[r for r in rows if (r["way"], r["share"]) == (way, share)] for way in WAYS]
        cells = (
            " / ".join(figure([r[key] for r in own], 2) for key in ("intra", "fd") if own)
            for own in groups
        )
        lines.append(f"| {share:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def few(ways: list[str], seeds: int, jobs: int) -> list[dict[str, Any]]:
    """Return the rows of some ways, made some at a time."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, max_tasks_per_child=1) as pool:
        started = [pool.submit(base, seed, threads) for seed in range(seeds)]
        for each in started:
            each.result()
        runs = [
            pool.submit(run, way, share, seed, threads)
            for seed in range(seeds)
            for way in ways
            for share in SHARES
        ]
        return [each.result() for each in runs]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("few", "apart"))
    parser.add_argument("--only", nargs="*", default=list(WAYS), choices=WAYS, help="of few")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="runs of few at a time")
    given = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if given.what == "few":
        rows = few(given.only, given.seeds, given.jobs)
        rows += [row for row in kept.get("few", []) if row["way"] not in given.only]
    else:
        torch.set_num_threads(1)
        rows = [row for seed in range(given.seeds) for row in apart(seed)]
    kept[given.what] = rows
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{machine()}\n\n{(few_table if given.what == 'few' else apart_table)(rows)}")


if __name__ == "__main__":
    main()
