"""Measure what a search spends besides training, and how well ``--dry-run`` predicts memory.

    python benchmarks/overhead.py                       # all parts, about five minutes
    python benchmarks/overhead.py --only memory --presets pggan dcgan
    python benchmarks/overhead.py --run runs/fashion    # time of an existing run, by phase

Each measurement is printed with its target. Memory and startup time are measured in processes of
their own.
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
from typing import NamedTuple

import torch
from common import median_seconds
from training_speed import elapsed_seconds, noise_images

import growgan as gg
from growgan.config import Settings, make_settings
from growgan.data import ImageSet, load_images
from growgan.data.batches import Batches
from growgan.execution.cost_estimate import measure_training_cost
from growgan.nets.presets import PRESETS
from growgan.objectives import make_objective
from growgan.search.history import SearchSpace
from growgan.training.gan import Gan
from growgan.training.runtime import describe_machine, make_runtime
from growgan.training.step import training_step

RUN_DIR = Path("runs/overhead")
PRESET_NAMES = [entry.name for entry in PRESETS]
CPU = torch.device("cpu")
GROWGAN = [sys.executable, "-m", "growgan"]


class Measurement(NamedTuple):
    """A measured value with its unit in the name, and its target."""

    name: str
    value: float
    target: str = ""


def time_fractions(run: Path) -> Iterator[Measurement]:
    """Yield the fractions of a run's time by phase."""
    events = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    end = next(event for event in reversed(events) if event["event"] == "end")
    for phase, seconds in end["cost"].items():
        yield Measurement(f"{phase}, % of the time", 100 * seconds / end["elapsed"])
    other = sum(seconds for phase, seconds in end["cost"].items() if phase != "train")
    yield Measurement(
        "everything but training, % of the time", 100 * other / end["elapsed"], "at most 5"
    )


def child_creation_time() -> Iterator[Measurement]:
    """Yield the time to create a child of a GAN with ten million parameters."""
    settings = make_settings({"network": {"width": 400}})
    space = SearchSpace(settings.preset, settings.network, 3, (64, 64))
    parent_specs = space.specs_at(space.max_level - 1)
    gan = Gan.create(*parent_specs, settings.optimizer, seed=0)
    num_parameters = gan.generator.num_parameters() + gan.discriminator.num_parameters()
    family = PRESETS[settings.preset].family
    edits = [
        family.doubling_edit(settings.network.for_role(spec.role), spec) for spec in parent_specs
    ]
    child_spec = edits[0].child_spec(parent_specs[0])
    assert child_spec.resolution == space.specs_at(space.max_level)[0].resolution
    # After one step, the optimizers have moments.
    batches = Batches(noise_images(64, 3, 64, 64), 8, 0)
    training_step(
        gan,
        batches,
        objective=make_objective(settings),
        settings=settings,
        runtime=make_runtime("cpu"),
    )
    size = f"{num_parameters / 1e6:.1f} M parameters"
    for name, arguments in (
        (f"child with a growth, {size}, ms", ([edits[0]], [edits[1]])),
        ("child without growth, ms", ()),
    ):
        times = [elapsed_seconds(partial(gan.grown_copy, *arguments), CPU) for _ in range(9)]
        yield Measurement(name, 1e3 * statistics.median(times[1:]), "at most 100")


def data_throughput() -> Iterator[Measurement]:
    """Yield the speed of reading training batches."""
    images = load_images("fashion-mnist", resolution=32)
    for batch_size in (32, 256):
        batches, steps = Batches(images, batch_size, 0), 20_000 // batch_size

        def read(batches: Batches = batches, step: int = batch_size, steps: int = steps) -> None:
            for k in range(steps):
                batches.batch_at(k * step)

        read()
        images_per_second = steps * batch_size / median_seconds(read, 5)
        yield Measurement(
            f"images/s with batch size {batch_size}", images_per_second, "at least 20,000"
        )


