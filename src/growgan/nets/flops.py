"""The cost of networks, estimated from their specs."""

from __future__ import annotations

from functools import lru_cache

import torch

from growgan.nets.blocks import BLOCKS
from growgan.nets.networks import build_network
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec, NetworkSpec

MACS_PER_ACTIVATION = 300  # multiplications that take as long as writing one feature value
FIXED_COST_PER_IMAGE = 3e7  # share of a step's fixed cost, about 0.2 ms on a laptop CPU


@lru_cache(maxsize=4096)
def count_parameters(spec: NetworkSpec) -> int:
    """Return the number of parameters.

    The network is built without memory for it, which takes about 50 ms. A search asks for the same
    specs repeatedly, hence the cache.
    """
    with torch.device("meta"):
        return build_network(spec).num_parameters()


def macs(spec: NetworkSpec) -> float:
    """Return the approximate number of multiplications of a forward pass for one image."""
    height, width = spec.base_grid
    if isinstance(spec, GeneratorSpec):
        macs_per_channel = spec.stem_input_dim
    else:
        macs_per_channel = 9 * spec.stem_width + spec.stem_width
    total = float(height * width * spec.stem_width * macs_per_channel)
    for i, layer in enumerate(spec.layers):
        height, width = height * layer.resample_factor, width * layer.resample_factor
        total += (height * width) * BLOCKS[layer.block].macs_per_pixel(
            layer, spec.width_before(i), spec.role, height * width
        )
    total += height * width * spec.image_channels * spec.width_before(len(spec.layers))
    return 2 * total if _has_second_half(spec) else total


def activation_elements(spec: NetworkSpec) -> float:
    """Return the approximate number of feature values that a forward pass writes for one image."""
    height, width = spec.base_grid
    total = float(height * width * spec.stem_width)
    for layer in spec.layers:
        height, width = height * layer.resample_factor, width * layer.resample_factor
        total += height * width * layer.width * BLOCKS[layer.block].activation_multiplier
    has_encoder = isinstance(spec, GeneratorSpec) and spec.has_source_encoder
    return 2 * total if has_encoder else total


def relative_step_time(
    generator_spec: GeneratorSpec, discriminator_spec: DiscriminatorSpec
) -> float:
    """Return the approximate time of a training step per image, in an arbitrary unit.

    G runs forward and backward once. D runs forward on real and fake images, for its own step and
    for that of G, and backward almost as often.
    """
    generator_cost = macs(generator_spec) + MACS_PER_ACTIVATION * activation_elements(
        generator_spec
    )
    discriminator_cost = macs(discriminator_spec) + MACS_PER_ACTIVATION * activation_elements(
        discriminator_spec
    )
    return 3 * generator_cost + 8 * discriminator_cost + FIXED_COST_PER_IMAGE


def _has_second_half(spec: NetworkSpec) -> bool:
    """Return whether the layers occur twice, in an encoder and a decoder."""
    if isinstance(spec, GeneratorSpec):
        return spec.has_source_encoder
    return isinstance(spec, DiscriminatorSpec) and spec.is_autoencoder
