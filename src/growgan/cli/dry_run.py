"""``--dry-run``: build every stage, take a few steps, and say what the run would cost."""

from __future__ import annotations

import time

import torch
from rich.console import Console
from rich.table import Table

from growgan.config import Settings
from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.growth.budget import Budget
from growgan.growth.history import Space
from growgan.objectives import make_objective
from growgan.training.gan import Gan
from growgan.training.memory import PeakMemory
from growgan.training.runtime import best_threads, machine, make_runtime
from growgan.training.stage import step

STEPS = 16  # each lazy penalty acts once


def show_stages(data: ImageSet, settings: Settings, budget: Budget | None) -> None:
    """Print size and speed of the preset's stack at each resolution on the way."""
    torch.set_num_threads(settings.threads or best_threads())
    space = Space(settings.preset, settings.stack, data.channels, data.resolution)
    table = Table("resolution", "G parameters", "D parameters", "images/s", "memory")
    for level in range(space.levels + 1):
        gan, rate, mib = _measure(data, settings, space, level)
        height, width = space.resolution(level)
        sizes = [f"{player.parameter_count():,}" for player in (gan.generator, gan.discriminator)]
        memory = "" if mib is None else f"{mib:,.0f} MiB"
        table.add_row(f"{width}x{height}", *sizes, f"{rate:,.0f}", memory)
    console = Console()
    console.print(f"{len(data):,} images, {data.channels} channels; {machine()}")
    console.print(table)
    console.print(
        f"policy {settings.policy}, loss {settings.loss}, budget {budget}; nothing written"
    )


def _measure(
    data: ImageSet, settings: Settings, space: Space, level: int
) -> tuple[Gan, float, float | None]:
    """Return the pair at ``level``, its speed in images a second, and the most memory in MiB.

    As in a run there is a parent beside the pair in training.
    """
    runtime = make_runtime(settings.device, settings.precision)
    peak = PeakMemory(runtime.device)
    stacks = space.stacks(level)
    gan = Gan.create(*stacks, settings.optimiser, seed=settings.seed, device=runtime.device)
    batches, objective = Batches(data, settings.batch, settings.seed), make_objective(settings)
    step(gan, batches, objective, settings, runtime)  # the first step also warms up
    parent, gan = gan, gan.branch()
    begun, seen = time.perf_counter(), gan.images
    for _ in range(STEPS):
        terms = step(gan, batches, objective, settings, runtime)
    float(terms["loss_generator"])  # wait for the device
    rate = (gan.images - seen) / (time.perf_counter() - begun)
    return parent, rate, peak.mib
