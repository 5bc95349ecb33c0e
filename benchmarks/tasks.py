"""Train every task on public data and compare it with its baselines.

    python benchmarks/tasks.py run --jobs 2                # all tasks; takes some hours
    python benchmarks/tasks.py run --only semi anogan      # some tasks
    python benchmarks/tasks.py table                       # print the results so far as Markdown

Each experiment is one run of ``growgan grow --task`` with the task's small settings, on one core,
within a time budget. The feature extractor of the score is trained before the clock starts. The
metrics are those that the run prints, on held-out images.

"L1 only" is the same run with such a large L1 weight that D has no influence. D is still trained;
without it, such a run would see about twice as many images in the same time.

Results are saved as they come. Experiments with saved results are skipped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import compute_rows, read_rows

from growgan.config import make_settings, merge_settings
from growgan.data import load_images
from growgan.execution.scoring import build_extractor
from growgan.search.budget import Budget
from growgan.tasks import parse_task, prepare_task_data, train_task
from growgan.training.runtime import describe_machine

RESULTS = Path(__file__).parent / "results" / "tasks.jsonl"
RUN_DIR = Path("runs/tasks")
COLOR_GLYPHS = "glyphs:rgb"
MASK_GLYPHS = "glyphs:mask"
GLYPHS = "glyphs"
FASHION_MNIST = "fashion-mnist"
L1_ONLY = {"regularizers": {"l1": {"weight": 1e4}}}
FEWER_SCORE_SAMPLES = {"score": {"num_samples": 1_000}}  # at 64 pixels, 5,000 take half the time
PROJECTION = {"conditioning": "source-projection"}
MISMATCHED_PAIRS = {"conditioning_options": {"mismatch_weight": 1.0}}
NO_STYLE_MIXING = {"network": {"style_mixing_prob": 0.0}}


class TaskExperiment(NamedTuple):
    """An experiment: a task, its data, and the settings that differ from the task's own."""

    name: str
    task: str
    sources: tuple[str, ...]
    side_pixels: int
    minutes: float
    overrides: dict[str, Any]
    num_seeds: int


PIX2PIX_VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("", {}),
    (", mismatched pairs", MISMATCHED_PAIRS),
    (", L1 only", L1_ONLY),
)
SRGAN_VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("", {}),
    (", projection", PROJECTION),
    (", L1 only", L1_ONLY),
)

EXPERIMENTS: dict[str, list[TaskExperiment]] = {
    "cyclegan": [
        TaskExperiment(
            "serif and sans",
            "cyclegan:aligned",
            ("glyphs:style=serif", "glyphs:style=sans"),
            side_pixels=32,
            minutes=20,
            overrides={},
            num_seeds=1,
        )
    ],
    "pix2pix": [
        TaskExperiment(
            f"{name}, {sources[0]}{suffix}",
            task,
            sources=sources,
            side_pixels=32,
            minutes=minutes,
            overrides=overrides,
            num_seeds=1,
        )
        for name, task, sources, minutes in (
            ("color", "pix2pix:color", (COLOR_GLYPHS,), 2),
            ("edges", "pix2pix:edges", (FASHION_MNIST,), 2),
            ("mask", "pix2pix", (MASK_GLYPHS, COLOR_GLYPHS), 6),
            # Here the target masks come from the renderer of the glyphs.
            ("segment", "pix2pix", (COLOR_GLYPHS, MASK_GLYPHS), 2),
        )
        for suffix, overrides in PIX2PIX_VARIANTS
    ],
    "srgan": [
        TaskExperiment(
            f"{source}, {side // 4} to {side}{suffix}",
            "srgan:4",
            sources=(source,),
            side_pixels=side,
            minutes=minutes,
            overrides={**FEWER_SCORE_SAMPLES, **overrides},
            num_seeds=1,
        )
        for source, side, minutes in ((FASHION_MNIST, 32, 3), (GLYPHS, 64, 5))
        for suffix, overrides in SRGAN_VARIANTS
    ],
    "text2image": [
        TaskExperiment(
            "two stages",
            "text2image",
            sources=("glyphs:captions",),
            side_pixels=32,
            minutes=12,
            overrides={},
            num_seeds=1,
        ),
        TaskExperiment(
            "direct",
            "text2image:direct",
            sources=("glyphs:captions",),
            side_pixels=32,
            minutes=12,
            overrides={},
            num_seeds=1,
        ),
    ],
    "semi": [
        TaskExperiment(
            f"{n} labels",
            f"semi:{n}",
            sources=(FASHION_MNIST,),
            side_pixels=32,
            minutes=4,
            overrides={},
            num_seeds=5,
        )
        for n in (100, 500, 1000)
    ],
    "anogan": [
        TaskExperiment(
            f"class {k}",
            f"anogan:{k}",
            sources=(FASHION_MNIST,),
            side_pixels=32,
            minutes=1,
            overrides={},
            num_seeds=1,
        )
        for k in range(10)
    ],
    "next-frame": [
        TaskExperiment(
            f"glyphs{suffix}",
            "next-frame:moving",
            sources=(GLYPHS,),
            side_pixels=32,
            minutes=20,
            overrides=overrides,
            num_seeds=1,
        )
        for suffix, overrides in (("", {}), (", L1 only", L1_ONLY))
    ],
    "augment": [
        TaskExperiment(
            f"{n} of each class",
            f"augment:{n}",
            sources=(FASHION_MNIST,),
            side_pixels=32,
            minutes=2,
            overrides={},
            num_seeds=3,
        )
        for n in (10, 100, 1000)
    ],
    "style": [
        TaskExperiment(
            f"garments{suffix}",
            "style",
            sources=(FASHION_MNIST,),
            side_pixels=32,
            minutes=6,
            overrides=overrides,
            num_seeds=1,
        )
        for suffix, overrides in (("", {}), (", no style mixing", NO_STYLE_MIXING))
    ],
}
Key = tuple[str, str, int]  # group, name, seed


