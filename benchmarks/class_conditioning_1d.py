"""Compare conditioning methods on three overlapping Gaussian classes on a line.

    python benchmarks/class_conditioning_1d.py                     # all, 20 seeds; some minutes
    python benchmarks/class_conditioning_1d.py --only ac tac --seeds 3

This is the study of TAC-GAN and P2GAN (Gong et al. 2019, 1907.02690; Han et al. 2021, 2108.09016).
The classes are N(0, 1), N(3, 2) and N(6, 3) and equally frequent. They overlap, so a generator that
only draws what a classifier is sure of draws them too narrow. Points are images of one pixel, the
networks are fully connected, and the training step is growgan's own.

The metrics are the squared maximum mean discrepancy (MMD, times 1000) between samples of the EMA of
G and new real points, for each class and for all together, with a Gaussian kernel as wide as the
median distance of real points; and the standard deviation of each class relative to the true one.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, cast

import torch
from common import mean_and_std
from gaussian_mixture_2d import POINT_PRESET, PointBatches, PointRuntime, run_study
from torch import Tensor

from growgan.config import Settings, make_settings
from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.nets.conditioning import append_condition
from growgan.nets.presets.base import ROLES
from growgan.objectives import make_objective
from growgan.objectives.conditioning import CONDITIONINGS
from growgan.run.validation import derive_network_settings, validate_settings
from growgan.training.gan import Gan, sample_latents
from growgan.training.loop import set_learning_rates
from growgan.training.step import training_step

RESULTS = Path(__file__).parent / "results" / "class_conditioning_1d.jsonl"
MEANS = torch.tensor([0.0, 3.0, 6.0])
STDS = torch.tensor([1.0, 2.0, 3.0])
NUM_CLASSES = len(MEANS)
CENTER, SCALE = 3.0, 6.0  # points are scaled to (x - CENTER) / SCALE
SAMPLES_PER_CLASS = 2_000
METHODS: dict[str, dict[str, Any]] = {
    entry.name: {"conditioning": entry.name}
    for entry in CONDITIONINGS
    if entry.value.needs_labels
    and entry.value.generator_conditioned
    and not entry.value.needs_source
} | {
    "ac, weight 1": {"conditioning": "ac", "conditioning_options": {"generator_weight": 1.0}},
    **{
        f"f-cgan, {name}": {"conditioning": "f-cgan", "conditioning_options": {"divergence": kind}}
        for kind, name in enumerate(("KL", "Pearson", "Hellinger", "Jensen-Shannon"), 1)
    },
    "p2gan, adaptive": {"conditioning": "p2gan", "conditioning_options": {"adaptive_weighting": 1}},
    "projection, mismatched labels": {
        "conditioning": "projection",
        "conditioning_options": {"mismatch_weight": 1.0},
    },
}


class LabeledPoints(PointBatches):
    """Points of three classes with their labels."""

    def batch_at(self, position: int) -> tuple[Tensor, Tensor]:
        """Return points [B, 1, 1, 1] and labels [B]."""
        rng = torch.Generator().manual_seed(self.seed << 40 | position)
        labels = torch.randint(NUM_CLASSES, (self.batch_size,), generator=rng)
        return sample_points(labels, rng)[:, None, None, None], labels


def sample_points(labels: Tensor, rng: torch.Generator) -> Tensor:
    """Return a scaled point of each label's class."""
    points = MEANS[labels] + STDS[labels] * torch.randn(len(labels), generator=rng)
    return (points - CENTER) / SCALE


def method_settings(method: str, seed: int) -> Settings:
    """Return a method's settings: dense networks, two hidden layers of 64 units, hinge loss."""
    defaults = {
        "preset": "gan",
        "seed": seed,
        "batch_size": 256,
        "lr_cooldown": 0.5,
        "loss": "hinge",
        "regularizers": {},
        "optimizer": {"lr": 1e-3, "beta1": 0.0, "beta2": 0.99, "lr_decay_images": None},
        "network": {
            "block": "dense",
            "norm": "none",
            "mbstd_group_size": 0,
            "parametrization": "none",
            "lr_scaling": "none",
            "latent_dim": 8,
            "width": 64,
            "discriminator_width": 64,
            "layers_per_resolution": 1,
        },
    }
    settings = validate_settings(make_settings(defaults, METHODS[method]))
    placeholder = torch.zeros(NUM_CLASSES, 1, 1, 1, dtype=torch.uint8).numpy()
    labels, names = torch.arange(NUM_CLASSES).numpy(), tuple("abc"[:NUM_CLASSES])
    return derive_network_settings(
        settings, ImageSet("line", placeholder, labels=labels, classes=names, fingerprint="")
    )


