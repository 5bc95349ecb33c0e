"""Compare losses and regularizers on a mixture of 25 Gaussians in the plane.

    python benchmarks/gaussian_mixture_2d.py                    # all, five seeds; takes hours
    python benchmarks/gaussian_mixture_2d.py --only hinge --seeds 2

Results are saved in benchmarks/results as they come. Saved results are not computed again.

This is the usual test for mode collapse: a grid of 5 x 5 narrow Gaussians (Metz et al. 2017,
1611.02163; Srivastava et al. 2017, 1705.07761). Points are images of one pixel and two channels,
the networks are fully connected, and the training step is growgan's own. The metrics are for 2,500
samples of the EMA of G:

- A sample is of high quality if it lies within three standard deviations of a mode.
- A mode is found if a sample of high quality is nearest to it.
- The number of effective modes is the exponential of the entropy of the samples' nearest modes. It
  is 25 if all modes are equally frequent.
- The distance to the nearest mode is a mean over samples.
- The sliced Wasserstein distance compares the samples with new real points.

Two more tables test claims of papers: whether the critic's estimate in WGAN falls as the samples
improve (Arjovsky et al. 2017, section 4.2), and whether truncation trades diversity for fidelity
(Brock et al. 2019, section 3.1).
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from common import compute_rows, mean_and_std, read_rows
from torch import Tensor

from growgan.config import Settings, make_settings
from growgan.data.batches import Batches
from growgan.nets.ends.base import ENDS, NetworkEnds
from growgan.nets.ends.dense import DenseEpilogue, DenseFromImage, DenseStem, DenseToImage
from growgan.nets.presets.base import ROLES, Preset
from growgan.nets.presets.gan import DenseFamily
from growgan.objectives import LOSSES, make_objective
from growgan.run.validation import validate_settings
from growgan.sampling.latents import truncate_latents
from growgan.training.gan import Gan, sample_latents
from growgan.training.loop import set_learning_rates
from growgan.training.runtime import Runtime, describe_machine
from growgan.training.step import training_step

RESULTS = Path(__file__).parent / "results" / "gaussian_mixture_2d.jsonl"
MODES = torch.cartesian_prod(*[torch.arange(-4.0, 5.0, 2.0)] * 2)  # [25, 2]
MODE_STD = 0.05
NUM_SAMPLES = 2_500
NUM_CHECKPOINTS = 24  # of the learning curve
BASELINE_METHOD = "non-saturating"
R1_R2_METHOD = "relativistic, R1 and R2"
SLOW_GENERATOR_METHOD = "wasserstein, slow G"  # the critic stays close to its optimum
TABLE_COLUMNS = {  # metric: (multiplier, digits)
    "modes": (1, 1),
    "effective_modes": (1, 1),
    "high_quality_fraction": (100, 0),
    "distance_to_mode": (1, 2),
    "sliced_wasserstein": (1, 2),
}
TRUNCATION_THRESHOLDS = (2.0, 1.0, 0.5, 0.25, 0.1)


def critic_settings(penalty_weight: float) -> dict[str, Any]:
    """Return the settings of a Wasserstein critic with a gradient penalty."""
    return {"regularizers": {"gp": {"weight": penalty_weight}}, "critic_steps": 5}


METHODS: dict[str, dict[str, Any]] = {
    **{entry.name: {"loss": entry.name} for entry in LOSSES},
    "wasserstein": {"loss": "wasserstein", **critic_settings(0.1)},
    SLOW_GENERATOR_METHOD: {
        "loss": "wasserstein",
        "lr_cooldown": 0.0,
        "optimizer": {"lr": 3e-5, "discriminator_lr": 1e-3},
        **critic_settings(1.0),
    },
    # k has to change fast in these short runs. A wide D would reconstruct every point.
    "began": {
        "loss": "began",
        "loss_options": {"k_learning_rate": 1.0},
        "network": {"discriminator_width": 16},
    },
    R1_R2_METHOD: {
        "loss": "relativistic",
        "regularizers": {name: {"weight": 0.003, "interval": 1} for name in ("r1", "r2")},
    },
    "minibatch discrimination": {
        "loss": BASELINE_METHOD,
        "network": {"minibatch_discrimination_kernels": 20},
    },
    "replay": {"loss": BASELINE_METHOD, "regularizers": {"replay": {}}},
    "feature-matching": {"loss": BASELINE_METHOD, "regularizers": {"feature-matching": {}}},
}


class PointOutput(DenseToImage):
    """The dense image head without tanh, since points are not bounded."""

    def forward(self, h: Tensor, style: Tensor | None = None) -> Tensor:
        """Return points [N, C, 1, 1]."""
        return self.conv(h).view(-1, *self.image_shape)


ENDS.register("point", "Dense networks without tanh at the output.")(
    NetworkEnds(DenseStem, PointOutput, DenseFromImage, DenseEpilogue)
)


class PointFamily(DenseFamily):
    """Dense networks for points."""

    ends = "point"


POINT_PRESET = Preset(PointFamily(), {})


class PointBatches:
    """Replaces the batches of a data set: new points as a function of seed and position."""

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed

    def batch_at(self, position: int) -> tuple[Tensor, Tensor | None]:
        """Return points [B, 2, 1, 1] and no labels."""
        rng = torch.Generator().manual_seed(self.seed << 40 | position)
        modes = MODES[torch.randint(len(MODES), (self.batch_size,), generator=rng)]
        points = modes + MODE_STD * torch.randn(self.batch_size, 2, generator=rng)
        return points[:, :, None, None], None

    def source_at(self, position: int) -> None:
        """Return no source images."""


class PointRuntime(Runtime):
    """A runtime for batches that are float points already."""

    def to_float_images(self, images: Tensor, downsample_factor: int = 1) -> Tensor:
        """Return the points unchanged."""
        return images


def method_settings(method: str, seed: int) -> Settings:
    """Return the settings of a method: dense networks with four hidden layers of 128 units."""
    defaults = {
        "preset": "gan",
        "seed": seed,
        "batch_size": 128,
        "lr_cooldown": 0.3,
        "regularizers": {},
        "optimizer": {"lr": 1e-3, "beta1": 0.5, "beta2": 0.999, "lr_decay_images": None},
        "network": {
            "block": "dense",
            "norm": "none",
            "mbstd_group_size": 0,
            "parametrization": "none",
            "lr_scaling": "none",
            "latent_dim": 32,
            "width": 128,
            "discriminator_width": 128,
            "layers_per_resolution": 3,
        },
    }
    return validate_settings(make_settings(defaults, METHODS[method]))


def train_and_evaluate(method: str, seed: int, generator_steps: int) -> dict[str, Any]:
    """Train one GAN and return its metrics."""
    torch.set_num_threads(1)
    settings = method_settings(method, seed)
    g, d = (POINT_PRESET.network_spec(role, settings.network, 2, (1, 1)) for role in ROLES)
    gan = Gan.create(g, d, settings.optimizer, seed=seed)
    objective = make_objective(settings)
    runtime = PointRuntime(torch.device("cpu"), use_bfloat16=False)
    batches = cast(Batches, PointBatches(settings.batch_size, seed))
    steps = generator_steps * settings.critic_steps
    # Early in training, where more changes, the checkpoints are closer together.
    checkpoints = {round(steps * 0.8**k) for k in range(NUM_CHECKPOINTS)}
    curve, losses = [], []
    for step in range(steps):
        set_learning_rates(gan, settings, step / steps)
        terms = training_step(gan, batches, objective=objective, settings=settings, runtime=runtime)
        losses.append(terms["loss_discriminator"])
        if step + 1 in checkpoints:
            curve.append({**evaluate_modes(gan), "loss": float(torch.stack(losses).mean())})
            losses.clear()
    return {
        "method": method,
        "seed": seed,
        **evaluate_modes(gan),
        "curve": curve,
        "by_truncation": {
            str(threshold): evaluate_modes(gan, threshold) for threshold in TRUNCATION_THRESHOLDS
        },
    }


@torch.no_grad()
def evaluate_modes(gan: Gan, truncation: float | None = None) -> dict[str, float]:
    """Return the metrics of samples, with truncated latents if a threshold is given."""
    z = sample_latents(NUM_SAMPLES, gan.ema.spec.latent_dim, 99)
    points = gan.ema(truncate_latents(z, truncation, 99) if truncation else z).flatten(1)
    distances, nearest = torch.cdist(points, MODES).min(1)
    is_high_quality = distances < 3 * MODE_STD
    frequencies = torch.bincount(nearest, minlength=len(MODES)) / NUM_SAMPLES
    real_points, _ = PointBatches(NUM_SAMPLES, 99).batch_at(0)
    return {
        "modes": len(nearest[is_high_quality].unique()),
        "effective_modes": float(torch.special.entr(frequencies).sum().exp()),
        "high_quality_fraction": float(is_high_quality.float().mean()),
        "distance_to_mode": float(distances.mean()),
        "sliced_wasserstein": sliced_wasserstein_2d(points, real_points.flatten(1)),
    }


def sliced_wasserstein_2d(x: Tensor, y: Tensor) -> float:
    """Return the Wasserstein distance of points [N, 2], as the mean over 64 directions."""
    angles = torch.arange(64) * torch.pi / 64
    directions = torch.stack([angles.cos(), angles.sin()])
    x, y = ((points @ directions).sort(0).values for points in (x, y))
    return float((x - y).abs().mean())


def tables(rows: list[dict[str, Any]]) -> str:
    """Return all tables as Markdown. Values are mean ± standard deviation over seeds."""
    rows_by_method = {m: [row for row in rows if row["method"] == m] for m in METHODS}
    rows_by_method = {method: rows for method, rows in rows_by_method.items() if rows}
    parts = [table("method", rows_by_method)]
    if critic_rows := rows_by_method.get(SLOW_GENERATOR_METHOD):
        parts.append(
            "Rank correlations over the training of WGAN with a slow G:\n\n"
            + correlations(critic_rows)
        )
    for method in (BASELINE_METHOD, R1_R2_METHOD):
        if method_rows := rows_by_method.get(method):
            rows_by_threshold = {"none": method_rows}
            for threshold in map(str, TRUNCATION_THRESHOLDS):
                rows_by_threshold[threshold] = [
                    row["by_truncation"][threshold] for row in method_rows
                ]
            parts.append(table(f"truncation ({method})", rows_by_threshold))
    return "\n\n".join(parts)


def table(first_column: str, groups: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the metrics of each group of rows."""
    lines = [
        f"| {first_column} | seeds | modes found (of 25) | effective modes | high quality, % "
        "| distance to mode | sliced Wasserstein |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in groups.items():
        cells = [
            mean_and_std([multiplier * row[key] for row in rows], digits)
            for key, (multiplier, digits) in TABLE_COLUMNS.items()
        ]
        lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def correlations(rows: list[dict[str, Any]]) -> str:
    """Return rank correlations of the critic's estimate, its negative loss, with the metrics."""
    lines = ["| estimate against | seeds | rank correlation |", "|---|---|---|"]
    for key, name in (
        ("sliced_wasserstein", "sliced Wasserstein distance"),
        ("high_quality_fraction", "fraction of samples of high quality"),
    ):
        values = [
            statistics.correlation(
                doubled_ranks([-point["loss"] for point in row["curve"]]),
                doubled_ranks([point[key] for point in row["curve"]]),
            )
            for row in rows
        ]
        lines.append(f"| {name} | {len(rows)} | {mean_and_std(values, 2)} |")
    return "\n".join(lines)


def doubled_ranks(values: list[float]) -> list[int]:
    """Return twice the rank of each value; ties share their mean rank."""
    return [
        sum(other < value for other in values) + sum(other <= value for other in values)
        for value in values
    ]


def run_study(
    description: str,
    function: Callable[[str, int, int], dict[str, Any]],
    methods: Mapping[str, Any],
    results: Path,
    make_table: Callable[[list[dict[str, Any]]], str],
    *,
    num_seeds: int,
    steps: int,
) -> None:
    """Read the command line, compute the missing rows, and print the table of all rows.

    Args:
        description: text of the command's help.
        function: computes the row of (method, seed, steps).
        methods: the methods to compare.
        results: JSONL file with the rows.
        make_table: formats the rows as Markdown.
        num_seeds: default number of seeds.
        steps: training steps of G.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="methods to run; all by default")
    parser.add_argument("--seeds", type=int, default=num_seeds, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel runs")
    args = parser.parse_args()
    if set(args.only) - set(methods):
        parser.error(f"--only must name some of: {', '.join(methods)}")
    rows = read_rows(results)
    saved = {(row["method"], row["seed"]) for row in rows}
    selected = [method for method in methods if not args.only or method in args.only]
    missing = [
        (method, seed, steps)
        for seed in range(args.seeds)
        for method in selected
        if (method, seed) not in saved
    ]
    rows += compute_rows(function, missing, num_jobs=args.jobs, path=results, fresh_processes=False)
    print(f"{describe_machine()}\n\n{make_table(sorted(rows, key=lambda row: row['seed']))}")


if __name__ == "__main__":
    run_study(
        __doc__,
        train_and_evaluate,
        methods=METHODS,
        results=RESULTS,
        make_table=tables,
        num_seeds=5,
        steps=12_000,
    )
