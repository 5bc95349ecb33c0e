"""What each way of being fast is worth: a whole training step with one of them left out.

    python benchmarks/ablation.py          # some five minutes

Milliseconds of a step of both players (a cycle of the lazy penalties over its steps, medians over
turns, all ways of a stack in turns), of growgan's default stack, of one four times as wide, and of
DCGAN and PGGAN at their published widths. "casts" is the share of a step's time that goes into
casting weights and features to bfloat16 and back, which is the most that bfloat16 weights beside
float32 masters could save; "batch × 4" is the time for as many images in batches four times as
large.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from training import Case, allocate, noise, timed

from growgan.config import make_settings
from growgan.data.batches import Batches
from growgan.growth.history import Space
from growgan.nets.layers import downsample
from growgan.nets.presets import PRESETS
from growgan.nets.stack import Stack
from growgan.objectives import make_objective
from growgan.training import stage
from growgan.training.runtime import Runtime, machine, make_runtime

CPU = torch.device("cpu")
TURNS = 5
STACKS: tuple[tuple[str, dict[str, Any], int, int], ...] = (  # name, settings, side, batch
    ("default, 4x4", {}, 4, 32),
    ("default, 32x32", {}, 32, 32),
    ("four times as wide, 32x32", {"stack": {"width": 128}}, 32, 32),
    ("dcgan, 16x16", {"preset": "dcgan"}, 16, 32),
    ("pggan, 4x4", {"preset": "pggan"}, 4, 16),
)


@contextmanager
def given_back() -> Iterator[None]:
    """Let the allocator give freed memory back."""
    allocate(kept=False)
    try:
        yield
    finally:
        allocate(kept=True)


class Planar(Runtime):
    """Images, and so features, in NCHW."""

    def images(self, batch: Tensor, factor: int = 1) -> Tensor:
        return downsample(batch.float(), factor) / 127.5 - 1


def ways(values: dict[str, Any], side: int, batch: int) -> dict[str, Callable[[], None]]:
    """Return a cycle of steps by what is left out."""
    preset = values.get("preset")
    settings = make_settings(PRESETS[preset].published if preset else {}, values)
    space = Space(settings.preset, settings.stack, 3, (32, 32))
    level = next(k for k in range(space.levels + 1) if max(space.resolution(k)) == side)
    plain, runtime = noise(512, 3, 32, 32), make_runtime("cpu")
    steps = 16

    def cycle(how: Runtime, count: int = batch, always: bool = False) -> Callable[[], None]:
        own = settings
        if always:
            every = {name: {**o, "every": 1} for name, o in settings.regularisers.items()}
            own = settings.model_copy(update={"regularisers": every})
        gan = Case("", own, space, level, count).gan(CPU)
        if isinstance(how, Planar):
            for player in (gan.generator, gan.discriminator):
                player.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        batches, objective = Batches(plain, count, 0), make_objective(own)

        def run() -> None:
            for _ in range(steps * batch // count):
                stage.step(gan, batches, objective, own, how)

        run.gan = gan  # type: ignore[attr-defined]
        return run

    def within(context: Callable[[], Any], run: Callable[[], None]) -> Callable[[], None]:
        def wrapped() -> None:
            with context():
                run()

        return wrapped

    found = {
        "as it is": cycle(runtime),
        "no bfloat16": cycle(replace(runtime, bfloat16=False)),
        "NCHW": cycle(Planar(runtime.device, runtime.bfloat16)),
        "Adam by lists": cycle(runtime),
        "D apart": within(
            lambda: patch.object(Stack, "mixes", property(lambda self: True)), cycle(runtime)
        ),
        "penalties always": cycle(runtime, always=True),
        "memory given back": within(given_back, cycle(runtime)),
        "batch × 4": cycle(runtime, 4 * batch),
    }
    for optimiser in ("generator_optimiser", "discriminator_optimiser"):
        slow = getattr(found["Adam by lists"].gan, optimiser)  # type: ignore[attr-defined]
        for group in slow.param_groups:
            group |= {"fused": False, "foreach": True}
    return found


def casts(run: Callable[[], None]) -> float:
    """Return the share of the time that goes into copies from one type or layout to another."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    events = seen.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    return sum(e.self_cpu_time_total for e in events if e.key == "aten::copy_") / whole


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{machine()}, {given.threads} threads; ms a step\n")
    for number, (name, values, side, batch) in enumerate(STACKS):
        found = ways(values, side, batch)
        if not number:
            print(
                "| stack | " + " | ".join(found) + " | casts |\n|---|" + "---|" * (len(found) + 1)
            )
        for run in found.values():
            run()
        times: dict[str, list[float]] = {way: [] for way in found}
        for _ in range(TURNS):
            for way, run in found.items():
                times[way].append(timed(run, CPU) / 16 * 1e3)
        cells = [f"{statistics.median(each):.1f}" for each in times.values()]
        print(f"| {name} | {' | '.join(cells)} | {casts(found['as it is']):.0%} |", flush=True)


if __name__ == "__main__":
    main()
