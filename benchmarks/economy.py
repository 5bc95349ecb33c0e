"""What a search spends beside training, and whether a dry run tells the memory of a run.

    python benchmarks/economy.py                       # all, some five minutes
    python benchmarks/economy.py --only memory --presets pggan dcgan
    python benchmarks/economy.py --run runs/fashion    # of a run that is there: shares of its time

Each figure stands beside its aim. Every part that asks for memory, or for the time from the command
to the first step, runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from training import noise, timed

import growgan as gg
from growgan.cli.dry_run import stage_cost
from growgan.config import Settings, make_settings
from growgan.data import ImageSet, load_images
from growgan.data.batches import Batches
from growgan.growth.history import Space
from growgan.nets.presets import PRESETS
from growgan.objectives import make_objective
from growgan.training.gan import Gan
from growgan.training.runtime import machine, make_runtime
from growgan.training.stage import step

RUNS = Path("runs/economy")
NAMES = [entry.name for entry in PRESETS]
CPU = torch.device("cpu")
GROWGAN = [sys.executable, "-m", "growgan"]
Line = tuple[str, float, str]  # what, how much, the aim


def shares(run: Path) -> Iterator[Line]:
    """Shares of a run's time that went into something else than training."""
    events = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    end = next(e for e in reversed(events) if e["event"] == "end")
    for kind, seconds in end["cost"].items():
        yield f"{kind}, % of the time", 100 * seconds / end["elapsed"], ""
    beside = sum(seconds for kind, seconds in end["cost"].items() if kind != "train")
    yield "all but training, % of the time", 100 * beside / end["elapsed"], "at most 5"


def branching() -> Iterator[Line]:
    """Seconds in which a pair of ten million parameters gets a child that has grown."""
    settings = make_settings({"stack": {"width": 400}})
    space = Space(settings.preset, settings.stack, 3, (64, 64))
    small, large = (space.stacks(level) for level in (space.levels - 1, space.levels))
    gan = Gan.create(*small, settings.optimiser, seed=0)
    count = gan.generator.parameter_count() + gan.discriminator.parameter_count()
    family, shape = PRESETS[settings.preset].family, settings.stack
    grown = [family.doubling(shape.of(spec.role), spec) for spec in small]
    assert large[0].resolution == grown[0].spec(small[0]).resolution
    runtime, objective = make_runtime("cpu"), make_objective(settings)
    step(gan, Batches(noise(64, 3, 64, 64), 8, 0), objective, settings, runtime)  # it has moments
    ways = {
        f"a grown child of {count / 1e6:.1f} M parameters, ms": ([grown[0]], [grown[1]]),
        "a child that trains on, ms": (),
    }
    for name, edits in ways.items():
        times = [timed(partial(gan.branch, *edits), CPU) for _ in range(9)]
        yield name, 1e3 * statistics.median(times[1:]), "at most 100"


def data() -> Iterator[Line]:
    """Images a second out of the store, in the batches of a run."""
    images = load_images("fashion-mnist", resolution=32)
    for batch in (32, 256):
        batches, steps = Batches(images, batch, 0), 20_000 // batch

        def read(batches: Batches = batches, batch: int = batch, steps: int = steps) -> None:
            for k in range(steps):
                batches.batch_at(k * batch)

        read()
        rate = steps * batch / statistics.median(timed(read, CPU) for _ in range(5))
        yield f"images/s in batches of {batch}", rate, "at least 20,000"


def start() -> Iterator[Line]:
    """Seconds that a command takes to answer, and to begin."""
    times = [
        timed(lambda: subprocess.run([*GROWGAN, "--help"], capture_output=True, check=True), CPU)
        for _ in range(5)
    ]
    yield "growgan --help, s", statistics.median(times), "at most 0.5"
    command = [*GROWGAN, "grow", "fashion-mnist", "--resolution", "32", "--budget", "20s"]
    out, cache = RUNS / "start", RUNS / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    where = {**os.environ, "GROWGAN_CACHE": str(cache)}
    for name in ("the first time", "prepared"):
        shutil.rmtree(out, ignore_errors=True)
        begun = time.perf_counter()
        with subprocess.Popen(
            [*command, "--out", str(out)], env=where, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:  # the first pair is named once it has trained a step
                if re.match(r"\[ *[\d:]+\] 0000 ", line):
                    yield f"to the first step, {name}, s", time.perf_counter() - begun, "at most 5"
                    break
            process.communicate()


def memory(presets: list[str]) -> Iterator[Line]:
    """What a dry run foretells of each stage, beside the most that a run then took."""
    spawn = multiprocessing.get_context("spawn")
    for preset in presets:
        with ProcessPoolExecutor(1, spawn) as pool:
            told = pool.submit(foretold, preset).result()
        with ProcessPoolExecutor(1, spawn) as pool:
            taken = pool.submit(used, preset).result()
        for size in told.keys() & taken.keys():
            name = f"{preset} at {size}: foretold over used"
            yield f"{name} ({taken[size]:,.0f} MiB)", told[size] / taken[size], "0.8 to 1.2"


def _case(preset: str) -> tuple[ImageSet, Settings]:
    images = noise(4096, 3, 32, 32)
    values = {"preset": preset, "policy": "progressive", "threads": 1, "score": {"samples": 1000}}
    return images, make_settings(PRESETS[preset].small, values)


def foretold(preset: str) -> dict[int, float]:
    """Return the MiB that ``--dry-run`` shows, by the larger side of the images."""
    images, settings = _case(preset)
    space = Space(settings.preset, settings.stack, 3, images.resolution)
    measured = {
        max(space.resolution(level)): stage_cost(images, settings, space, level)[2]
        for level in range(space.levels + 1)
    }
    return {side: mib for side, mib in measured.items() if mib is not None}


def used(preset: str) -> dict[int, float]:
    """Return the most MiB that a run takes at each size."""
    images, settings = _case(preset)
    out = RUNS / f"memory-{preset}"
    shutil.rmtree(out, ignore_errors=True)
    made = gg.grow(images, out=out, images=4096, settings=settings)
    found: dict[int, float] = {}
    for event in made.events:
        if event["event"] == "candidate" and event["memory"] is not None:
            side = max(int(n) for n in re.findall(r"\d+", str(event["resolution"])))
            found[side] = max(found.get(side, 0.0), event["memory"])
    return found


PARTS: dict[str, Callable[[], Iterator[Line]]] = {
    "branching": branching,
    "data": data,
    "start": start,
}


def main() -> None:
    """Read the command line and print a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=[*PARTS, "memory"], default=[])
    parser.add_argument("--presets", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--run", type=Path, help="a run directory: what its time went into")
    given = parser.parse_args()
    parts: dict[str, Callable[[], Iterator[Line]]] = {
        **PARTS,
        "memory": lambda: memory(given.presets),
    }
    if given.run:
        parts = {"shares": lambda: shares(given.run)}
    print(f"{machine()}\n\n| what | | aim |\n|---|---|---|")
    for name, part in parts.items():
        if given.run or not given.only or name in given.only:
            for what, value, aim in part():
                print(f"| {what} | {value:,.3g} | {aim} |", flush=True)


if __name__ == "__main__":
    main()
