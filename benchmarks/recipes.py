"""Which loss and rate should be the default? Fixed stacks at equal wall clock.

    python benchmarks/recipes.py run --seconds 60 --seeds 2
    python benchmarks/recipes.py table

Figures are the judge's, as in ``growth.py``; each run is a cell that is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from growth import SAMPLES, judge

import growgan as gg
from growgan.config import make_settings
from growgan.training.runtime import machine

RESULTS = Path(__file__).parent / "results" / "recipes.jsonl"
PENALTY = ("regularisers=gp,drift", "loss=wasserstein")
RECIPES: dict[str, tuple[str, ...]] = {
    "default: relativistic, lazy R1 and R2": (),
    "the same, rate 2e-2": ("optimiser.lr=2e-2",),
    "the same, rate 4e-3": ("optimiser.lr=4e-3",),
    "non-saturating, lazy R1": ("loss=non-saturating", "regularisers=r1"),
    "WGAN-GP and drift": PENALTY,
    "WGAN-GP and drift, rate 1e-3": (*PENALTY, "optimiser.lr=1e-3"),
    "R3GAN's: relativistic, R1 and R2 each step": (
        "regularisers.r1.every=1",
        "regularisers.r2.every=1",
    ),
    "default with nearest upsampling (conv)": ("stack.kind=conv",),
    "default, residual layers": ("stack.kind=residual",),
    "default in float32": ("precision=float32",),
}


def run_missing(seconds: float, seeds: int) -> None:
    """Run the cells that have no figures yet."""
    data = gg.load_images("fashion-mnist", resolution=32)
    for seed in range(seeds):
        for name, overrides in RECIPES.items():
            if any(r["name"] == name and r["seed"] == seed for r in finished()):
                continue
            settings = make_settings({"seed": seed, "policy": "fixed"}, overrides=overrides)
            out = Path("runs/recipes")
            shutil.rmtree(out, ignore_errors=True)
            run = gg.grow(data, out=out, budget=f"{seconds:g}s", settings=settings)
            drawn = run.best.sample(SAMPLES, seed=99).transpose(0, 3, 1, 2).copy()
            tried = [e for e in run.events if e["event"] == "candidate"]
            row = {"name": name, "seed": seed, "seconds": seconds, "machine": machine()}
            row |= {"images": tried[-1]["images"], **judge(torch.from_numpy(drawn), data)}
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row)
            sys.stdout.flush()


def finished() -> list[dict[str, Any]]:
    """Return the rows that are done."""
    return [json.loads(line) for line in RESULTS.open()] if RESULTS.exists() else []


def table() -> str:
    """Return the table as Markdown."""
    lines = ["| recipe | seeds | FD | SWD | images |", "|---|---|---|---|---|"]
    for name in RECIPES:
        own = [r for r in finished() if r["name"] == name]
        if not own:
            continue
        cells = []
        for key in ("fd", "swd"):
            values = [r[key] for r in own]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        images = statistics.mean(r["images"] for r in own) / 1000
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} | {images:.0f}k |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    if given.action == "run":
        run_missing(given.seconds, given.seeds)
    else:
        print(table())


if __name__ == "__main__":
    main()
