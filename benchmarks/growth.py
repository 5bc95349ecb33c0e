"""Compare growth policies, training recipes and presets at equal wall-clock time.

    python benchmarks/growth.py run --minutes 5 --jobs 2    # the missing experiments
    python benchmarks/growth.py table                       # as in docs/RESULTS.md

An experiment is one run: a method, a data set, a budget and a seed. Its results are appended to
``benchmarks/results/growth.jsonl``; experiments with saved results are skipped. With ``--jobs``,
experiments run in parallel, each on its share of the cores.

``--group`` selects the methods:

- policies: the growth policies.
- widths: fixed networks with the widths that the dynamic policy finds.
- random-networks: random fixed networks.
- dynamic-variants: variants of the dynamic policy.
- recipes: loss, penalties, learning rate and layers of a fixed network.
- conditionings: conditioning methods, also evaluated within classes.
- began-gammas: whether a larger gamma of BEGAN gives more diverse images.
- presets: every preset, grown from its small settings.

The distances use the features of an evaluator that the search never sees: a classifier with a seed
of its own, trained on the labels. The evaluator and the feature extractor of the search are trained
once, before the clock starts (about 20 s for each data set).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import compute_rows, mean_and_std, read_rows
from torch import Tensor

import growgan as gg
from growgan.artifacts.per_class_ensemble import PerClassEnsemble
from growgan.config import Settings, make_settings
from growgan.data import ImageSet, default_cache
from growgan.execution.scoring import build_extractor
from growgan.metrics.features.own import load_or_train_own_extractor
from growgan.metrics.functional.frechet_distance import frechet_distance_of_moments
from growgan.metrics.functional.intra_class_frechet_distance import intra_class_frechet_distance
from growgan.metrics.functional.moments import Moments
from growgan.metrics.functional.sliced_wasserstein import sliced_wasserstein
from growgan.metrics.image_statistics import CachedImageStatistics
from growgan.nets.presets import PRESETS
from growgan.objectives.conditioning import CONDITIONINGS
from growgan.sampling.trained_generator import TrainedGenerator
from growgan.search.budget import Budget
from growgan.training.runtime import describe_machine

RESULTS = Path(__file__).parent / "results" / "growth.jsonl"
RUN_DIR = Path("runs/growth")
# The evaluators are part of the repository. Trained again on another machine or with other threads,
# an evaluator with the same seed gives distances that differ by 5 %; with another seed, by 30 %.
EVALUATOR_DIR = Path(__file__).parent / "evaluators"
EVALUATOR_SEED = 7_777
NUM_SAMPLES = 10_000
NUM_DRAWS = 5  # of NUM_SAMPLES samples; the distance of a single draw varies by a seventh
DATASETS = {  # name: (source, side in pixels)
    "fashion-mnist": ("fashion-mnist", 32),
    "glyphs-rgb": ("glyphs:rgb", 64),
}
POLICIES = ("dynamic", "progressive", "fixed", "random")
DYNAMIC_VARIANTS: dict[str, dict[str, Any]] = {
    "dynamic, without autoscale": {"autoscale": False},
    "dynamic, three images per parameter": {"images_per_parameter": 3.0},
    "dynamic, start at the target resolution": {"start_resolution": 1024},
    "dynamic, slow growth from 4x4": {
        "start_resolution": 4,
        "max_fraction_per_resolution": 0.15,
        "plateau_gain": 0.1,
    },
    "dynamic, no trials": {"trial_budget_fraction": 0.0},
    "dynamic, trials with any budget": {"images_per_parameter": 0.01, "min_trial_images": 100},
    "dynamic, three growths per round": {
        "trials_per_round": 3,
        "images_per_parameter": 0.01,
        "min_trial_images": 100,
    },
}
# The widths that the dynamic policy chooses with budgets of 5 and 20 minutes, fixed from the start.
# They show the cost of its first segment and of its planning.
FIXED_WIDTHS = {
    "fixed, G and D 2x as wide": {"width": 64, "discriminator_width": 64},
    "fixed, G 4x and D 2x as wide": {"width": 128, "discriminator_width": 64},
}
RANDOM_NETWORKS = tuple(f"random-network-{k}" for k in range(8))
WGAN_GP = ("regularizers=gp,drift", "loss=wasserstein")
RECIPES: dict[str, tuple[str, ...]] = {
    "default: relativistic, lazy R1 and R2": (),
    "R1 and R2 at every step, as in R3GAN": (
        "regularizers.r1.interval=1",
        "regularizers.r2.interval=1",
    ),
    "R1 and R2 with a tenth of the weight": (
        "regularizers.r1.weight=0.2",
        "regularizers.r2.weight=0.2",
    ),
    "non-saturating, lazy R1": ("loss=non-saturating", "regularizers=r1"),
    "WGAN-GP and drift": WGAN_GP,
    "WGAN-GP and drift, learning rate 1e-3 (PGGAN)": (*WGAN_GP, "optimizer.lr=1e-3"),
    "constant learning rate": ("optimizer.lr_decay_images=null",),
    "half the learning rate": ("optimizer.lr=1e-2",),
    "equalized learning rate": ("network.lr_scaling=none",),
    "momentum 0.5": ("optimizer.beta1=0.5",),
    "nearest upsampling (conv)": ("network.block=conv",),
    "residual layers": ("network.block=residual",),
    "twice the width": ("network.width=64",),
    "float32": ("precision=float32",),
    "batch size 64": ("batch_size=64",),
    "batch size 128": ("batch_size=128",),
}
CONDITIONINGS_COMPARED = {
    entry.name: (f"conditioning={entry.name}",)
    for entry in CONDITIONINGS
    if entry.value.needs_labels and not entry.value.needs_source
} | {
    "p2gan, adaptive": ("conditioning=p2gan", "conditioning_options.adaptive_weighting=1"),
    "projection, mismatched labels": (
        "conditioning=projection",
        "conditioning_options.mismatch_weight=1",
    ),
}
# D is an autoencoder, which fully connected layers learn fastest. With narrow layers, G only
# produces a few blurred images.
BEGAN = (
    "preset=gan",
    "loss=began",
    "regularizers=none",
    "loss_options.k_learning_rate=0.1",  # for thousands of steps instead of hundreds of thousands
    "optimizer.lr=5e-4",
    "health_checks=false",  # low gammas collapse, and the benchmark should show it
    "network.block=dense",
    "network.width=512",
    "network.discriminator_width=512",
    "network.layers_per_resolution=1",
    "network.latent_dim=100",
    "network.norm=none",
    "network.parametrization=none",
    "network.lr_scaling=none",
    "network.mbstd_group_size=0",
)
BEGAN_GAMMAS = {
    f"began, gamma {gamma}": (*BEGAN, f"loss_options.gamma={gamma}")
    for gamma in (0.5, 0.7, 0.9, 1.0)
}
PRESET_NAMES = tuple(entry.name for entry in PRESETS)
OVERRIDES = RECIPES | CONDITIONINGS_COMPARED | BEGAN_GAMMAS
GROUPS: dict[str, tuple[str, ...]] = {
    "policies": POLICIES,
    "widths": tuple(FIXED_WIDTHS),
    "random-networks": RANDOM_NETWORKS,
    "dynamic-variants": tuple(DYNAMIC_VARIANTS),
    "recipes": tuple(RECIPES),
    "conditionings": tuple(CONDITIONINGS_COMPARED),
    "began-gammas": tuple(BEGAN_GAMMAS),
    "presets": PRESET_NAMES,
}


@dataclass(frozen=True)
class Experiment:
    """One run."""

    method: str
    data: str
    minutes: float
    seed: int


def random_network_settings(seed: int) -> dict[str, Any]:
    """Return the settings of a random network, within the range of common choices."""
    rng = random.Random(seed)
    return {
        "width": rng.choice([16, 32, 64, 128]),
        "discriminator_width": rng.choice([16, 32, 64, 128]),
        "full_width_scale": rng.choice([2, 4, 8]),
        "layers_per_resolution": rng.choice([1, 2]),
        "kernel_size": rng.choice([3, 5]),
        "block": rng.choice(["strided", "conv", "residual"]),
    }


def experiments(
    methods: Iterable[str], minutes: float, data: str, num_seeds: int
) -> Iterator[Experiment]:
    """Yield the experiments of one budget, seed by seed, so that the table fills evenly."""
    for seed in range(num_seeds):
        for method in methods:
            yield Experiment(method, data, minutes, seed)


def experiment_settings(experiment: Experiment, threads: int) -> Settings:
    """Return the settings of an experiment."""
    method = experiment.method
    values: dict[str, Any] = {"seed": experiment.seed, "threads": threads, "policy": "fixed"}
    small_settings: Mapping[str, Any] = {}
    if method in RANDOM_NETWORKS:
        values["network"] = random_network_settings(RANDOM_NETWORKS.index(method))
    elif method in FIXED_WIDTHS:
        values["network"] = FIXED_WIDTHS[method]
    elif method in DYNAMIC_VARIANTS:
        values |= {"policy": "dynamic", "growth": DYNAMIC_VARIANTS[method]}
    elif method in POLICIES:
        values["policy"] = method
    elif method in PRESET_NAMES:
        small_settings = PRESETS[method].small_settings
        values |= {"policy": "dynamic", "preset": method}
    return make_settings(small_settings, values, overrides=OVERRIDES.get(method, ()))


def run_experiment(experiment: Experiment, threads: int) -> dict[str, Any]:
    """Run an experiment and return its results."""
    torch.set_num_threads(threads)  # also for the evaluator, as other experiments may be running
    data = load_data(experiment.data)
    name = re.sub("[^a-z0-9]+", "-", experiment.method.lower())
    out = RUN_DIR / f"{experiment.data}-{experiment.minutes:g}m-{name}-{experiment.seed}"
    shutil.rmtree(out, ignore_errors=True)
    run = gg.grow(
        data,
        out=out,
        budget=f"{experiment.minutes * 60:g}s",
        settings=experiment_settings(experiment, threads),
    )
    events = run.events
    candidates = {event["id"]: event for event in events if event["event"] == "candidate"}
    best = candidates[run.best_id]
    return {
        **asdict(experiment),
        **evaluate_generator(run.best, data),
        "images": best["images"],
        "candidates": len(candidates),
        "elapsed": events[-1]["elapsed"],
        "cost": events[-1]["cost"],
        "generator_parameters": best["generator_parameters"],
        "discriminator_parameters": best["discriminator_parameters"],
        "growths": _best_lineage_growths(candidates, run.best_id),
        "machine": describe_machine(),
        "threads": threads,
        "evaluator_fingerprint": _evaluator(data).fingerprint,
        "commit": _commit(),
    }


def _commit() -> str:
    """Return the current commit, marked if the code has been changed since."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("diff", "--name-only", "HEAD", "--", "src", "benchmarks/growth.py")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def _best_lineage_growths(candidates: Mapping[str, dict[str, Any]], best_id: str) -> list[str]:
    """Return the growths from the root to the best candidate."""
    growths: list[str] = []
    current: str | None = best_id
    while current:
        event = candidates[current]
        if event["growth"] != "no growth":
            growths.insert(0, event["growth"])
        current = event["parent"]
    return growths