def startup_time() -> Iterator[Measurement]:
    """Yield the time of ``growgan --help``, and the time until a run's first training step."""
    help_command = partial(subprocess.run, [*GROWGAN, "--help"], capture_output=True, check=True)
    yield Measurement("growgan --help, s", median_seconds(help_command, 5), "at most 0.5")
    out, cache = RUN_DIR / "startup", RUN_DIR / "cache"
    command = [*GROWGAN, "grow", "fashion-mnist", "--resolution", "32", "--budget", "20s"]
    command += ["--out", str(out)]
    shutil.rmtree(cache, ignore_errors=True)
    environment = {**os.environ, "GROWGAN_CACHE": str(cache)}
    for name in ("empty cache", "filled cache"):
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            # The display first names a candidate after its first training step.
            for line in process.stdout:
                if re.match(r"\[ *[\d:]+\] 0000 ", line):
                    seconds = time.perf_counter() - start
                    yield Measurement(f"time to the first step, {name}, s", seconds, "at most 5")
                    break
            process.communicate()


def memory_prediction(presets: list[str]) -> Iterator[Measurement]:
    """Yield the ratio of predicted to used memory, by preset and resolution."""
    spawn = multiprocessing.get_context("spawn")
    for preset in presets:
        with ProcessPoolExecutor(1, spawn) as pool:
            predicted = pool.submit(predicted_memory, preset).result()
        with ProcessPoolExecutor(1, spawn) as pool:
            used = pool.submit(peak_memory, preset).result()
        for side in sorted(predicted.keys() & used.keys()):
            yield Measurement(
                f"{preset} at {side} pixels: predicted / used memory ({used[side]:,.0f} MiB)",
                predicted[side] / used[side],
                "0.8 to 1.2",
            )


def _memory_case(preset: str) -> tuple[ImageSet, Settings]:
    images = noise_images(4096, 3, 32, 32)
    values = {
        "preset": preset,
        "policy": "progressive",
        "threads": 1,
        "score": {"num_samples": 1000},
    }
    return images, make_settings(PRESETS[preset].small_settings, values)


def predicted_memory(preset: str) -> dict[int, float]:
    """Return the memory in MiB that ``--dry-run`` predicts, by the longer side in pixels."""
    images, settings = _memory_case(preset)
    space = SearchSpace(settings.preset, settings.network, 3, images.resolution)
    mib_by_side = {}
    for level in range(space.max_level + 1):
        cost = measure_training_cost(images, settings, space, level)
        mib_by_side[max(space.resolution_at(level))] = cost.peak_mib
    return {side: mib for side, mib in mib_by_side.items() if mib is not None}


def peak_memory(preset: str) -> dict[int, float]:
    """Return the peak memory of a run in MiB, by the longer side in pixels."""
    images, settings = _memory_case(preset)
    out = RUN_DIR / f"memory-{preset}"
    shutil.rmtree(out, ignore_errors=True)
    run = gg.grow(images, out=out, images=4096, settings=settings)
    peak_by_side: dict[int, float] = {}
    for event in run.events:
        if event["event"] == "candidate" and event["peak_memory_mib"] is not None:
            side = max(event["resolution"])
            peak_by_side[side] = max(peak_by_side.get(side, 0.0), event["peak_memory_mib"])
    return peak_by_side


PARTS: dict[str, Callable[[], Iterator[Measurement]]] = {
    "child-creation": child_creation_time,
    "data": data_throughput,
    "startup": startup_time,
}


def main() -> None:
    """Read the command line and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only",
        nargs="*",
        choices=[*PARTS, "memory"],
        default=[],
        help="parts to measure; all by default",
    )
    parser.add_argument(
        "--presets",
        nargs="*",
        choices=PRESET_NAMES,
        default=PRESET_NAMES,
        help="presets whose memory to measure; all by default",
    )
    parser.add_argument("--run", type=Path, help="report the time of this run by phase instead")
    args = parser.parse_args()
    parts = {**PARTS, "memory": lambda: memory_prediction(args.presets)}
    if args.only:
        parts = {name: part for name, part in parts.items() if name in args.only}
    if args.run:
        parts = {"time": lambda: time_fractions(args.run)}
    print(f"{describe_machine()}\n\n| measurement | value | target |\n|---|---|---|")
    for part in parts.values():
        for measurement in part():
            print(
                f"| {measurement.name} | {measurement.value:,.3g} | {measurement.target} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