def train_and_evaluate(method: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one GAN and return its metrics."""
    torch.set_num_threads(1)
    settings = method_settings(method, seed)
    g, d = (POINT_PRESET.network_spec(role, settings.network, 1, (1, 1)) for role in ROLES)
    gan = Gan.create(g, d, settings.optimizer, seed=seed)
    objective = make_objective(settings)
    runtime = PointRuntime(torch.device("cpu"), use_bfloat16=False)
    batches = cast(Batches, LabeledPoints(settings.batch_size, seed))
    for step in range(steps):
        set_learning_rates(gan, settings, step / steps)
        training_step(gan, batches, objective=objective, settings=settings, runtime=runtime)
    return {"method": method, "seed": seed, **evaluate(gan)}


@torch.no_grad()
def evaluate(gan: Gan) -> dict[str, float]:
    """Return the MMD and the relative standard deviation of each class, and the marginal MMD."""
    labels = torch.arange(NUM_CLASSES).repeat(SAMPLES_PER_CLASS)
    real = sample_points(labels, torch.Generator().manual_seed(12345))
    z = append_condition(gan.ema.spec, sample_latents(len(labels), gan.ema.spec.latent_dim, 99))
    fake = gan.ema(z).flatten()
    metrics = {"mmd_marginal": mmd_times_1000(random_third(fake), random_third(real))}
    for k in range(NUM_CLASSES):
        class_fake, class_real = fake[labels == k], real[labels == k]
        metrics[f"mmd_class_{k}"] = mmd_times_1000(class_fake, class_real)
        metrics[f"std_ratio_class_{k}"] = float(class_fake.std() * SCALE / STDS[k])
    return metrics


def random_third(values: Tensor) -> Tensor:
    """Return a random third of the values, as many as there are of each class."""
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1))
    return values[order[: len(values) // NUM_CLASSES]]


def mmd_times_1000(x: Tensor, y: Tensor) -> float:
    """Return 1000 times the unbiased squared MMD of two sets of points, [n] and [m]."""
    x, y = x.double(), y.double()
    width = (y[:, None] - y[None]).abs().median()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-((a[:, None] - b[None]) ** 2) / (2 * width**2))

    n, m = len(x), len(y)
    within = (kernel(x, x).sum() - n) / (n * (n - 1)) + (kernel(y, y).sum() - m) / (m * (m - 1))
    return 1000 * float(within - 2 * kernel(x, y).mean())


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown, sorted by the mean MMD over classes."""
    class_keys = [f"mmd_class_{k}" for k in range(NUM_CLASSES)]
    lines = [
        "| method | seeds | MMD of N(0, 1) | of N(3, 2) | of N(6, 3) | mean | marginal MMD "
        "| relative standard deviations |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows_by_method = {m: [row for row in rows if row["method"] == m] for m in METHODS}
    mean_mmds = {
        method: [statistics.mean(row[key] for key in class_keys) for row in method_rows]
        for method, method_rows in rows_by_method.items()
        if method_rows
    }
    for method in sorted(mean_mmds, key=lambda m: statistics.mean(mean_mmds[m])):
        method_rows = rows_by_method[method]
        cells = [mean_and_std([row[key] for row in method_rows], 1) for key in class_keys]
        cells.append(mean_and_std(mean_mmds[method], 1))
        cells.append(mean_and_std([row["mmd_marginal"] for row in method_rows], 1))
        std_ratios = (
            statistics.mean(row[f"std_ratio_class_{k}"] for row in method_rows)
            for k in range(NUM_CLASSES)
        )
        cells.append(", ".join(f"{ratio:.2f}" for ratio in std_ratios))
        lines.append(f"| {method} | {len(method_rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_study(
        __doc__,
        train_and_evaluate,
        methods=METHODS,
        results=RESULTS,
        make_table=table,
        num_seeds=20,
        steps=3_000,
    )
