"""The training loop over one segment of the budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite

from torch import Tensor

from growgan.config import Settings
from growgan.data.batches import Batches
from growgan.objectives.objective import Objective
from growgan.training.gan import Gan
from growgan.training.optimizers import learning_rates
from growgan.training.runtime import Runtime
from growgan.training.step import training_step

LOG_INTERVAL_SECONDS = 0.5  # seconds between two points of the log
FINITE_CHECK_INTERVAL_STEPS = 64  # steps between two checks for NaN, if a run counts images


@dataclass(frozen=True)
class TrainingSegment:
    """How long to train, and where in the run this lies.

    Exactly one of ``seconds`` and ``images`` is set.

    Attributes:
        seconds: Length in seconds.
        images: Length in real images.
        fade_segments: Length of a fade-in in segments. Above 1, it continues in the next segment.
        start_fraction, end_fraction: Fractions of the whole budget at the start and the end of the
            segment, for the learning rate schedule.
    """

    seconds: float | None = None
    images: int | None = None
    fade_segments: float = 0.0
    start_fraction: float = 0.0
    end_fraction: float = 1.0


@dataclass(frozen=True)
class TrainingProgress:
    """A point of the log.

    Attributes:
        segment_fraction: Finished fraction of the segment, 0 to 1.
        images_seen: Real images seen along the whole lineage.
        images_per_second: Speed since the previous point.
        alpha: Fade-in weight of the newest layer, 0 to 1.
        terms: Newest value of each loss term, by name.
    """

    segment_fraction: float
    images_seen: int
    images_per_second: float
    alpha: float
    terms: dict[str, float]


@dataclass(frozen=True)
class ResumePoint:
    """Position of a GAN in its segment; together with the GAN, enough to resume training.

    Attributes:
        segment_start_images: Images the GAN had seen when the segment began.
        segment_start_alpha: Fade-in weight when the segment began.
        seconds_trained: Seconds of training in the segment.
    """

    segment_start_images: int
    segment_start_alpha: float
    seconds_trained: float = 0.0


class DivergenceError(RuntimeError):
    """A loss term is NaN or infinite."""


def train(
    gan: Gan,
    batches: Batches,
    objective: Objective,
    settings: Settings,
    *,
    runtime: Runtime,
    segment: TrainingSegment,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
    on_step_end: Callable[[ResumePoint], None] = lambda resume_point: None,
    resume_point: ResumePoint | None = None,
    num_micro_batches: int = 1,
) -> None:
    """Train ``gan`` in place for one segment, or for the rest of one.

    Everything random is a function of the seed and of the images seen so far. A run therefore
    needs no random state to be resumed, and sibling candidates see the same batches and latents.

    The log holds the newest value of each term, because lazy terms are not computed in every step.

    Args:
        gan: The networks with their optimizers.
        batches: The training data.
        objective: Losses and regularizers.
        settings: All other settings.
        runtime: Device, precision and processes.
        segment: How long to train.
        on_progress: Receives the points of the log.
        on_step_end: Called between steps with the current position. It may save the GAN, or raise
            an exception to stop training.
        resume_point: Where to resume a segment that was interrupted.
        num_micro_batches: Number of parts into which each batch is split.

    Raises:
        DivergenceError: A loss term is NaN or infinite. This is detected at the next point of the
            log or, if the segment is counted in images, at the next 64th step, so that the run
            repeats exactly.
    """
    runtime.compile([*gan.generator.blocks(), *gan.discriminator.blocks()])
    start = resume_point or ResumePoint(gan.images_seen, gan.alpha)
    last_log_time = time.perf_counter()
    start_time = last_log_time - start.seconds_trained
    last_log_images = gan.images_seen
    terms: dict[str, Tensor] = {}
    local_fraction = _segment_fraction(
        segment, start.seconds_trained, gan.images_seen - start.segment_start_images
    )
    # The main process decides how much is done and when to log.
    fraction, log_due = runtime.distributed.broadcast(local_fraction, LOG_INTERVAL_SECONDS <= 0)
    while fraction < 1:
        gan.set_alpha(_fade_alpha(segment, start, fraction))
        budget_fraction = segment.start_fraction + fraction * (
            segment.end_fraction - segment.start_fraction
        )
        set_learning_rates(gan, settings, budget_fraction)

        terms |= training_step(
            gan,
            batches,
            objective,
            settings,
            runtime=runtime,
            num_micro_batches=num_micro_batches,
        )

        now = time.perf_counter()
        local_fraction = _segment_fraction(
            segment, now - start_time, gan.images_seen - start.segment_start_images
        )
        if segment.images is None:
            check_due = bool(log_due)
        else:
            check_due = gan.steps % FINITE_CHECK_INTERVAL_STEPS == 0
        if check_due:
            _check_finite(terms)
        if log_due:
            images_per_second = (gan.images_seen - last_log_images) / (now - last_log_time)
            on_progress(
                TrainingProgress(
                    segment_fraction=local_fraction,
                    images_seen=gan.images_seen,
                    images_per_second=images_per_second,
                    alpha=gan.alpha,
                    terms={name: float(term) for name, term in terms.items()},
                )
            )
            last_log_time, last_log_images = now, gan.images_seen
        with runtime.distributed.propagate_interrupt():
            on_step_end(replace(start, seconds_trained=now - start_time))
        fraction, log_due = runtime.distributed.broadcast(
            local_fraction, now - last_log_time >= LOG_INTERVAL_SECONDS
        )
    _check_finite(terms)
    if _fade_alpha(segment, start, 1.0) >= 1:
        gan.finish_fade()
    else:
        gan.set_alpha(_fade_alpha(segment, start, 1.0))


def _segment_fraction(segment: TrainingSegment, seconds: float, num_images: int) -> float:
    """Return the finished fraction of a segment, by time or by images.

    A segment in images must not depend on time, or it would not repeat exactly.
    """
    if segment.seconds is not None:
        return min(1.0, seconds / segment.seconds)
    return min(1.0, num_images / (segment.images or 1))


def _fade_alpha(segment: TrainingSegment, start: ResumePoint, fraction: float) -> float:
    """Return the fade-in weight after this fraction of a segment, 0 to 1."""
    if not segment.fade_segments:
        return 1.0
    return min(1.0, start.segment_start_alpha + fraction / segment.fade_segments)


def set_learning_rates(gan: Gan, settings: Settings, budget_fraction: float) -> None:
    """Set the learning rates of G and D for this fraction of the budget, 0 to 1."""
    generator_lr, discriminator_lr = learning_rates(settings, budget_fraction, gan.images_seen)
    for group in gan.generator_optimizer.param_groups:
        group["lr"] = generator_lr
    for group in gan.discriminator_optimizer.param_groups:
        group["lr"] = discriminator_lr


def _check_finite(terms: dict[str, Tensor]) -> None:
    for name, term in terms.items():
        value = float(term)
        if not isfinite(value):
            raise DivergenceError(f"training diverged: {name} is {value}; try a lower optimizer.lr")
