"""One training step of a GAN: update D, then G, then the moving average of G."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from growgan.config import Settings
from growgan.data.batches import Batches
from growgan.objectives.objective import Objective
from growgan.objectives.step_context import StepContext
from growgan.training.batch import sample_batch, split_batch
from growgan.training.gan import Gan
from growgan.training.runtime import Runtime


def training_step(
    gan: Gan,
    batches: Batches,
    objective: Objective,
    settings: Settings,
    *,
    runtime: Runtime,
    num_micro_batches: int = 1,
) -> dict[str, Tensor]:
    """Take one step of D and, every ``critic_steps``-th time, one of G; return the loss terms.

    A batch that does not fit into memory is split into micro-batches, whose gradients are
    accumulated. Under torchrun each process trains on its shard of the batch, and gradients are
    averaged. The result is that of the whole batch, except for terms that compare samples.
    """
    # Real batch: images with labels and source images. Latents z ~ N(0, I) for the fake batch.
    batch = sample_batch(gan, batches, objective, settings, runtime=runtime)
    micro_batches = split_batch(
        batch, gan, objective, runtime=runtime, num_micro_batches=num_micro_batches
    )

    terms = update_discriminator(gan, micro_batches, objective, runtime)
    if (gan.steps + 1) % settings.critic_steps == 0:
        terms |= update_generator(gan, micro_batches, objective, runtime)
    gan.images_seen += len(batch.real)
    gan.steps += 1

    # Keep buffers and scalar state equal in all processes.
    runtime.distributed.all_reduce_mean(_shared_state(gan))

    # Update EMA. The half-life grows with training, so that early weights are soon forgotten.
    half_life = min(settings.ema.half_life, settings.ema.ramp * gan.images_seen)
    gan.update_ema(decay=0.5 ** (len(batch.real) / max(half_life, 1e-9)))
    return terms | micro_batches[-1].log_scalars


def update_discriminator(
    gan: Gan, micro_batches: list[StepContext], objective: Objective, runtime: Runtime
) -> dict[str, Tensor]:
    """Take one step of D, accumulated over the micro-batches; return its loss terms."""
    terms: dict[str, Tensor] = {}
    gan.discriminator_optimizer.zero_grad()
    for step in micro_batches:
        real = step.real
        with runtime.autocast():
            # Fake batch. A single micro-batch keeps G's graph for G's own update.
            objective.prepare_generator_input(step)
            with torch.set_grad_enabled(len(micro_batches) == 1):
                fake = gan.generator(step.generator_input)  # (N, C, H, W)

            # Features and logits of what D sees: regularizers may replace images, as replay does.
            step.fake = fake.detach()
            objective.prepare_discriminator_batch(step)
            discriminate(step)

            # D's loss, its conditioning terms and its regularizers (R1, R2, ...).
            losses = objective.discriminator_terms(step)
        accumulate_gradients(losses, terms, len(micro_batches))
        step.real, step.fake = real, fake

    # Update D.
    runtime.distributed.average_gradients(gan.discriminator, terms)
    gan.discriminator_optimizer.step()
    objective.after_update(gan.discriminator, micro_batches[-1])  # weight clipping, ADA's p, ...
    return terms


def update_generator(
    gan: Gan, micro_batches: list[StepContext], objective: Objective, runtime: Runtime
) -> dict[str, Tensor]:
    """Take one step of G, accumulated over the micro-batches; return its loss terms."""
    terms: dict[str, Tensor] = {}
    gan.generator_optimizer.zero_grad()
    with frozen(gan.discriminator):
        for step in micro_batches:
            with runtime.autocast():
                # Fake batch: the same images as for D, computed again if their graph was not kept.
                if len(micro_batches) > 1:
                    step.fake = gan.generator(step.generator_input)
                step.fake_features, step.fake_logits = features_and_logits(step, step.fake)
                if objective.needs_real_logits:  # relativistic losses
                    step.real_logits = step.augmented_logits(step.real).detach()

                # G's loss, its conditioning terms and its regularizers (path length, ...).
                losses = objective.generator_terms(step)
            accumulate_gradients(losses, terms, len(micro_batches))

    # Update G.
    runtime.distributed.average_gradients(gan.generator, terms)
    gan.generator_optimizer.step()
    objective.after_update(gan.generator, micro_batches[-1])
    return terms


def discriminate(step: StepContext) -> None:
    """Set D's features and logits of the step's real and fake images.

    D sees both in one forward pass, unless it uses statistics of its batch.
    """
    if step.discriminator.uses_batch_statistics:
        image_sets = [step.real, step.fake]
    else:
        image_sets = [torch.cat([step.real, step.fake])]
    outputs = [features_and_logits(step, images) for images in image_sets]
    features, logits = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    n = len(step.real)
    step.real_features, step.fake_features = features[:n], features[n:]
    step.real_logits, step.fake_logits = logits[:n], logits[n:]


def features_and_logits(step: StepContext, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return D's features and logits of augmented ``images``; an autoencoder has no features."""
    if step.discriminator.spec.is_autoencoder:
        return images.new_empty(len(images), 0), step.augmented_logits(images)
    features = step.augmented_features(images)
    return features, step.discriminator.logits(features, *step.condition_args(images))


def accumulate_gradients(
    losses: dict[str, Tensor], mean_terms: dict[str, Tensor], num_micro_batches: int
) -> None:
    """Backpropagate the sum of ``losses`` and add the losses to ``mean_terms``.

    Both are divided by the number of micro-batches.
    """
    total = torch.stack(list(losses.values())).sum()
    (total if num_micro_batches == 1 else total / num_micro_batches).backward()
    for name, value in losses.items():
        mean_terms[name] = mean_terms.get(name, 0) + value.detach() / num_micro_batches


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Compute no gradients of the parameters of ``network`` within the context."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def _shared_state(gan: Gan) -> list[Tensor]:
    """Return the scalar objective state and the floating-point buffers of G.

    The state is sorted by name, because a GAN loaded from a checkpoint has another order.
    """
    scalars = [value for _, value in sorted(gan.objective_state.items()) if value.numel() == 1]
    buffers = [buffer for buffer in gan.generator.buffers() if buffer.is_floating_point()]
    return [*scalars, *buffers]
