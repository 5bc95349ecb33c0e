"""What a stack costs, from its spec alone."""

from __future__ import annotations

from functools import lru_cache

import torch

from growgan.nets.blocks import BLOCKS
from growgan.nets.players import build
from growgan.nets.spec import StackSpec


@lru_cache(maxsize=4096)
def parameters(spec: StackSpec) -> int:
    """Return the number of trainable scalars.

    A stack is built for it, without weights: some 50 ms, which a search asks for again and again.
    """
    with torch.device("meta"):
        return build(spec).parameter_count()


def multiplications(spec: StackSpec) -> float:
    """Return the multiplications of one forward of one image."""
    height, width = spec.base
    generator = spec.role == "generator"
    stem = spec.stem_reads if generator else 9 * spec.stem + spec.stem
    total = float(height * width * spec.stem * stem)
    for i, layer in enumerate(spec.layers):
        height, width = height * layer.resample, width * layer.resample
        cost, inner = BLOCKS[layer.kind].multiplications, spec.width_before(i)
        total += height * width * cost(layer, inner, spec.role, height * width)
    total += height * width * spec.channels * spec.width_before(len(spec.layers))
    return 2 * total if spec.energy or spec.encodes else total


def activations(spec: StackSpec) -> float:
    """Return the feature values that one forward of one image writes."""
    height, width = spec.base
    total = float(height * width * spec.stem)
    for layer in spec.layers:
        height, width = height * layer.resample, width * layer.resample
        total += height * width * layer.width * BLOCKS[layer.kind].held
    return 2 * total if spec.encodes else total


def step_cost(generator: StackSpec, discriminator: StackSpec) -> float:
    """Return the relative time of one image in one training step.

    G runs forward and backward once; D forward on reals and fakes, once for each player's step,
    and backward nearly as often. Memory traffic counts like 300 multiplications a value, and each
    image carries its part of a step's fixed cost (some 0.2 ms on a laptop CPU), so that tiny
    stacks are not free.
    """
    values = [multiplications(s) + 300 * activations(s) for s in (generator, discriminator)]
    return 3 * values[0] + 8 * values[1] + 3e7
