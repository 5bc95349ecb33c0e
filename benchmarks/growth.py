"""Does searching for the growth pay, and with which recipe? All at equal wall clock.

    python benchmarks/growth.py run --minutes 5 --jobs 2    # the cells that are still missing
    python benchmarks/growth.py table                       # the tables, as in docs/RESULTS.md

A cell is one run: a method, a dataset, a budget, a seed. Its figures go into
``benchmarks/results/growth.jsonl`` as soon as it is done; a cell that is there is not run again.
``--group`` picks the policies, shapes known before, the random stacks, the search's single
ideas, the recipes (loss, penalties, rate and layers of a fixed stack), the presets, each grown from
its small form, the conditionings, for which the mean distance within classes is taken, too, or the
gammas of BEGAN, which ask whether more of it gives more diverse images. With
``--jobs`` several cells run side by side, each on its share of the cores: every method alike.

Distances are taken by a judge that the search never sees: a classifier of its own seed, trained
on the labels. Both networks are trained before the clock starts (some 20 s a dataset, once) and
then read from the cache.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import kept_rows, new_rows
from torch import Tensor

import growgan as gg
from growgan.config import Settings, make_settings
from growgan.data import ImageSet, default_cache
from growgan.growth.budget import Budget
from growgan.growth.model import Model
from growgan.growth.scoring import make_scorer
from growgan.metrics.classes import frechet_by_class
from growgan.metrics.distances import Moments, frechet
from growgan.metrics.features import domain_extractor
from growgan.metrics.side import Stored
from growgan.metrics.sliced import sliced_wasserstein
from growgan.nets.presets import PRESETS
from growgan.objectives.conditioning import CONDITIONINGS
from growgan.training.runtime import machine

RESULTS = Path(__file__).parent / "results" / "growth.jsonl"
RUNS = Path("runs/growth")
# Kept with the rows: trained anew, on another machine or by other threads, a judge of the same seed
# gives distances 5 % apart, and one of another seed 30 %.
JUDGES = Path(__file__).parent / "judges"
SAMPLES = 10_000
DRAWS = 5  # of so many samples: the distance of one varies by a seventh
JUDGE_SEED = 7_777
DATA = {
    "fashion-mnist": ("fashion-mnist", 32),
    "glyphs-rgb": ("glyphs:rgb", 64),
}
POLICIES = ("dynamic", "progressive", "fixed", "random")
IDEAS: dict[str, dict[str, Any]] = {
    "dynamic, always the size in the settings": {"anew": False},
    "dynamic, three images a parameter": {"shown": 3.0},
    "dynamic, start at the target": {"start": 1024},
    "dynamic, slow climb from 4x4": {"start": 4, "reach": 0.15, "steep": 0.1},
    "dynamic, no trials": {"search": 0.0},
    "dynamic, trials whatever the budget": {"shown": 0.01, "images": 100},
    "dynamic, three growths a round": {"tries": 3, "shown": 0.01, "images": 100},
}
# The shapes that dynamic picks at five and at twenty minutes, from the start: what its first slice
# and its planning cost, and how far the settings' own shape is from them.
SHAPES = {
    "fixed, G and D twice as wide": {"width": 64, "discriminator_width": 64},
    "fixed, G four times and D twice": {"width": 128, "discriminator_width": 64},
}
STACKS = tuple(f"stack{i}" for i in range(8))
PENALTY = ("regularisers=gp,drift", "loss=wasserstein")
RECIPES: dict[str, tuple[str, ...]] = {
    "default: relativistic, lazy R1 and R2": (),
    "R3GAN's way: R1 and R2 at each step": ("regularisers.r1.every=1", "regularisers.r2.every=1"),
    "R1 and R2 a tenth as strong": (
        "regularisers.r1.weight=0.2",
        "regularisers.r2.weight=0.2",
    ),
    "non-saturating, lazy R1": ("loss=non-saturating", "regularisers=r1"),
    "WGAN-GP and drift": PENALTY,
    "WGAN-GP and drift, rate 1e-3 (PGGAN's)": (*PENALTY, "optimiser.lr=1e-3"),
    "rate that does not fall": ("optimiser.decay=null",),
    "half of the rate": ("optimiser.lr=1e-2",),
    "rates not transferred across widths": ("stack.rate=equalised",),
    "momentum 0.5": ("optimiser.beta1=0.5",),
    "nearest upsampling (conv)": ("stack.kind=conv",),
    "residual layers": ("stack.kind=residual",),
    "twice the width": ("stack.width=64",),
    "float32": ("precision=float32",),
    "batches of 64": ("batch=64",),
    "batches of 128": ("batch=128",),
}
CONDITIONED = {
    entry.name: (f"conditioning={entry.name}",)
    for entry in CONDITIONINGS
    if entry.value.labelled and not entry.value.given
} | {
    "p2gan, adaptive": ("conditioning=p2gan", "conditioning_options.adaptive=1"),
    "projection, a contrario": ("conditioning=projection", "conditioning_options.contrary=1"),
}
# D is an autoencoder, which dense layers learn fastest; narrow ones leave G with a few blurs.
AUTOENCODER = (
    "preset=gan",
    "loss=began",
    "regularisers=none",
    "loss_options.step=0.1",  # k has thousands of steps, not hundreds of thousands
    "optimiser.lr=5e-4",
    "doctor=false",  # low gammas collapse, which is to be seen
    *(
        f"stack.{each}"
        for each in (
            "kind=dense",
            "width=512",
            "discriminator_width=512",
            "convolutions=1",
            "latent=100",
            "norm=none",
            "rate=plain",
            "deviation_group=0",
        )
    ),
)
GAMMAS = {
    f"began, gamma {gamma}": (*AUTOENCODER, f"loss_options.gamma={gamma}")
    for gamma in (0.5, 0.7, 0.9, 1.0)
}
NAMES = tuple(entry.name for entry in PRESETS)
OVERRIDES = RECIPES | CONDITIONED | GAMMAS
GROUPS: dict[str, tuple[str, ...]] = {
    "policies": POLICIES,
    "shapes": tuple(SHAPES),
    "stacks": STACKS,
    "ideas": tuple(IDEAS),
    "recipes": tuple(RECIPES),
    "conditionings": tuple(CONDITIONED),
    "gammas": tuple(GAMMAS),
    "presets": NAMES,
}


@dataclass(frozen=True)
class Cell:
    """One run of the table."""

    method: str
    data: str
    minutes: float
    seed: int


def random_shape(number: int) -> dict[str, Any]:
    """Return the shape of a random complete stack: what somebody might have written down."""
    rng = random.Random(number)
    return {
        "width": rng.choice([16, 32, 64, 128]),
        "discriminator_width": rng.choice([16, 32, 64, 128]),
        "taper": rng.choice([2, 4, 8]),
        "convolutions": rng.choice([1, 2]),
        "kernel": rng.choice([3, 5]),
        "kind": rng.choice(["strided", "conv", "residual"]),
    }


def cells(methods: Iterable[str], minutes: float, data: str, seeds: int) -> Iterator[Cell]:
    """Yield the cells of one budget, seed by seed, so that a table fills evenly."""
    for seed in range(seeds):
        for method in methods:
            yield Cell(method, data, minutes, seed)


def settings_of(cell: Cell, threads: int) -> Settings:
    """Return the settings of a cell: the defaults, but for what its method names."""
    values: dict[str, Any] = {"seed": cell.seed, "threads": threads, "policy": "fixed"}
    if cell.method in STACKS:
        values["stack"] = random_shape(STACKS.index(cell.method))
    elif cell.method in SHAPES:
        values["stack"] = SHAPES[cell.method]
    elif cell.method in IDEAS:
        values |= {"policy": "dynamic", "growth": IDEAS[cell.method]}
    elif cell.method in POLICIES:
        values["policy"] = cell.method
    small: Mapping[str, Any] = {}
    if cell.method in NAMES:
        small, values["preset"], values["policy"] = (
            PRESETS[cell.method].small,
            cell.method,
            "dynamic",
        )
    return make_settings(small, values, overrides=OVERRIDES.get(cell.method, ()))


def run_cell(cell: Cell, threads: int) -> dict[str, Any]:
    """Run a cell from scratch on so many cores and return its figures."""
    torch.set_num_threads(threads)  # of the judge, too: another cell may be running
    data = load(cell.data)
    name = re.sub("[^a-z0-9]+", "-", cell.method.lower())
    out = RUNS / f"{cell.data}-{cell.minutes:g}m-{name}-{cell.seed}"
    shutil.rmtree(out, ignore_errors=True)
    run = gg.grow(
        data, out=out, budget=f"{cell.minutes * 60:g}s", settings=settings_of(cell, threads)
    )
    events = run.events
    tried = [e for e in events if e["event"] == "candidate"]
    best = next(e for e in tried if e["id"] == run.best_id)
    return {
        **asdict(cell),
        **judge(run.best, data),
        "images": best["images"],
        "candidates": len(tried),
        "elapsed": events[-1]["elapsed"],
        "cost": events[-1]["cost"],
        "generator_parameters": best["generator_parameters"],
        "discriminator_parameters": best["discriminator_parameters"],
        "growths": _growths(tried, run.best_id),
        "machine": machine(),
        "threads": threads,
        "judge": _judge(data).fingerprint,
        "commit": _commit(),
    }


def _commit() -> str:
    """Return the commit that the figures belong to, marked where the code has changed since."""

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("diff", "--name-only", "HEAD", "--", "src", "benchmarks/growth.py")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def _growths(tried: list[dict[str, Any]], best: str) -> list[str]:
    """Return what the winning lineage grew, from the root on."""
    by_id = {e["id"]: e for e in tried}
    line: list[str] = []
    current: str | None = best
    while current:
        if by_id[current]["growth"] != "train on":
            line.insert(0, by_id[current]["growth"])
        current = by_id[current]["parent"]
    return line


def judge(
    model: Model, data: ImageSet, draws: int = DRAWS, samples: int = SAMPLES
) -> dict[str, float]:
    """Return a judge's figures of samples beside the reals, means over draws.

    The Fréchet distance, that within classes where a model knows any, and the variance, a share of
    the reals' ("diversity"), of the judge's features; and SWD.
    """
    extractor = _judge(data)
    kept = {"identity": data.fingerprint, "cache": default_cache()}
    real = Stored(data.images, name="reals", extractor=lambda: extractor, **kept).moments
    some = torch.from_numpy(np.array(data.images[:samples]))
    distances, within, sliced, spreads = [], [], [], []
    for seed in range(99, 99 + draws):
        drawn = model.sample(samples, seed=seed).transpose(0, 3, 1, 2)
        images = torch.from_numpy(drawn.copy())
        features = extractor(images)
        found = Moments.of(features)
        distances.append(frechet(found, real))
        spreads.append(float(found.covariance.trace() / real.covariance.trace()))
        if model.classes:
            within.append(_within(features, model.labels(samples), data, extractor))
        sliced.append(sliced_wasserstein(images[: len(some)], some, repeats=1, seed=seed).average)
    figures = {"fd": distances, "swd": sliced, "diversity": spreads, "intra": within}
    return {name: statistics.mean(each) for name, each in figures.items() if each}


def _within(features: Tensor, labels: Any, data: ImageSet, extractor: Any) -> float:
    """Return the mean Fréchet distance within classes, of so many reals as there are samples."""
    assert data.labels is not None
    count = len(labels)
    real = extractor(torch.from_numpy(np.array(data.images[:count])))
    known = torch.from_numpy(np.array(data.labels[:count]))
    return frechet_by_class(features, torch.from_numpy(labels), real, known).value


def _judge(data: ImageSet) -> Any:
    return domain_extractor(
        data.images,
        data.labels,
        fingerprint=data.fingerprint,
        cache=JUDGES,
        seed=JUDGE_SEED,
    )


def finished() -> dict[Cell, dict[str, Any]]:
    """Return the figures of the cells that are done."""
    return {Cell(r["method"], r["data"], r["minutes"], r["seed"]): r for r in kept_rows(RESULTS)}


def load(name: str) -> ImageSet:
    """Return the images of a dataset of the table."""
    source, resolution = DATA[name]
    return gg.load_images(source, resolution=resolution)


def run_missing(wanted: list[Cell], jobs: int) -> None:
    """Run the cells that have no figures yet, ``jobs`` at a time."""
    data = load(wanted[0].data)
    limit = Budget(seconds=60 * wanted[0].minutes)
    # Train or read the search's network and the judge before any clock starts.
    make_scorer(data, Settings(), limit, torch.device("cpu"))
    _judge(data)
    known, threads = finished(), max(1, (os.cpu_count() or 1) // jobs)
    calls = [(cell, threads) for cell in wanted if cell not in known]
    for row in new_rows(run_cell, calls, jobs, RESULTS):
        cell = f"{row['method']}, {row['data']}, {row['minutes']:g} minutes, seed {row['seed']}"
        found = f"fd {row['fd']:.3f}, swd {row['swd']:.2f}, {row['images']:,} images"
        print(f"{cell}: {found}", flush=True)


def table() -> str:
    """Return the tables as Markdown: mean ± deviation over seeds."""
    rows = list(finished().values())
    parts = []
    for data, minutes in sorted({(r["data"], r["minutes"]) for r in rows}):
        part = [r for r in rows if (r["data"], r["minutes"]) == (data, minutes)]
        lines = [
            f"\n**{data}, {minutes:g} minutes**\n",
            "| method | seeds | FD | SWD | images | candidates |",
            "|---|---|---|---|---|---|",
        ]
        for method in (*POLICIES, *SHAPES, *IDEAS, *OVERRIDES, *NAMES):
            own = [r for r in part if r["method"] == method]
            if own:
                lines.append(_line(method, own))
        for name, rows_of in _of_stacks(part).items():
            lines.append(_line(name, rows_of))
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _of_stacks(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the best and the median random stack of each seed."""
    best, median = [], []
    count = 0
    for seed in sorted({r["seed"] for r in rows}):
        mine = [r for r in rows if r["method"] in STACKS and r["seed"] == seed]
        ranked = sorted(mine, key=lambda r: r["fd"])
        best += ranked[:1]
        middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
        if middle:
            keys = ("fd", "swd", "images", "candidates")
            median.append({key: statistics.mean(r[key] for r in middle) for key in keys})
        count = max(count, len(ranked))
    if not count:
        return {}
    return {f"best of {count} random stacks": best, "median random stack": median}


def _line(name: str, rows: list[dict[str, Any]]) -> str:
    def figure(key: str, digits: int) -> str:
        values = [r[key] for r in rows]
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{spread}"

    images = statistics.mean(r["images"] for r in rows)
    tried = statistics.mean(r["candidates"] for r in rows)
    more = {"intra": ", within classes", "diversity": ", diversity"}
    shown = [key for key in more if all(key in r for r in rows)]
    beside = "".join(f"{more[key]} {figure(key, 2)}" for key in shown)
    return (
        f"| {name} | {len(rows)} | {figure('fd', 2)}{beside} | {figure('swd', 1)} "
        f"| {images / 1000:.0f}k | {tried:.0f} |"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--data", choices=sorted(DATA), default="fashion-mnist")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--group", choices=GROUPS, default="policies")
    parser.add_argument("--only", nargs="*", default=[], help="methods, all by default")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    given = parser.parse_args()
    if given.action == "run":
        methods = [m for m in GROUPS[given.group] if not given.only or m in given.only]
        if not methods:
            parser.error(f"--only must name some of: {', '.join(GROUPS[given.group])}")
        run_missing([*cells(methods, given.minutes, given.data, given.seeds)], given.jobs)
    else:
        print(table())


if __name__ == "__main__":
    main()
