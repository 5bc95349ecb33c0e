"""A trial, its result, and the messages that processes exchange about trials."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from growgan.config import Settings
from growgan.metrics.scorer import Score
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec
from growgan.search.history import Proposal
from growgan.training.checkpoint import CheckpointFiles
from growgan.training.gan import Gan
from growgan.training.health import HealthMetrics
from growgan.training.loop import ResumePoint, TrainingSegment


@dataclass(frozen=True)
class Trial:
    """A candidate to train.

    Attributes:
        id: Id of the candidate.
        round: Round of the search.
        proposal: The parent and the growth to apply to it, or the specs of a root.
        segment: How long to train.
        seed: Seed of the new weights.
        settings: All settings of the training.
    """

    id: str
    round: int
    proposal: Proposal
    segment: TrainingSegment
    seed: int
    settings: Settings


@dataclass
class TrialResult:
    """The result of a trial. A failed trial has no specs, score or health metrics.

    Attributes:
        trial: The trial.
        gan: The trained GAN, if it was trained in this process.
        checkpoint_files: Its checkpoint files, if it was trained in another process.
        specs: Specs of G and D at the end of the segment.
        num_parameters: Numbers of parameters of G and D.
        sample_images: Samples for the sample sheet, uint8 [SAMPLE_SHEET_IMAGES, C, H, W].
        score: The score; None if the weights are not finite.
        health: The health metrics.
        images_trained: Real images seen in the segment.
        train_seconds: Seconds of training.
        peak_memory_mib: Peak memory in MiB, if the system reports it.
        seconds_by_phase: Seconds by phase: "build", "train", "score".
        error: Why the trial failed; empty if it did not.
        worker_lost: Whether its worker died, so that ``error`` does not concern the candidate.
    """

    trial: Trial
    gan: Gan | None = None
    checkpoint_files: CheckpointFiles | None = None
    specs: tuple[GeneratorSpec, DiscriminatorSpec] | None = None
    num_parameters: tuple[int, int] = (0, 0)
    sample_images: Tensor | None = None
    score: Score | None = None
    health: HealthMetrics | None = None
    images_trained: int = 0
    train_seconds: float = 0.0
    peak_memory_mib: float | None = None
    seconds_by_phase: dict[str, float] = field(default_factory=dict)
    error: str = ""
    worker_lost: bool = False


@dataclass(frozen=True)
class TrainRequest:
    """Tells the other processes of a distributed run to train a candidate.

    Attributes:
        trial: The trial.
        checkpoint_files: The GAN to start from.
        resume_point: Its position in the segment.
    """

    trial: Trial
    checkpoint_files: CheckpointFiles
    resume_point: ResumePoint


@dataclass(frozen=True)
class SampleRequest:
    """Tells the processes of a distributed run to generate samples for the score.

    Attributes:
        num_samples: Number of samples.
        num_sources: Number of source images, which are used in turn. Ignored by generators
            without source images.
        labels: Labels of the samples, used in turn; None for all classes.
        batch_size: Number of images per forward pass.
    """

    num_samples: int
    num_sources: int
    labels: list[int] | None
    batch_size: int
