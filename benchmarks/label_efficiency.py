"""Compare ways to use few labels, and one conditional GAN with one GAN per class.

    python benchmarks/label_efficiency.py label-fractions --jobs 2   # about 40 minutes on two cores
    python benchmarks/label_efficiency.py per-class                  # about 25 minutes per seed

``label-fractions``: on Fashion-MNIST at 32x32 pixels, a GAN is trained without labels for five
minutes. Then, with 1, 10 and 100 % of the labels, it is turned into a conditional GAN within two
minutes: by InRep+ in front of the frozen generator (``reprogram``), or by training all weights with
a projection discriminator (``finetune``). For comparison, a conditional GAN is trained from scratch
on the labeled images for seven minutes (``scratch``).

``per-class``: a Wasserstein GAN for each class, one minute of one core each, compared with one
conditional GAN trained for ten minutes with the same loss, and with the default loss. Two classes
are trained at a time, so the GANs per class take half of the wall-clock time.

The distances use the evaluator of growth.py: to all real images, and the mean within classes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import mean_and_std
from growth import evaluate_generator, load_data

import growgan as gg
from growgan.artifacts.per_class_ensemble import PerClassEnsemble
from growgan.config import Settings, make_settings
from growgan.nets.presets import PRESETS
from growgan.training.runtime import describe_machine

RESULTS = Path(__file__).parent / "results" / "label_efficiency.json"
RUN_DIR = Path("runs/labels")
DATASET = "fashion-mnist"
NUM_CLASSES = 10
LABEL_FRACTIONS = (0.01, 0.1, 1.0)
METHODS = ("reprogram", "finetune", "scratch")
WASSERSTEIN = {"loss": "wasserstein", "regularizers": "gp,drift"}
PRETRAIN_SECONDS = 300
FINETUNE_SECONDS = 120
REPROGRAM_LR = 2e-3  # of the invertible map; its default is too low for two minutes
TOTAL_CORE_SECONDS = 600


def pretrained_run(seed: int, threads: int) -> gg.Run:
    """Return the run without labels; train it if it does not exist."""
    out = RUN_DIR / f"pretrained-{seed}"
    if out.exists():
        return gg.Run.open(out)
    settings = {"policy": "fixed", "seed": seed, "threads": threads}
    return gg.grow(load_data(DATASET), out=out, budget=f"{PRETRAIN_SECONDS}s", settings=settings)


def train_and_evaluate(
    method: str, label_fraction: float, seed: int, threads: int
) -> dict[str, Any]:
    """Train one GAN with a fraction of the labels and return its metrics."""
    torch.set_num_threads(threads)
    data, out = load_data(DATASET), RUN_DIR / f"{method}-{label_fraction:g}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    settings: dict[str, Any] = {
        "seed": seed,
        "threads": threads,
        "labels": {"fraction": label_fraction},
    }
    if method == "scratch":
        settings |= {"policy": "fixed", "conditioning": "projection"}
        budget = f"{PRETRAIN_SECONDS + FINETUNE_SECONDS}s"
        run = gg.grow(data, out=out, budget=budget, settings=settings)
    else:
        if method == "reprogram":
            settings["optimizer"] = {"lr": REPROGRAM_LR}
        run = gg.finetune(
            pretrained_run(seed, threads),
            data,
            method=method,
            out=out,
            budget=f"{FINETUNE_SECONDS}s",
            settings=settings,
        )
    return {
        "method": method,
        "label_fraction": label_fraction,
        "seed": seed,
        "machine": describe_machine(),
        **evaluate_generator(run.best, data),
    }


def train_ensemble(seed: int) -> PerClassEnsemble:
    """Train one GAN per class, two at a time, with ``growgan per-class``."""
    out = RUN_DIR / f"per-class-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    preset = PRESETS["pggan"]
    command = [sys.executable, "-m", "growgan", "per-class", "pggan", DATASET]
    command += ["--resolution", "32", "--out", str(out)]
    command += ["--budget", f"{TOTAL_CORE_SECONDS // NUM_CLASSES}s", "--seed", str(seed)]
    command += ["--jobs", "2", "--set", "threads=1"]
    small, published = (
        make_settings(preset.small_settings),
        make_settings(preset.published_settings),
    )
    for override in setting_overrides(small, published):
        command += ["--set", override]
    subprocess.run(command, check=True)
    return PerClassEnsemble(out)


def setting_overrides(target: Settings, defaults: Settings) -> Iterator[str]:
    """Yield the overrides for network, optimizer, EMA and batch size; the loss is left out."""
    for key in ("batch_size", "lr_cooldown"):
        yield f"{key}={getattr(target, key)}"
    for group in ("network", "optimizer", "ema"):
        default_values = getattr(defaults, group).model_dump()
        for key, value in getattr(target, group).model_dump().items():
            if value != default_values[key]:
                yield f"{group}.{key}={'null' if value is None else value}"


def compare_per_class(seed: int) -> Iterator[dict[str, Any]]:
    """Yield the metrics of one GAN per class, and of one conditional GAN with two losses."""
    data = load_data(DATASET)
    methods: dict[str, Callable[[], gg.Run | PerClassEnsemble]] = {
        "one GAN per class": lambda: train_ensemble(seed)
    }
    for name, loss in (("same loss", WASSERSTEIN), ("default loss", {})):
        out = RUN_DIR / f"conditional-{name.replace(' ', '-')}-{seed}"
        shutil.rmtree(out, ignore_errors=True)
        settings = {"policy": "fixed", "conditioning": "projection", "threads": 1, "seed": seed}
        methods[f"one conditional GAN, {name}"] = partial(
            gg.grow, data, out=out, budget=f"{TOTAL_CORE_SECONDS}s", settings={**settings, **loss}
        )
    for method, train in methods.items():
        start = time.perf_counter()
        result = train()
        seconds = time.perf_counter() - start
        runs = (
            [result.run(label) for label in range(NUM_CLASSES)]
            if isinstance(result, PerClassEnsemble)
            else [result]
        )
        candidates = [
            [event for event in run.events if event["event"] == "candidate"] for run in runs
        ]
        # The last candidate of a run has seen all images of the run.
        images = sum(run_candidates[-1]["images"] for run_candidates in candidates)
        train_seconds = sum(
            event["train_seconds"] for run_candidates in candidates for event in run_candidates
        )
        yield {
            "method": method,
            "seed": seed,
            "seconds": seconds,
            "machine": describe_machine(),
            "images_per_second": images / train_seconds,
            **evaluate_generator(result.best, data),
        }


def per_class_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of ``per-class`` as Markdown."""
    lines = [
        "| method | seeds | FD within classes | FD | images/s while training "
        "| wall-clock time, minutes |",
        "|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        method_rows = [row for row in rows if row["method"] == method]
        cells = [
            mean_and_std([row["intra_fd"] for row in method_rows], 2),
            mean_and_std([row["fd"] for row in method_rows], 2),
            mean_and_std([row["images_per_second"] for row in method_rows], 0),
            mean_and_std([row["seconds"] / 60 for row in method_rows], 1),
        ]
        lines.append(f"| {method} | {len(method_rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def label_fraction_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of ``label-fractions`` as Markdown; FD within classes / FD."""
    lines = ["| labels | " + " | ".join(METHODS) + " |", "|---" * (len(METHODS) + 1) + "|"]
    for label_fraction in LABEL_FRACTIONS:
        cells = []
        for method in METHODS:
            key = (method, label_fraction)
            cell_rows = [row for row in rows if (row["method"], row["label_fraction"]) == key]
            values = ([row[metric] for row in cell_rows] for metric in ("intra_fd", "fd"))
            cells.append(" / ".join(mean_and_std(metric, 2) for metric in values if metric))
        lines.append(f"| {label_fraction:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run_label_fractions(methods: list[str], num_seeds: int, num_jobs: int) -> list[dict[str, Any]]:
    """Return the rows of some methods for all label fractions."""
    threads = max(1, (os.cpu_count() or 1) // num_jobs)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_jobs, spawn, max_tasks_per_child=1) as pool:
        pretraining = [pool.submit(pretrained_run, seed, threads) for seed in range(num_seeds)]
        for future in pretraining:
            future.result()
        futures = [
            pool.submit(train_and_evaluate, method, label_fraction, seed, threads)
            for seed in range(num_seeds)
            for method in methods
            for label_fraction in LABEL_FRACTIONS
        ]
        return [future.result() for future in futures]


def main() -> None:
    """Read the command line, run the comparison, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("label-fractions", "per-class"))
    parser.add_argument(
        "--only",
        nargs="*",
        default=list(METHODS),
        choices=METHODS,
        help="methods of label-fractions to run; all by default",
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs of label-fractions")
    args = parser.parse_args()
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if args.command == "label-fractions":
        rows = run_label_fractions(args.only, args.seeds, args.jobs)
        rows += [row for row in saved.get("label_fractions", []) if row["method"] not in args.only]
        saved["label_fractions"], report = rows, label_fraction_table(rows)
    else:
        torch.set_num_threads(1)
        rows = [row for seed in range(args.seeds) for row in compare_per_class(seed)]
        saved["per_class"], report = rows, per_class_table(rows)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(saved, indent=1) + "\n")
    print(f"{describe_machine()}\n\n{report}")


if __name__ == "__main__":
    main()
