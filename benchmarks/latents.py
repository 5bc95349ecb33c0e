"""How much does a score depend on the draw of its latents?

    growgan grow fashion-mnist --budget 5m --out RUN
    python benchmarks/latents.py RUN fashion-mnist

Prints mean and deviation, over draws, of the search's Fréchet distance of one generator: with
independent normal latents, with antithetic pairs, with evenly spread ones, and with those that are
even within each group of the jackknife, as scores use; beside it, the jackknife's mean error.
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
from growgan.growth.budget import Budget
from growgan.growth.run import Run
from growgan.growth.scoring import make_scorer
from growgan.metrics.score import GROUPS
from growgan.nets.players import Generator
from growgan.training.checkpoint import load_generator
from growgan.training.gan import even_latents, latents, to_uint8


def antithetic(count: int, length: int, seed: int) -> Tensor:
    """Return normal latents, each followed somewhere by its negative."""
    half = latents((count + 1) // 2, length, seed)
    return torch.cat([half, -half])[:count]


def grouped(count: int, length: int, seed: int) -> Tensor:
    """Return the latents of the search's scores: even within each group of the jackknife."""
    return even_latents(count, length, seed, GROUPS)


DRAWS: dict[str, Callable[[int, int, int], Tensor]] = {
    "independent": latents,
    "antithetic": antithetic,
    "even (Sobol)": even_latents,
    "even within groups": grouped,
}


def sample(generator: Generator, z: Tensor, count: int) -> Tensor:
    """Return G's images of the first ``count`` latents, uint8."""
    with torch.no_grad():
        return to_uint8(generator, z[:count])


def main() -> None:
    """Read the command line, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("data", nargs="?", default="fashion-mnist", help="what it was run on")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--draws", type=int, default=16)
    given = parser.parse_args()
    generator = load_generator(Run.open(given.run).best.folder)
    height, width = generator.spec.resolution
    data = gg.load_images(given.data, resolution=(height, width))
    settings = make_settings({"score": {"samples": given.samples}})
    scorer = make_scorer(data, settings, Budget(seconds=600), torch.device("cpu"))
    for name, draw in DRAWS.items():
        values, errors = [], []
        for seed in range(given.draws):
            z = draw(given.samples, generator.spec.latent, seed)
            score = scorer.score(partial(sample, generator, z), (height, width))
            values.append(score.parts["fd"])
            errors.append(score.stderr * score.parts["fd"] / score.value)
        spread = f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
        print(f"{name}: {spread}; by the jackknife ± {statistics.mean(errors):.3f}", flush=True)


if __name__ == "__main__":
    main()
