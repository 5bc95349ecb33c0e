"""``--dry-run``: measure and print what a run would cost."""

from __future__ import annotations

from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from growgan.config import NetworkConfig, Settings
from growgan.data import ImageSet
from growgan.execution.cost_estimate import measure_training_cost
from growgan.report.formatting import format_resolution
from growgan.search.budget import Budget
from growgan.search.history import History, SearchSpace
from growgan.search.policies import DynamicPolicy, make_policy
from growgan.training.runtime import describe_machine, fastest_num_threads


def print_training_cost(data: ImageSet, settings: Settings, budget: Budget | None) -> None:
    """Print size, speed and memory of the networks at each resolution.

    The networks have the widths that the policy would choose for the budget on this machine.
    """
    torch.set_num_threads(settings.threads or fastest_num_threads())
    space = SearchSpace(
        settings.preset, settings.network, data.channels, data.resolution, settings.edits
    )
    wider = _autoscaled_network(data, settings, space, budget)
    if wider is not None:
        settings = settings.model_copy(update={"network": wider})
        space = replace(space, network_settings=wider)
    table = Table("resolution", "G parameters", "D parameters", "images/s", "memory")
    for level in range(space.max_level + 1):
        cost = measure_training_cost(data, settings, space, level)
        networks = (cost.gan.generator, cost.gan.discriminator)
        table.add_row(
            format_resolution(space.resolution_at(level)),
            *(f"{network.num_parameters():,}" for network in networks),
            f"{cost.images_per_second:,.0f}",
            "" if cost.peak_mib is None else f"{cost.peak_mib:,.0f} MiB",
        )
    console = Console()
    console.print(f"{len(data):,} images, {data.channels} channels; {describe_machine()}")
    console.print(table)
    if wider is not None:
        widths = f"{wider.width} in G and {wider.for_role('discriminator').width} in D"
        console.print(f"widths up to {widths}: the budget allows more than the preset's widths")
    console.print(
        f"policy {settings.policy}, loss {settings.loss}, budget {budget}; nothing was written"
    )


def _autoscaled_network(
    data: ImageSet, settings: Settings, space: SearchSpace, budget: Budget | None
) -> NetworkConfig | None:
    """Return the network settings that the policy would widen to, None if it keeps them."""
    policy = make_policy(settings.policy, settings.growth)
    if budget is None or not isinstance(policy, DynamicPolicy):
        return None
    cost = measure_training_cost(data, settings, space, space.max_level)
    images = budget.images or cost.images_per_second * (budget.seconds or 0)
    specs = cost.gan.generator.spec, cost.gan.discriminator.spec
    return policy.largest_affordable_network(specs, images, History(space, budget, settings.seed))
