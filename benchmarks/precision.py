"""Compare training in float32 and in bfloat16, for every preset.

    python benchmarks/precision.py run --jobs 2      # about half an hour on two cores
    python benchmarks/precision.py table
    python benchmarks/precision.py penalties         # gradients of the penalties

Each preset's small settings are trained without growth for the same number of images, on
Fashion-MNIST at 32x32 pixels, with three seeds. The Fréchet distance uses the evaluator of
growth.py and 5,000 samples. The last column is the difference of the means divided by its standard
error; values beyond 2 would be significant.

``penalties`` compares the gradients of gradient penalties and path length regularization after a
short training.

Results are saved as they come. Saved results are not computed again.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Callable, Iterator
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from common import compute_rows, read_rows
from growth import evaluate_generator, load_data
from torch import Tensor

import growgan as gg
from growgan.config import make_settings
from growgan.data.batches import Batches
from growgan.nets.presets import PRESETS
from growgan.objectives import make_objective
from growgan.objectives.path_length import PathLengthRegularization
from growgan.objectives.regularizer import squared_gradient_norm
from growgan.objectives.step_context import StepContext
from growgan.search.history import SearchSpace
from growgan.training.gan import Gan, sample_latents
from growgan.training.runtime import describe_machine, make_runtime
from growgan.training.step import training_step

RESULTS = Path(__file__).parent / "results" / "precision.jsonl"
RUN_DIR = Path("runs/precision")
PRESET_NAMES = [entry.name for entry in PRESETS]
DATASET = "fashion-mnist"
PRECISIONS = ("float32", "bfloat16")
NUM_IMAGES = 12_000
NUM_SEEDS = 3
NUM_SAMPLES = 5_000
PENALTY_STEPS = 200  # training steps before the penalties are compared
Key = tuple[str, str, int]  # preset, precision, seed


def finished_rows() -> dict[Key, dict[str, Any]]:
    """Return the saved results."""
    return {(row["preset"], row["precision"], row["seed"]): row for row in read_rows(RESULTS)}


def train_and_evaluate(key: Key, images: int) -> dict[str, Any]:
    """Train one GAN and return its metrics."""
    preset, precision, seed = key
    torch.set_num_threads(1)
    data, out = load_data(DATASET), RUN_DIR / f"{preset}-{precision}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    settings = {
        "preset": preset,
        "precision": precision,
        "seed": seed,
        "threads": 1,
        "policy": "fixed",
        # The run's own scores are not used, so they should be cheap.
        "score": {"kind": "swd", "num_samples": 64},
    }
    run = gg.grow(data, out=out, images=images, settings=settings)
    candidates = [event for event in run.events if event["event"] == "candidate"]
    selections = [event for event in run.events if event["event"] == "select"]
    last_id = selections[-1]["survivors"][0]
    return {
        "preset": preset,
        "precision": precision,
        "seed": seed,
        "images": images,
        "train_seconds": sum(event["train_seconds"] for event in candidates),
        **evaluate_generator(run.candidate(last_id), data, num_draws=1, num_samples=NUM_SAMPLES),
        "machine": describe_machine(),
        "threads": 1,
    }


def table() -> str:
    """Return the table as Markdown. Values are mean ± standard deviation over seeds."""
    rows = list(finished_rows().values())
    lines = [
        "| preset | images | seeds | FD, float32 | FD, bfloat16 | training time, s "
        "| difference / standard error |",
        "|---|---|---|---|---|---|---|",
    ]
    for preset in dict.fromkeys(row["preset"] for row in rows):
        groups = [
            [row for row in rows if (row["preset"], row["precision"]) == (preset, precision)]
            for precision in PRECISIONS
        ]
        if min(map(len, groups)) < 2:
            continue
        distances = [[row["fd"] for row in group] for group in groups]
        mean32, mean16 = map(statistics.mean, distances)
        std32, std16 = map(statistics.stdev, distances)
        stderr = sqrt(std32**2 / len(distances[0]) + std16**2 / len(distances[1]))
        seconds = " and ".join(
            f"{statistics.mean(row['train_seconds'] for row in group):.0f}" for group in groups
        )
        lines.append(
            f"| {preset} | {groups[0][0]['images']:,} | {len(groups[0])} "
            f"| {mean32:.2f} ± {std32:.2f} | {mean16:.2f} ± {std16:.2f} | {seconds} "
            f"| {(mean16 - mean32) / stderr:+.1f} |"
        )
    return "\n".join(lines)


def compare_penalty_gradients(presets: list[str]) -> None:
    """Print how much bfloat16 changes the gradients of penalties, on one batch.

    The penalties are R1 and WGAN-GP at real images for D, and the path length for G.
    """
    runtime, data = make_runtime("cpu", "bfloat16"), load_data(DATASET)
    print(
        "| preset | R1: cosine | R1: norm ratio | WGAN-GP: cosine | WGAN-GP: norm ratio "
        "| path length: cosine | path length: norm ratio |"
    )
    print("|---|" + "---|" * 6)
    for preset in presets:
        settings = make_settings(
            PRESETS[preset].small_settings, {"preset": preset, "batch_size": 32}
        )
        space = SearchSpace(settings.preset, settings.network, data.channels, data.resolution)
        gan = Gan.create(*space.specs_at(space.max_level), settings.optimizer, seed=0)
        objective, batches = make_objective(settings), Batches(data, settings.batch_size, 0)
        for _ in range(PENALTY_STEPS):
            training_step(gan, batches, objective=objective, settings=settings, runtime=runtime)
        if gan.discriminator.spec.is_autoencoder:
            continue
        pixels, _ = batches.batch_at(gan.images_seen)
        real = gan.downsample_images(runtime.to_float_images(pixels))
        cells = gradient_cosines_and_ratios(gan, real)
        print(f"| {preset} | " + " | ".join(cells) + " |", flush=True)


def gradient_cosines_and_ratios(gan: Gan, real: Tensor) -> Iterator[str]:
    """Yield the cosine and the norm ratio of the gradients in both precisions, by penalty."""
    d = gan.discriminator
    z = sample_latents(len(real), gan.generator.spec.latent_dim, seed=1)

    def path_length() -> Tensor:
        torch.manual_seed(3)  # for the noise inputs of G
        unused_logits = z.new_empty(0)
        step = StepContext(
            generator=gan.generator,
            discriminator=d,
            real=real,
            fake=real,
            generator_input=z,
            rng=torch.Generator().manual_seed(2),
            real_logits=unused_logits,
            fake_logits=unused_logits,
            objective_state={"path.mean": torch.ones(())},
        )
        return PathLengthRegularization().generator_term(step)

    penalties: tuple[tuple[torch.nn.Module, Callable[[], Tensor]], ...] = (
        (d, lambda: squared_gradient_norm(d, real).mean() / 2),
        (d, lambda: (squared_gradient_norm(d, real).sqrt() - 1).square().mean()),
        (gan.generator, path_length),
    )
    for network, penalty in penalties:
        gradients = []
        for use_bfloat16 in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=use_bfloat16):
                value = penalty()
            parts = torch.autograd.grad(value, list(network.parameters()), allow_unused=True)
            gradients.append(torch.cat([part.flatten() for part in parts if part is not None]))
        exact, rounded = gradients
        yield f"{float(torch.cosine_similarity(exact, rounded, 0)):.5f}"
        yield f"{float(rounded.norm() / exact.norm()):.3f}"


def main() -> None:
    """Read the command line, train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("run", "table", "penalties"))
    parser.add_argument(
        "--only",
        nargs="*",
        choices=PRESET_NAMES,
        default=PRESET_NAMES,
        help="presets to train; all by default",
    )
    parser.add_argument("--images", type=int, default=NUM_IMAGES, help="training images per run")
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs of one thread each")
    args = parser.parse_args()
    if args.command == "penalties":
        compare_penalty_gradients(args.only)
        return
    if args.command == "run":
        saved = finished_rows()
        missing = [
            (key, args.images)
            for key in product(args.only, PRECISIONS, range(args.seeds))
            if key not in saved
        ]
        for row in compute_rows(train_and_evaluate, missing, num_jobs=args.jobs, path=RESULTS):
            print(row, flush=True)
    print(f"{describe_machine()}\n\n{table()}")


if __name__ == "__main__":
    main()
