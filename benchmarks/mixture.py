"""Which losses and tools find all of 25 Gaussians in the plane?

    python benchmarks/mixture.py                    # all methods, five seeds: some twenty minutes
    python benchmarks/mixture.py --only hinge --seeds 2

The usual test for collapse: a grid of 5 x 5 narrow Gaussians (Metz et al. 2017, 1611.02163;
Srivastava et al. 2017, 1705.07761). Points are images of one pixel and two channels, players are
dense stacks, and training is growgan's own step. Of 2,500 samples of G's running average those
within three deviations of a mean are good ones; a mode is found if some good sample is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from growgan.config import Settings, make_settings
from growgan.data.batches import Batches
from growgan.growth.run import check_names
from growgan.nets.presets import PRESETS
from growgan.nets.presets.base import ROLES
from growgan.objectives import LOSSES, make_objective
from growgan.training.gan import Gan, latents
from growgan.training.runtime import Runtime, machine
from growgan.training.stage import set_rates, step

RESULTS = Path(__file__).parent / "results" / "mixture.json"
SCALE = 5.0  # the outermost means are at 4: points lie within [-1, 1] once divided by it
MEANS = torch.cartesian_prod(*[torch.arange(-4.0, 5.0, 2.0)] * 2) / SCALE  # [25, 2]
DEVIATION = 0.05 / SCALE
SAMPLES = 2_500
NEEDS = {"wasserstein": {"gp": {"weight": 0.1}}}  # a critic must be held smooth
PLAIN = "non-saturating"
METHODS: dict[str, dict[str, Any]] = {
    **{entry.name: {"loss": entry.name} for entry in LOSSES},
    "wasserstein": {"loss": "wasserstein", "regularisers": NEEDS["wasserstein"], "critic_steps": 5},
    "relativistic, R1 and R2": {
        "loss": "relativistic",
        "regularisers": {name: {"weight": 0.01, "every": 1} for name in ("r1", "r2")},
    },
    "minibatch discrimination": {"loss": PLAIN, "stack": {"kernels": 20}},
    "replay": {"loss": PLAIN, "regularisers": {"replay": {}}},
    "feature-matching": {"loss": PLAIN, "regularisers": {"feature-matching": {}}},
}


class Points:
    """Stands in for the batches of a dataset: fresh points, a function of seed and position."""

    def __init__(self, batch: int, seed: int) -> None:
        self.batch, self.seed = batch, seed

    def batch_at(self, position: int) -> tuple[Tensor, None]:
        """Return the points [B, 2, 1, 1] at ``position``."""
        rng = torch.Generator().manual_seed(self.seed << 40 | position)
        means = MEANS[torch.randint(25, (self.batch,), generator=rng)]
        points = means + DEVIATION * torch.randn(self.batch, 2, generator=rng)
        return points[:, :, None, None], None


class Plane(Runtime):
    """Where images are points already."""

    def images(self, batch: Tensor) -> Tensor:
        """Return ``batch`` as it is."""
        return batch


def settings_of(method: str, seed: int) -> Settings:
    """Return the settings of a method: dense players of two hidden layers of 128."""
    shape = {"latent": 32, "width": 128, "discriminator_width": 128, "convolutions": 1}
    usual = {
        "preset": "gan",
        "seed": seed,
        "batch": 128,
        "anneal": 0.3,
        "regularisers": {},
        "optimiser": {"lr": 1e-3, "beta1": 0.5, "beta2": 0.999, "decay": None},
        "stack": {"kind": "dense", "norm": "none", "deviation_group": 0, "rate": "plain", **shape},
    }
    return check_names(make_settings(usual, METHODS[method]))


def run(method: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one pair and count what it finds; steps are G's."""
    torch.set_num_threads(1)
    settings, preset = settings_of(method, seed), PRESETS["gan"]
    g, d = (preset.stack(role, settings.stack, 2, (1, 1)) for role in ROLES)
    gan = Gan.create(g, d, settings.optimiser, seed=seed)
    objective, runtime = make_objective(settings), Plane(torch.device("cpu"), bfloat16=False)
    batches = cast(Batches, Points(settings.batch, seed))
    steps *= settings.critic_steps
    curve = []
    for i in range(steps):
        set_rates(gan, settings, i / steps)
        terms = step(gan, batches, objective, settings, runtime)
        if (i + 1) % (steps // 20) == 0:
            found = count(gan)
            curve.append({**found, "loss": float(terms["loss_discriminator"])})
    return {"method": method, "seed": seed, **count(gan), "curve": curve}


@torch.no_grad()
def count(gan: Gan) -> dict[str, float]:
    """Return the modes found, the share of good samples, and the mean distance to a mode."""
    points = gan.average(latents(SAMPLES, gan.average.spec.latent, 99)).flatten(1)
    distances, nearest = torch.cdist(points, MEANS).min(1)
    good = distances < 3 * DEVIATION
    return {
        "modes": len(nearest[good].unique()),
        "good": float(good.float().mean()),
        "distance": float(distances.mean()) * SCALE,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown: mean and deviation over seeds."""
    lines = ["| method | seeds | modes of 25 | good samples, % |", "|---|---|---|---|"]
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        if own:
            modes, good = ([row[key] for row in own] for key in ("modes", "good"))
            cells = (figure(modes, 1), figure([100 * x for x in good], 0))
            lines.append(f"| {method} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(values: list[float], digits: int) -> str:
    """Return a mean, with its deviation where there are several."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def study(
    about: str,
    run: Callable[[str, int, int], dict[str, Any]],
    methods: Mapping[str, Any],
    results: Path,
    table: Callable[[list[dict[str, Any]]], str],
    *,
    seeds: int,
    steps: int,
) -> None:
    """Read the command line, run what it names, keep the figures and print the table."""
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="methods, all by default")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--steps", type=int, default=steps, help="of G")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if set(given.only) - set(methods):
        parser.error(f"--only must name some of: {', '.join(methods)}")
    wanted = [m for m in methods if not given.only or m in given.only]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, spawn) as pool:
        runs = [
            pool.submit(run, method, seed, given.steps)
            for method in wanted
            for seed in range(given.seeds)
        ]
        rows = [each.result() for each in runs]
    kept = json.loads(results.read_text())["rows"] if results.exists() else []
    rows += [row for row in kept if row["method"] not in wanted]
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(f"{machine()}\n\n{table(rows)}")


if __name__ == "__main__":
    study(__doc__, run, METHODS, RESULTS, table, seeds=5, steps=8_000)
