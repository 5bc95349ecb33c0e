"""``--dry-run``: build every stage, take a few steps, and say what the run would cost."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from growgan.config import Settings, StackSettings
from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.growth.budget import Budget
from growgan.growth.executor import Silent, Trainer
from growgan.growth.history import History, Space
from growgan.growth.policies import Dynamic, make_policy
from growgan.growth.scoring import batches_of, scorer_of
from growgan.metrics.features import untrained
from growgan.objectives import make_objective
from growgan.training.gan import Gan
from growgan.training.memory import PeakMemory, hand_back_freed_memory
from growgan.training.runtime import Runtime, best_threads, machine, runtime_of
from growgan.training.stage import step

STEPS = 16  # each lazy penalty acts once


def show_stages(data: ImageSet, settings: Settings, budget: Budget | None) -> None:
    """Print size and speed of the stacks at each resolution on the way.

    They have the shape that the policy would choose on this machine.
    """
    torch.set_num_threads(settings.threads or best_threads())
    space = Space(settings.preset, settings.stack, data.channels, data.resolution, settings.actions)
    larger = _planned(data, settings, space, budget)
    if larger is not None:
        settings = settings.model_copy(update={"stack": larger})
        space = replace(space, shape=larger)
    table = Table("resolution", "G parameters", "D parameters", "images/s", "memory")
    for level in range(space.levels + 1):
        gan, rate, mib = stage_cost(data, settings, space, level)
        height, width = space.resolution(level)
        sizes = [f"{player.parameter_count():,}" for player in (gan.generator, gan.discriminator)]
        memory = "" if mib is None else f"{mib:,.0f} MiB"
        table.add_row(f"{width}x{height}", *sizes, f"{rate:,.0f}", memory)
    console = Console()
    console.print(f"{len(data):,} images, {data.channels} channels; {machine()}")
    console.print(table)
    if larger is not None:
        widths = f"{larger.width} in G and {larger.of('discriminator').width} in D"
        console.print(f"widths up to {widths}: the budget can feed more than the settings' shape")
    console.print(
        f"policy {settings.policy}, loss {settings.loss}, budget {budget}; nothing written"
    )


def _planned(
    data: ImageSet, settings: Settings, space: Space, budget: Budget | None
) -> StackSettings | None:
    """Return the shape that a policy would begin with in place of the settings' own, if any."""
    policy = make_policy(settings.policy, settings.growth)
    if budget is None or not isinstance(policy, Dynamic):
        return None
    gan, rate, _ = stage_cost(data, settings, space, space.levels)
    images = budget.images or rate * (budget.seconds or 0)
    known = gan.generator.spec, gan.discriminator.spec
    return policy.planned(known, images, History(space, budget, settings.seed))


def stage_cost(
    data: ImageSet, settings: Settings, space: Space, level: int
) -> tuple[Gan, float, float | None]:
    """Return the pair at ``level``, its speed in images a second, and the most memory in MiB.

    As in a run there is a parent beside the pair in training, which is scored and examined at the
    end: by a network that has learnt nothing, of the same few samples over and over. The memory is
    None where the system does not tell.
    """
    runtime = runtime_of(settings)
    hand_back_freed_memory()
    peak = PeakMemory(runtime.device)
    stacks = space.stacks(level)
    gan = Gan.create(*stacks, settings.optimiser, seed=settings.seed, device=runtime.device)
    batches, objective = batches_of(data, settings), make_objective(settings)
    step(gan, batches, objective, settings, runtime)  # the first step also warms up
    parent, gan = gan, gan.branch()
    begun, seen = time.perf_counter(), gan.images
    for _ in range(STEPS):
        terms = step(gan, batches, objective, settings, runtime)
    float(terms["loss_discriminator"])  # wait for the device
    rate = (gan.images - seen) / (time.perf_counter() - begun)
    _score(gan, batches, settings, runtime, data)
    return parent, rate, peak.mib


def _score(
    gan: Gan, batches: Batches, settings: Settings, runtime: Runtime, data: ImageSet
) -> None:
    """Do what follows a slice of training: for the memory that it takes."""
    scorer = scorer_of(data, settings, untrained(data.images, runtime.device))
    trainer, few = Trainer(batches, runtime, scorer, Silent()), min(256, 8 * settings.batch)
    with runtime.autocast():
        samples = gan.generate(few, seed=settings.seed, given=trainer.given(few))
    truth = batches.some(scorer.samples // scorer.draws) if scorer.draws > 1 else None
    score = scorer.score(
        lambda count: samples[torch.arange(count) % few], gan.resolution, truth=truth
    )
    trainer.examine(gan, score)
