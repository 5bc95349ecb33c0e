"""Measure how much a score depends on how its latents are drawn.

    growgan grow fashion-mnist --budget 5m --out RUN
    python benchmarks/latent_sampling.py RUN fashion-mnist

Prints the mean and standard deviation, over seeds, of the Fréchet distance of one generator with
independent latents, with antithetic pairs, with Sobol sequences, and with a Sobol sequence for each
group of the jackknife, as in scores. The jackknife's standard error is printed for comparison.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import growgan as gg
from growgan.config import make_settings
from growgan.execution.scoring import build_extractor, build_scorer
from growgan.metrics.functional.frechet_distance import NUM_JACKKNIFE_GROUPS
from growgan.nets.networks import Generator
from growgan.search.budget import Budget
from growgan.training.checkpoint import load_generator
from growgan.training.gan import generate_uint8, sample_latents, sobol_latents


def antithetic_latents(num_samples: int, latent_dim: int, seed: int) -> Tensor:
    """Return independent normal latents and their negatives."""
    half = sample_latents((num_samples + 1) // 2, latent_dim, seed)
    return torch.cat([half, -half])[:num_samples]


def grouped_sobol_latents(num_samples: int, latent_dim: int, seed: int) -> Tensor:
    """Return the latents of the search's scores: a Sobol sequence for each jackknife group."""
    return sobol_latents(num_samples, latent_dim, seed, NUM_JACKKNIFE_GROUPS)


SAMPLERS: dict[str, Callable[[int, int, int], Tensor]] = {
    "independent": sample_latents,
    "antithetic": antithetic_latents,
    "Sobol": sobol_latents,
    "Sobol in each jackknife group": grouped_sobol_latents,
}


def generate_first(generator: Generator, z: Tensor, num_images: int) -> Tensor:
    """Return G's images of the first latents, uint8."""
    with torch.no_grad():
        return generate_uint8(generator, z[:num_images])


def main() -> None:
    """Read the command line, compute the scores, and print them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("data", nargs="?", default="fashion-mnist", help="data of the run")
    parser.add_argument("--num-samples", type=int, default=5000, help="samples of each score")
    parser.add_argument("--draws", type=int, default=16, help="number of seeds")
    args = parser.parse_args()
    generator = load_generator(gg.Run.open(args.run).best.checkpoint_dir)
    height, width = generator.spec.resolution
    data = gg.load_images(args.data, resolution=(height, width))
    settings = make_settings({"score": {"num_samples": args.num_samples}})
    extractor = build_extractor(data, Budget(seconds=600), torch.device("cpu"))
    scorer = build_scorer(data, settings, extractor)
    print("| latents | FD | standard error by the jackknife |\n|---|---|---|")
    for name, sampler in SAMPLERS.items():
        distances, errors = [], []
        for seed in range(args.draws):
            z = sampler(args.num_samples, generator.spec.latent_dim, seed)
            score = scorer.score(partial(generate_first, generator, z), (height, width))
            distance = score.components["fd"]
            distances.append(distance)
            errors.append(score.stderr * distance / score.value)
        mean, std = statistics.mean(distances), statistics.stdev(distances)
        print(f"| {name} | {mean:.3f} ± {std:.3f} | {statistics.mean(errors):.3f} |", flush=True)


if __name__ == "__main__":
    main()
