"""Which conditionings let G draw each class as it is? Three Gaussians on a line, by label.

    python benchmarks/classes.py                          # all methods, 20 seeds: some minutes
    python benchmarks/classes.py --only ac tac --seeds 3

The study of TAC-GAN and of P2GAN (Gong et al. 2019, 1907.02690; Han et al. 2021, 2108.09016): the
classes are N(0, 1), N(3, 2) and N(6, 3), equally frequent, which overlap, so that whoever draws
only what a classifier is sure of draws them too narrow. Points are images of one pixel, players are
dense stacks, and training is growgan's own step. Measured are the maximum mean discrepancies of
G's running average to fresh points, of each class and of all together (Gaussian kernel as wide as
the reals' median distance, x 1000), and each class's deviation beside the true one.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, cast

import torch
from mixture import POINTS, Plane, Points, figure, study
from torch import Tensor

from growgan.config import Settings, make_settings
from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.growth.run import check_names, for_data
from growgan.nets.presets.base import ROLES
from growgan.nets.wishes import labelled
from growgan.objectives import make_objective
from growgan.objectives.conditioning import CONDITIONINGS
from growgan.training.gan import Gan, latents
from growgan.training.stage import set_rates, step

RESULTS = Path(__file__).parent / "results" / "classes.jsonl"
MEANS, DEVIATIONS = torch.tensor([0.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 3.0])
CENTRE, SCALE = 3.0, 6.0  # points are (x - 3) / 6
CLASSES = len(MEANS)
SAMPLES = 2_000  # of each class
METHODS: dict[str, dict[str, Any]] = {
    entry.name: {"conditioning": entry.name}
    for entry in CONDITIONINGS
    if entry.value.labelled and entry.value.told and not entry.value.given
} | {
    "ac, weight 1": {"conditioning": "ac", "conditioning_options": {"generator_weight": 1.0}},
    **{
        f"f-cgan, {name}": {"conditioning": "f-cgan", "conditioning_options": {"divergence": kind}}
        for kind, name in enumerate(("KL", "Pearson", "Hellinger", "Jensen-Shannon"), 1)
    },
    "p2gan, adaptive": {"conditioning": "p2gan", "conditioning_options": {"adaptive": 1}},
    "projection, a contrario": {
        "conditioning": "projection",
        "conditioning_options": {"contrary": 1.0},
    },
}


class LabelledPoints(Points):
    """Points of three classes, and their labels."""

    def batch_at(self, position: int) -> tuple[Tensor, Tensor]:
        """Return points [B, 1, 1, 1] and labels [B] at ``position``."""
        rng = torch.Generator().manual_seed(self.seed << 40 | position)
        labels = torch.randint(CLASSES, (self.batch,), generator=rng)
        return points(labels, rng)[:, None, None, None], labels


def points(labels: Tensor, rng: torch.Generator) -> Tensor:
    """Return a point of each label, scaled."""
    drawn = MEANS[labels] + DEVIATIONS[labels] * torch.randn(len(labels), generator=rng)
    return (drawn - CENTRE) / SCALE


def settings_of(method: str, seed: int) -> Settings:
    """Return the settings of a method: dense players of two hidden layers of 64, hinge loss."""
    shape = {"latent": 8, "width": 64, "discriminator_width": 64, "convolutions": 1}
    usual = {
        "preset": "gan",
        "seed": seed,
        "batch": 256,
        "anneal": 0.5,
        "loss": "hinge",
        "regularisers": {},
        "optimiser": {"lr": 1e-3, "beta1": 0.0, "beta2": 0.99, "decay": None},
        "stack": {"kind": "dense", "norm": "none", "deviation_group": 0, "rate": "plain", **shape},
    }
    settings = check_names(make_settings(usual, METHODS[method]))
    nothing = torch.zeros(CLASSES, 1, 1, 1, dtype=torch.uint8).numpy()
    names = tuple("abc"[:CLASSES])
    return for_data(settings, ImageSet("line", nothing, torch.arange(CLASSES).numpy(), names, ""))


def run(method: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one pair and measure its classes."""
    torch.set_num_threads(1)
    settings = settings_of(method, seed)
    g, d = (POINTS.stack(role, settings.stack, 1, (1, 1)) for role in ROLES)
    gan = Gan.create(g, d, settings.optimiser, seed=seed)
    objective, runtime = make_objective(settings), Plane(torch.device("cpu"), bfloat16=False)
    batches = cast(Batches, LabelledPoints(settings.batch, seed))
    for i in range(steps):
        set_rates(gan, settings, i / steps)
        step(gan, batches, objective, settings, runtime)
    return {"method": method, "seed": seed, **measure(gan)}


@torch.no_grad()
def measure(gan: Gan) -> dict[str, float]:
    """Return the discrepancies and deviations of the classes, and the marginal discrepancy."""
    labels = torch.arange(CLASSES).repeat(SAMPLES)
    real = points(labels, torch.Generator().manual_seed(12345))
    z = labelled(gan.average.spec, latents(len(labels), gan.average.spec.latent, 99))
    fake = gan.average(z).flatten()
    found = {"marginal": discrepancy(some(fake), some(real))}
    for k in range(CLASSES):
        own, true = fake[labels == k], real[labels == k]
        found[f"class {k}"] = discrepancy(own, true)
        found[f"deviation {k}"] = float(own.std() * SCALE / DEVIATIONS[k])
    return found


def some(values: Tensor) -> Tensor:
    """Return a third of the values at random, all classes among them."""
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1))
    return values[order[: len(values) // CLASSES]]


def discrepancy(x: Tensor, y: Tensor) -> float:
    """Return 1000 times the unbiased squared MMD of two sets [n], [m] of points."""
    x, y = x.double(), y.double()
    width = (y[:, None] - y[None]).abs().median()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-((a[:, None] - b[None]) ** 2) / (2 * width**2))

    n, m = len(x), len(y)
    own = (kernel(x, x).sum() - n) / (n * (n - 1)) + (kernel(y, y).sum() - m) / (m * (m - 1))
    return 1000 * float(own - 2 * kernel(x, y).mean())


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown, the best mean over the classes first."""
    kinds = [f"class {k}" for k in range(CLASSES)]
    lines = [
        "| method | seeds | class N(0, 1) | N(3, 2) | N(6, 3) | mean | marginal | deviations |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups = {m: [row for row in rows if row["method"] == m] for m in METHODS}
    means = {
        m: [statistics.mean(row[kind] for kind in kinds) for row in own]
        for m, own in groups.items()
        if own
    }
    for method in sorted(means, key=lambda m: statistics.mean(means[m])):
        own = groups[method]
        cells = [figure([row[kind] for row in own], 1) for kind in kinds]
        cells += [figure(means[method], 1), figure([row["marginal"] for row in own], 1)]
        wide = (statistics.mean(row[f"deviation {k}"] for row in own) for k in range(CLASSES))
        cells.append(", ".join(f"{value:.2f}" for value in wide))
        lines.append(f"| {method} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    study(__doc__, run, METHODS, RESULTS, table, seeds=20, steps=3_000)