def evaluate_generator(
    model: TrainedGenerator | PerClassEnsemble,
    data: ImageSet,
    num_draws: int = NUM_DRAWS,
    num_samples: int = NUM_SAMPLES,
) -> dict[str, float]:
    """Return metrics of samples with the evaluator's features, as means over draws.

    They are the Fréchet distance ("fd"), the sliced Wasserstein distance ("swd"), the variance of
    the features relative to that of real images ("variance_ratio") and, for conditional models, the
    mean Fréchet distance within classes ("intra_fd").
    """
    extractor = _evaluator(data)
    real_moments = CachedImageStatistics(
        data.images,
        name="real images",
        get_extractor=lambda: extractor,
        cache_key=data.fingerprint,
        cache_dir=default_cache(),
    ).moments
    real_images = torch.from_numpy(np.array(data.images[:num_samples]))
    values: dict[str, list[float]] = {"fd": [], "swd": [], "variance_ratio": [], "intra_fd": []}
    for seed in range(99, 99 + num_draws):
        samples = model.sample(num_samples, seed=seed).transpose(0, 3, 1, 2)
        images = torch.from_numpy(samples.copy())
        features = extractor(images)
        moments = Moments.from_features(features)
        variance_ratio = moments.covariance.trace() / real_moments.covariance.trace()
        swd = sliced_wasserstein(images[: len(real_images)], real_images, num_repeats=1, seed=seed)
        values["fd"].append(frechet_distance_of_moments(moments, real_moments))
        values["variance_ratio"].append(float(variance_ratio))
        values["swd"].append(swd.mean)
        if model.classes:
            labels = torch.from_numpy(model.sample_labels(num_samples))
            values["intra_fd"].append(_intra_class_frechet(features, labels, data, extractor))
    return {name: statistics.mean(draws) for name, draws in values.items() if draws}


