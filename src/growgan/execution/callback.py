"""Callbacks that observe the training of a candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from growgan.execution.trial import Trial
from growgan.training.gan import Gan
from growgan.training.loop import ResumePoint, TrainingProgress


@dataclass(frozen=True)
class TrainingStatus:
    """State of a GAN in training, for display.

    Attributes:
        resolution: (height, width) in pixels.
        alpha: Fade-in weight of the newest layer, 0 to 1.
        images_seen: Real images seen along the whole lineage.
    """

    resolution: tuple[int, int]
    alpha: float
    images_seen: int

    @classmethod
    def of(cls, gan: Gan) -> TrainingStatus:
        """Return the status of ``gan``."""
        return cls(gan.resolution, gan.alpha, gan.images_seen)


class TrainingCallback(Protocol):
    """Shows the progress of trials, and saves and restores their checkpoints."""

    def on_progress(
        self, trial: Trial, status: TrainingStatus, progress: TrainingProgress | None
    ) -> None:
        """Receive a point of the log. ``progress`` is None while the candidate is being scored."""

    def on_step_end(self, trial: Trial, gan: Gan, resume_point: ResumePoint) -> None:
        """Save a checkpoint if one is due. Raise an exception to stop training."""

    def on_out_of_memory(self, trial: Trial, num_micro_batches: int) -> None:
        """Receive the number of micro-batches into which each batch is split from now on."""

    def restore(self, trial: Trial) -> tuple[Gan, ResumePoint] | None:
        """Return the checkpoint of a trial that was interrupted, and where to resume it."""


class NullCallback:
    """A :class:`TrainingCallback` that does nothing."""

    def on_progress(
        self, trial: Trial, status: TrainingStatus, progress: TrainingProgress | None
    ) -> None:
        """Do nothing."""

    def on_step_end(self, trial: Trial, gan: Gan, resume_point: ResumePoint) -> None:
        """Do nothing."""

    def on_out_of_memory(self, trial: Trial, num_micro_batches: int) -> None:
        """Do nothing."""

    def restore(self, trial: Trial) -> tuple[Gan, ResumePoint] | None:
        """Return None: there are no checkpoints."""
        return None
