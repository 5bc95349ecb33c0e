"""The data and random numbers of one training step, as a function of seed and position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from growgan.config import Settings
from growgan.data.batches import Batches
from growgan.nets.conditioning import one_hot
from growgan.nets.resampling import downsample_average, upsample_nearest
from growgan.objectives.objective import Objective
from growgan.objectives.step_context import Shard, StepContext
from growgan.training.gan import Gan
from growgan.training.runtime import Runtime

# Odd constants that spread consecutive steps and ranks over all 64-bit seeds.
STEP_SEED_STRIDE = 0x9E3779B97F4A7C15
RANK_SEED_STRIDE = 0xD1B54A32D192ED03


@dataclass(frozen=True)
class Batch:
    """The data of one training step, before it is split into micro-batches.

    Attributes:
        real: Real images, float ``[N, C, H, W]`` in [-1, 1].
        generator_input: Latents, labels and source images, float ``[N, z + condition]``.
        labels: One-hot labels or InfoGAN's codes, float ``[N, K]``; K is 0 if they are not used.
        source: Flattened source images, float ``[N, C * H * W]``; ``[N, 0]`` if there are none.
        rng: Random numbers for the rest of the step.
    """

    real: Tensor
    generator_input: Tensor
    labels: Tensor
    source: Tensor
    rng: torch.Generator


def sample_batch(
    gan: Gan, batches: Batches, objective: Objective, settings: Settings, *, runtime: Runtime
) -> Batch:
    """Return the batch at the GAN's position in the data, with new latents."""
    seed = (settings.seed * STEP_SEED_STRIDE + gan.steps) & (2**63 - 1)
    rng = torch.Generator(runtime.device).manual_seed(seed)
    if gan.generator.is_stochastic:
        # Noise layers use the global generator. Its seed differs from that of the latents and
        # between processes.
        torch.manual_seed((~seed + runtime.distributed.rank * RANK_SEED_STRIDE) & (2**63 - 1))

    # Real and source images. As channels of one image, they are blended and flipped together.
    pixels, class_indices = batches.batch_at(gan.images_seen)
    source_pixels, spec = batches.source_at(gan.images_seen), gan.generator.spec
    if source_pixels is not None:
        pixels = torch.cat([pixels, source_pixels], 1)
    factor = pixels.shape[-1] // gan.resolution[1]
    images = prepare_real_images(
        gan, runtime.to_float_images(pixels, factor), rng, settings.horizontal_flip
    )
    real, source = images.split([spec.image_channels, spec.source_channels], 1)
    source = source.flatten(1)

    # Latents, and the labels that D and G receive.
    z = torch.randn(len(real), spec.latent_dim, generator=rng, device=runtime.device)
    labels = generator_labels = z[:, :0]
    if objective.conditioning.needs_labels and class_indices is not None:
        labels = one_hot(runtime.to_device(class_indices), gan.discriminator.spec.label_dim)
        if objective.conditioning.generator_conditioned:
            generator_labels = labels
    elif spec.label_dim:  # InfoGAN's codes
        n, device = len(real), runtime.device
        categories = torch.randint(1 << 30, (n,), generator=rng, device=device)
        continuous = torch.randn(n, spec.num_continuous_codes, generator=rng, device=device)
        labels = generator_labels = torch.cat(
            [one_hot(categories, spec.num_classes), continuous], 1
        )

    generator_input = torch.cat([z, generator_labels, source], 1)
    return Batch(real=real, generator_input=generator_input, labels=labels, source=source, rng=rng)


def prepare_real_images(
    gan: Gan, real: Tensor, rng: torch.Generator, horizontal_flip: bool
) -> Tensor:
    """Return the real images with random flips, blended as the fakes are during a fade-in."""
    factor = max(gan.generator.fade_resample_factor, gan.discriminator.fade_resample_factor)
    if factor > 1:
        coarse = upsample_nearest(downsample_average(real, factor), factor)
        real = torch.lerp(coarse, real, gan.generator.alpha)
    if horizontal_flip:
        flip = torch.rand(len(real), 1, 1, 1, generator=rng, device=real.device) < 0.5
        real = torch.where(flip, real.flip(3), real)
    return real


def split_batch(
    batch: Batch, gan: Gan, objective: Objective, *, runtime: Runtime, num_micro_batches: int
) -> list[StepContext]:
    """Return a step for each micro-batch of this process, before anything is computed."""
    num_shards = num_micro_batches * runtime.distributed.world_size
    parts = zip(
        batch.real.chunk(num_shards),
        batch.generator_input.chunk(num_shards),
        batch.labels.chunk(num_shards),
        batch.source.chunk(num_shards),
        strict=True,
    )
    micro_batches = []
    for index, (real, generator_input, labels, source) in enumerate(parts):
        if index // num_micro_batches != runtime.distributed.rank:
            continue
        empty = generator_input.new_empty(0)
        step = StepContext(
            generator=gan.generator,
            discriminator=gan.discriminator,
            real=real,
            fake=real,  # replaced by G's images
            generator_input=generator_input,
            # Every shard draws the numbers of the whole batch and keeps its own rows.
            rng=batch.rng if num_shards == 1 else _clone_rng(batch.rng),
            real_logits=empty,
            fake_logits=empty,
            labels=labels,
            source=source,
            index=gan.steps,
            images_seen=gan.images_seen,
            objective_state=gan.objective_state,
            shard=Shard(index, num_shards),
        )
        objective.bind_augmentation(step)
        micro_batches.append(step)
    return micro_batches


def _clone_rng(rng: torch.Generator) -> torch.Generator:
    """Return a generator in the same state as ``rng``."""
    clone = torch.Generator(rng.device)
    clone.set_state(rng.get_state())
    return clone
