"""Is bfloat16 safe? Every preset trained twice for as many images, in float32 and in bfloat16.

    python benchmarks/precision.py run --jobs 2      # some half an hour on two cores
    python benchmarks/precision.py table
    python benchmarks/precision.py penalties         # their gradients, after a short training

Each preset's small form, complete and without search, on Fashion-MNIST at 32×32, three seeds, as it
is at the end. The distance is that of the judge of ``benchmarks/growth.py``, of 5,000 samples. Two
precisions are the same where their means lie within what the seeds differ: the last column is their
difference over its standard error, and beyond 2 it would be noticed. Rows are kept as they come,
and a row that is there is not run again.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Iterator
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from growth import judge, load
from rows import kept_rows, new_rows
from torch import Tensor

import growgan as gg
from growgan.config import make_settings
from growgan.data.batches import Batches
from growgan.growth.history import Space
from growgan.nets.presets import PRESETS
from growgan.objectives import make_objective
from growgan.objectives.regulariser import gradient_square
from growgan.objectives.step import Step
from growgan.objectives.tricks import PathLength
from growgan.training.gan import Gan, latents
from growgan.training.runtime import machine, make_runtime
from growgan.training.stage import step

RESULTS = Path(__file__).parent / "results" / "precision.jsonl"
RUNS = Path("runs/precision")
NAMES = [entry.name for entry in PRESETS]
DATA = "fashion-mnist"
PRECISIONS = ("float32", "bfloat16")
IMAGES, SEEDS, SAMPLES = 12_000, 3, 5_000
Key = tuple[str, str, int]


def finished() -> dict[Key, dict[str, Any]]:
    """Return the rows that are there, by preset, precision and seed."""
    return {(row["preset"], row["precision"], row["seed"]): row for row in kept_rows(RESULTS)}


def run(key: Key, images: int) -> dict[str, Any]:
    """Train one pair and measure it."""
    preset, precision, seed = key
    torch.set_num_threads(1)
    data, out = load(DATA), RUNS / f"{preset}-{precision}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    how = {"preset": preset, "precision": precision, "seed": seed, "threads": 1, "policy": "fixed"}
    # What the run itself makes of it on the way decides nothing, and should cost little.
    how["score"] = {"kind": "swd", "samples": 64}
    made = gg.grow(data, out=out, images=images, settings=how)
    trained = [e for e in made.events if e["event"] == "candidate"]
    last = next(e["alive"][0] for e in reversed(made.events) if e["event"] == "select")
    row = {"preset": preset, "precision": precision, "seed": seed, "images": images}
    row["seconds"] = sum(each["trained"] for each in trained)
    row |= judge(made.candidate(last), data, draws=1, samples=SAMPLES)
    return row | {"machine": machine(), "threads": 1}


def table() -> str:
    """Return the table as Markdown: mean ± deviation over seeds."""
    rows = list(finished().values())
    lines = [
        "| preset | images | seeds | FD, float32 | FD, bfloat16 | seconds | difference by error |",
        "|---|---|---|---|---|---|---|",
    ]
    for preset in dict.fromkeys(row["preset"] for row in rows):
        by = [[r for r in rows if (r["preset"], r["precision"]) == (preset, p)] for p in PRECISIONS]
        if min(map(len, by)) < 2:
            continue
        distances = [[row["fd"] for row in part] for part in by]
        means, deviations = map(statistics.mean, distances), map(statistics.stdev, distances)
        (a, b), (sa, sb) = means, deviations
        error = sqrt(sa**2 / len(by[0]) + sb**2 / len(by[1]))
        seconds = " and ".join(f"{statistics.mean(r['seconds'] for r in part):.0f}" for part in by)
        lines.append(
            f"| {preset} | {by[0][0]['images']:,} | {len(by[0])} | {a:.2f} ± {sa:.2f} "
            f"| {b:.2f} ± {sb:.2f} | {seconds} | {(b - a) / error:+.1f} |"
        )
    return "\n".join(lines)


def penalties(presets: list[str]) -> None:
    """Print how far what is learnt from a penalty is turned and stretched by bfloat16.

    After 200 steps, on one batch: by D from R1 and from the penalty of WGAN-GP, taken at reals; by
    G from its path lengths.
    """
    runtime, data = make_runtime("cpu", "bfloat16"), load(DATA)
    print("| preset | R1: cosine | norm | WGAN-GP: cosine | norm | path length: cosine | norm |")
    print("|---|" + "---|" * 6)
    for preset in presets:
        settings = make_settings(PRESETS[preset].small, {"preset": preset, "batch": 32})
        space = Space(settings.preset, settings.stack, data.channels, data.resolution)
        gan = Gan.create(*space.stacks(space.levels), settings.optimiser, seed=0)
        objective, batches = make_objective(settings), Batches(data, settings.batch, 0)
        for _ in range(200):
            step(gan, batches, objective, settings, runtime)
        if gan.discriminator.spec.energy:
            continue
        reals = gan.shown(runtime.images(batches.batch_at(gan.images)[0]))
        print(f"| {preset} | " + " | ".join(turned(gan, reals)) + " |", flush=True)


def turned(gan: Gan, reals: Tensor) -> Iterator[str]:
    """Yield the cosine and the ratio of lengths of what both precisions teach, for each penalty."""
    d, z = gan.discriminator, latents(len(reals), gan.generator.spec.latent, seed=1)

    def lengths() -> Tensor:
        rng, nothing = torch.Generator().manual_seed(2), z.new_empty(0)
        torch.manual_seed(3)  # of the noise of some stacks
        memory = {"path.mean": torch.ones(())}
        view = Step(gan.generator, d, reals, reals, z, rng, nothing, nothing, memory=memory)
        return PathLength().generator(view)

    for player, penalty in (
        (d, lambda: gradient_square(d, reals).mean() / 2),
        (d, lambda: (gradient_square(d, reals).sqrt() - 1).square().mean()),
        (gan.generator, lengths),
    ):
        learnt = []
        for low in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                value = penalty()
            parts = torch.autograd.grad(value, list(player.parameters()), allow_unused=True)
            learnt.append(torch.cat([part.flatten() for part in parts if part is not None]))
        exact, rough = learnt
        yield f"{float(torch.cosine_similarity(exact, rough, 0)):.5f}"
        yield f"{float(rough.norm() / exact.norm()):.3f}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("run", "table", "penalties"))
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each")
    given = parser.parse_args()
    if given.command == "penalties":
        penalties(given.only)
        return
    if given.command == "run":
        wanted = product(given.only, PRECISIONS, range(given.seeds))
        known = finished()
        calls = [(key, given.images) for key in wanted if key not in known]
        for row in new_rows(run, calls, given.jobs, RESULTS):
            print(row, flush=True)
    print(f"{machine()}\n\n{table()}")


if __name__ == "__main__":
    main()
