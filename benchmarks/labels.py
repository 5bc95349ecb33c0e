"""How few labels are enough? A generator that was trained without them is taught some.

    python benchmarks/labels.py --jobs 2         # some 70 minutes on two cores
    python benchmarks/labels.py --only reprogram

On Fashion-MNIST at 32×32, a pair is trained without labels for ten minutes. Then, with 1, 10 and
100 % of the labels: InRep+ before the frozen generator (``reprogram``), all of it trained on with
a projection (``fine-tune``), three minutes each, and a conditional pair from scratch
(``scratch``), which sees the labelled images alone, for thirteen minutes. Distances are those of
the judge of ``benchmarks/growth.py``: to all reals, and the mean within classes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from growth import judge, load

import growgan as gg
from growgan.training.runtime import machine

RESULTS = Path(__file__).parent / "results" / "labels.json"
RUNS = Path("runs/labels")
DATA = "fashion-mnist"
SHARES = (0.01, 0.1, 1.0)
WAYS = ("reprogram", "fine-tune", "scratch")
BEFORE, AFTER = 600, 180  # seconds


def base(seed: int, threads: int) -> gg.Run:
    """Return the run without labels, made once."""
    out = RUNS / f"base-{seed}"
    settings = {"policy": "fixed", "seed": seed, "threads": threads}
    data, budget = load(DATA), f"{BEFORE}s"
    return gg.grow(data, out=out, budget=budget, settings=settings, resume=out.exists())


def run(way: str, share: float, seed: int, threads: int) -> dict[str, Any]:
    """Teach one pair and measure it."""
    torch.set_num_threads(threads)
    data, out = load(DATA), RUNS / f"{way}-{share:g}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    known = {"seed": seed, "threads": threads, "labels": {"share": share}}
    if way == "scratch":
        settings = {**known, "policy": "fixed", "conditioning": "projection"}
        made = gg.grow(data, out=out, budget=f"{BEFORE + AFTER}s", settings=settings)
    else:
        start = base(seed, threads)
        made = gg.condition(start, data, way=way, out=out, budget=f"{AFTER}s", settings=known)
    return {"way": way, "share": share, "seed": seed, **judge(made.best, data)}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown: distance within classes / to all reals, over seeds."""
    lines = ["| labels | " + " | ".join(WAYS) + " |", "|---" * (len(WAYS) + 1) + "|"]
    for share in SHARES:
        cells = []
        for way in WAYS:
            own = [r for r in rows if (r["way"], r["share"]) == (way, share)]
            pairs = (
                f"{statistics.mean(r[key] for r in own):.2f}"
                + (f" ± {statistics.stdev(r[key] for r in own):.2f}" if len(own) > 1 else "")
                for key in ("intra", "fd")
                if own
            )
            cells.append(" / ".join(pairs))
        lines.append(f"| {share:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    given = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // given.jobs)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, spawn, max_tasks_per_child=1) as pool:
        started = [pool.submit(base, seed, threads) for seed in range(given.seeds)]
        for each in started:
            each.result()
        runs = [
            pool.submit(run, way, share, seed, threads)
            for seed in range(given.seeds)
            for way in given.only
            for share in SHARES
        ]
        rows = [each.result() for each in runs]
    kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows += [row for row in kept if row["way"] not in given.only]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(f"{machine()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