def _intra_class_frechet(features: Tensor, labels: Tensor, data: ImageSet, extractor: Any) -> float:
    """Return the mean Fréchet distance within classes from as many real images as samples."""
    assert data.labels is not None
    real_features = extractor(torch.from_numpy(np.array(data.images[: len(labels)])))
    real_labels = torch.from_numpy(np.array(data.labels[: len(labels)]))
    return intra_class_frechet_distance(features, labels, real_features, real_labels).value


def _evaluator(data: ImageSet) -> Any:
    return load_or_train_own_extractor(
        data.images,
        data.labels,
        fingerprint=data.fingerprint,
        cache_dir=EVALUATOR_DIR,
        seed=EVALUATOR_SEED,
    )


def finished_experiments() -> dict[Experiment, dict[str, Any]]:
    """Return the saved results."""
    return {
        Experiment(row["method"], row["data"], row["minutes"], row["seed"]): row
        for row in read_rows(RESULTS)
    }


def load_data(name: str) -> ImageSet:
    """Return a data set by its name in the table."""
    source, side = DATASETS[name]
    return gg.load_images(source, resolution=side)


def run_missing(selected: list[Experiment], num_jobs: int) -> None:
    """Run the experiments without saved results, ``num_jobs`` at a time."""
    data = load_data(selected[0].data)
    budget = Budget(seconds=60 * selected[0].minutes)
    # Train the feature extractor of the search and the evaluator before any clock starts.
    build_extractor(data, budget, torch.device("cpu"))
    _evaluator(data)
    saved, threads = finished_experiments(), max(1, (os.cpu_count() or 1) // num_jobs)
    missing = [(experiment, threads) for experiment in selected if experiment not in saved]
    for row in compute_rows(run_experiment, missing, num_jobs=num_jobs, path=RESULTS):
        print(
            f"{row['method']}, {row['data']}, {row['minutes']:g} minutes, seed {row['seed']}: "
            f"fd {row['fd']:.3f}, swd {row['swd']:.2f}, {row['images']:,} images",
            flush=True,
        )


def table() -> str:
    """Return the tables as Markdown. Values are mean ± standard deviation over seeds."""
    rows = list(finished_experiments().values())
    parts = []
    for data, minutes in sorted({(row["data"], row["minutes"]) for row in rows}):
        part = [row for row in rows if (row["data"], row["minutes"]) == (data, minutes)]
        lines = [
            f"\n**{data}, {minutes:g} minutes**\n",
            "| method | seeds | FD | SWD | images | candidates |",
            "|---|---|---|---|---|---|",
        ]
        for method in (*POLICIES, *FIXED_WIDTHS, *DYNAMIC_VARIANTS, *OVERRIDES, *PRESET_NAMES):
            method_rows = [row for row in part if row["method"] == method]
            if method_rows:
                lines.append(_table_row(method, method_rows))
        for name, network_rows in _random_network_rows(part).items():
            lines.append(_table_row(name, network_rows))
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _random_network_rows(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the best and the median random network of each seed."""
    best, median = [], []
    num_networks = 0
    for seed in sorted({row["seed"] for row in rows}):
        ranked = sorted(
            (row for row in rows if row["method"] in RANDOM_NETWORKS and row["seed"] == seed),
            key=lambda row: row["fd"],
        )
        best += ranked[:1]
        middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
        if middle:
            keys = ("fd", "swd", "images", "candidates")
            median.append({key: statistics.mean(row[key] for row in middle) for key in keys})
        num_networks = max(num_networks, len(ranked))
    if not num_networks:
        return {}
    return {f"best of {num_networks} random networks": best, "median random network": median}


def _table_row(name: str, rows: list[dict[str, Any]]) -> str:
    def cell(key: str, digits: int) -> str:
        return mean_and_std([row[key] for row in rows], digits)

    distances = cell("fd", 2)
    for key, label in (("intra_fd", "within classes"), ("variance_ratio", "variance ratio")):
        if all(key in row for row in rows):
            distances += f", {label} {cell(key, 2)}"
    images = statistics.mean(row["images"] for row in rows)
    candidates = statistics.mean(row["candidates"] for row in rows)
    return (
        f"| {name} | {len(rows)} | {distances} | {cell('swd', 1)} "
        f"| {images / 1000:.0f}k | {candidates:.0f} |"
    )


def main() -> None:
    """Read the command line; run the missing experiments or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--minutes", type=float, default=5, help="budget of each run")
    parser.add_argument(
        "--data", choices=sorted(DATASETS), default="fashion-mnist", help="data set"
    )
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--group", choices=GROUPS, default="policies", help="methods to compare")
    parser.add_argument("--only", nargs="*", default=[], help="methods to run; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="parallel experiments")
    args = parser.parse_args()
    if args.command == "table":
        print(table())
        return
    group = GROUPS[args.group]
    methods = [method for method in group if not args.only or method in args.only]
    if not methods:
        parser.error(f"--only must name some of: {', '.join(group)}")
    run_missing([*experiments(methods, args.minutes, args.data, args.seeds)], args.jobs)


if __name__ == "__main__":
    main()