def finished_rows() -> dict[Key, dict[str, Any]]:
    """Return the saved results."""
    return {(row["group"], row["name"], row["seed"]): row for row in read_rows(RESULTS)}


def train_task_experiment(group: str, experiment: TaskExperiment, seed: int) -> dict[str, Any]:
    """Train one task and return its metrics."""
    torch.set_num_threads(1)
    out = RUN_DIR / f"{group}-{experiment.name}-{seed}".replace(" ", "-").replace(",", "")
    shutil.rmtree(out, ignore_errors=True)
    image_sets = [
        load_images(source, resolution=experiment.side_pixels) for source in experiment.sources
    ]
    data = prepare_task_data(experiment.task, *image_sets)
    task, _, variant = parse_task(experiment.task)
    budget = Budget(seconds=60 * experiment.minutes)
    task_settings = merge_settings(task.small_settings(variant), {"seed": seed, "threads": 1})
    settings = make_settings(task_settings, experiment.overrides)
    # Train the feature extractor of the score before the clock starts.
    train_split, _ = task.split(data, variant)
    train_set = task.make_training_set(train_split, variant, seed)
    build_extractor(train_set, budget, torch.device("cpu"))
    run = train_task(experiment.task, data, out=out, budget=budget, settings=settings)
    return {
        "group": group,
        "name": experiment.name,
        "seed": seed,
        "minutes": experiment.minutes,
        "metrics": json.loads((out / "gallery" / "task.json").read_text()),
        "layers": len(run.best.load_network().spec.layers),
        "machine": describe_machine(),
    }


def table() -> str:
    """Return a Markdown table for each task. Values are mean ± standard deviation over seeds."""
    lines = []
    saved = finished_rows()
    for group, experiments in EXPERIMENTS.items():
        rows_by_name = {
            experiment.name: [
                row for (g, name, _), row in saved.items() if (g, name) == (group, experiment.name)
            ]
            for experiment in experiments
        }
        rows_by_name = {name: rows for name, rows in rows_by_name.items() if rows}
        if not rows_by_name:
            continue
        metrics = list(
            dict.fromkeys(
                metric
                for rows in rows_by_name.values()
                for row in rows
                for metric in row["metrics"]
            )
        )
        lines += [f"\n### {group}\n", "| experiment | minutes | " + " | ".join(metrics) + " |"]
        lines += ["|---|---|" + "---|" * len(metrics)]
        for name, rows in rows_by_name.items():
            cells = [
                _cell([row["metrics"][metric] for row in rows if metric in row["metrics"]])
                for metric in metrics
            ]
            lines.append(f"| {name} | {rows[0]['minutes']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    """Return mean ± standard deviation with three significant digits."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3g}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2g}"


def main() -> None:
    """Read the command line, run the missing experiments, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument(
        "--only",
        nargs="*",
        choices=list(EXPERIMENTS),
        default=list(EXPERIMENTS),
        help="tasks to run; all by default",
    )
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs of one thread each")
    args = parser.parse_args()
    if args.command == "run":
        saved = finished_rows()
        missing = [
            (group, experiment, seed)
            for group in args.only
            for experiment in EXPERIMENTS[group]
            for seed in range(experiment.num_seeds)
            if (group, experiment.name, seed) not in saved
        ]
        for row in compute_rows(train_task_experiment, missing, num_jobs=args.jobs, path=RESULTS):
            print(row, flush=True)
    print(f"{describe_machine()}\n{table()}")


if __name__ == "__main__":
    main()
