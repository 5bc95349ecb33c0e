"""Which losses and tools find all of 25 Gaussians in the plane?

    python benchmarks/mixture.py                    # all, five seeds: some hours on 2 cores
    python benchmarks/mixture.py --only hinge --seeds 2

A row is kept as it comes in benchmarks/results, and one that is there is not run again.

The usual test for collapse: a grid of 5 x 5 narrow Gaussians (Metz et al. 2017, 1611.02163;
Srivastava et al. 2017, 1705.07761). Points are images of one pixel and two channels, players are
dense stacks, and training is growgan's own step. Of 2,500 samples of G's running average those
within three deviations of a mean are good ones; a mode is found if some good sample is its own, and
the modes drawn are exp of the entropy of the samples' nearest modes: 25 if all are as frequent.
Beside them are the mean distance from the nearest mode, and the Wasserstein distance of samples and
fresh points along lines of all directions ("transport").

Two tables follow that ask what papers claim: does the critic's estimate of WGAN fall as samples
get better (Arjovsky et al. 2017, section 4.2), does truncation trade diversity for fidelity (Brock
et al. 2019, section 3.1)?
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from rows import kept_rows, new_rows
from torch import Tensor

from growgan.config import Settings, make_settings
from growgan.data.batches import Batches
from growgan.growth.model import truncate
from growgan.growth.run import check_names
from growgan.nets.forms.base import FORMS, Form
from growgan.nets.forms.dense import DenseEnd, DenseFromImage, DenseStem, DenseToImage
from growgan.nets.presets.base import ROLES, Preset
from growgan.nets.presets.gan import DenseFamily
from growgan.objectives import LOSSES, make_objective
from growgan.training.gan import Gan, latents
from growgan.training.runtime import Runtime, machine
from growgan.training.stage import set_rates, step

RESULTS = Path(__file__).parent / "results" / "mixture.jsonl"
MEANS = torch.cartesian_prod(*[torch.arange(-4.0, 5.0, 2.0)] * 2)  # [25, 2]
DEVIATION = 0.05
SAMPLES = 2_500
PLAIN = "non-saturating"
STEADY = "relativistic, R1 and R2"
SLOW = "wasserstein, slow G"  # so that the critic keeps near its best
SHOWN = {  # by what figures are multiplied, and their digits
    "modes": (1, 1),
    "drawn": (1, 1),
    "good": (100, 0),
    "distance": (1, 2),
    "transport": (1, 2),
}
THRESHOLDS = (2.0, 1.0, 0.5, 0.25, 0.1)  # of truncation


def critic(weight: float) -> dict[str, Any]:
    """Return the settings of a critic, which must be held smooth by a penalty."""
    return {"regularisers": {"gp": {"weight": weight}}, "critic_steps": 5}


METHODS: dict[str, dict[str, Any]] = {
    **{entry.name: {"loss": entry.name} for entry in LOSSES},
    "wasserstein": {"loss": "wasserstein", **critic(0.1)},
    SLOW: {
        "loss": "wasserstein",
        "anneal": 0.0,
        "optimiser": {"lr": 3e-5, "discriminator_lr": 1e-3},
        **critic(1.0),
    },
    # k moves as fast as these short runs need it. A wide D would encode points as they are.
    "began": {
        "loss": "began",
        "loss_options": {"step": 1.0},
        "stack": {"discriminator_width": 16},
    },
    STEADY: {
        "loss": "relativistic",
        "regularisers": {name: {"weight": 0.003, "every": 1} for name in ("r1", "r2")},
    },
    "minibatch discrimination": {"loss": PLAIN, "stack": {"kernels": 20}},
    "replay": {"loss": PLAIN, "regularisers": {"replay": {}}},
    "feature-matching": {"loss": PLAIN, "regularisers": {"feature-matching": {}}},
}


class ToPoint(DenseToImage):
    """As to an image, but without tanh: points lie anywhere."""

    def forward(self, h: Tensor, style: Tensor | None = None) -> Tensor:
        """Return the points [N, C, 1, 1]."""
        return self.conv(h).view(-1, *self.size)


FORMS.register("point", "as dense, without tanh")(
    Form(DenseStem, ToPoint, DenseFromImage, DenseEnd)
)


class PointFamily(DenseFamily):
    """Dense stacks of points."""

    form = "point"


POINTS = Preset(PointFamily(), {})


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

    def given_at(self, position: int) -> None:
        """Return what points are made from: nothing."""


class Plane(Runtime):
    """Where images are points already."""

    def images(self, batch: Tensor, factor: int = 1) -> Tensor:
        """Return ``batch`` as it is."""
        return batch


def settings_of(method: str, seed: int) -> Settings:
    """Return the settings of a method: dense players of four hidden layers of 128."""
    shape = {"latent": 32, "width": 128, "discriminator_width": 128, "convolutions": 3}
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
    settings = settings_of(method, seed)
    g, d = (POINTS.stack(role, settings.stack, 2, (1, 1)) for role in ROLES)
    gan = Gan.create(g, d, settings.optimiser, seed=seed)
    objective, runtime = make_objective(settings), Plane(torch.device("cpu"), bfloat16=False)
    batches = cast(Batches, Points(settings.batch, seed))
    steps *= settings.critic_steps
    curve, losses = [], []
    marks = {round(steps * 0.8**k) for k in range(24)}  # closer at first, where more changes
    for i in range(steps):
        set_rates(gan, settings, i / steps)
        losses.append(step(gan, batches, objective, settings, runtime)["loss_discriminator"])
        if i + 1 in marks:
            curve.append({**count(gan), "loss": float(torch.stack(losses).mean())})
            losses.clear()
    cut = {str(threshold): count(gan, threshold) for threshold in THRESHOLDS}
    return {"method": method, "seed": seed, **count(gan), "curve": curve, "truncated": cut}


@torch.no_grad()
def count(gan: Gan, threshold: float | None = None) -> dict[str, float]:
    """Return what the tables show of samples, at a threshold of truncation (None: whole)."""
    z = latents(SAMPLES, gan.average.spec.latent, 99)
    points = gan.average(truncate(z, threshold, 99) if threshold else z).flatten(1)
    distances, nearest = torch.cdist(points, MEANS).min(1)
    good = distances < 3 * DEVIATION
    shares = torch.bincount(nearest, minlength=25) / SAMPLES
    return {
        "modes": len(nearest[good].unique()),
        "drawn": float(torch.special.entr(shares).sum().exp()),
        "good": float(good.float().mean()),
        "distance": float(distances.mean()),
        "transport": transport(points, Points(SAMPLES, 99).batch_at(0)[0].flatten(1)),
    }


def transport(x: Tensor, y: Tensor) -> float:
    """Return the Wasserstein distance of two sets [N, 2] of points, a mean over 64 directions."""
    angles = torch.arange(64) * torch.pi / 64
    directions = torch.stack([angles.cos(), angles.sin()])
    x, y = ((points @ directions).sort(0).values for points in (x, y))
    return float((x - y).abs().mean())


def tables(rows: list[dict[str, Any]]) -> str:
    """Return all tables as Markdown: mean and deviation over seeds."""
    groups = {m: [row for row in rows if row["method"] == m] for m in METHODS}
    groups = {method: own for method, own in groups.items() if own}
    parts = [table("method", groups)]
    if critics := groups.get(SLOW):
        parts.append(
            f"Rank correlations over the training of WGAN with a slow G:\n\n{correlations(critics)}"
        )
    for method in (PLAIN, STEADY):
        if own := groups.get(method):
            cut = {"none": own} | {
                str(t): [row["truncated"][str(t)] for row in own] for t in THRESHOLDS
            }
            parts.append(table(f"truncation ({method})", cut))
    return "\n\n".join(parts)


def table(first: str, groups: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return what was counted in the runs of each group."""
    lines = [
        f"| {first} | seeds | modes of 25 | modes drawn | good, % | from a mode | transport |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, own in groups.items():
        cells = [figure([by * row[key] for row in own], n) for key, (by, n) in SHOWN.items()]
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def correlations(rows: list[dict[str, Any]]) -> str:
    """Return how the critic's estimate, its loss but for the sign, goes with what was counted."""
    lines = ["| estimate against | seeds | rank correlation |", "|---|---|---|"]
    for key, what in {"transport": "transport", "good": "share of good samples"}.items():
        found = [
            statistics.correlation(
                ranks([-point["loss"] for point in row["curve"]]),
                ranks([point[key] for point in row["curve"]]),
            )
            for row in rows
        ]
        lines.append(f"| {what} | {len(rows)} | {figure(found, 2)} |")
    return "\n".join(lines)


def ranks(values: list[float]) -> list[int]:
    """Return twice the rank of each value, the middle one where some are equal."""
    return [sum(v < w for v in values) + sum(v <= w for v in values) for w in values]


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
    """Read the command line, run what is missing of it, and print the table of all."""
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="methods, all by default")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if set(given.only) - set(methods):
        parser.error(f"--only must name some of: {', '.join(methods)}")
    rows = kept_rows(results)
    known = {(row["method"], row["seed"]) for row in rows}
    wanted = [m for m in methods if not given.only or m in given.only]
    calls = [(m, s, steps) for s in range(given.seeds) for m in wanted if (m, s) not in known]
    rows += new_rows(run, calls, given.jobs, results, anew=False)
    print(f"{machine()}\n\n{table(sorted(rows, key=lambda row: row['seed']))}")


if __name__ == "__main__":
    study(__doc__, run, METHODS, RESULTS, tables, seeds=5, steps=12_000)
