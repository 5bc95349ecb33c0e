"""Runs in the workers of a Ray cluster: trains candidates and reports their progress."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch

from growgan import __version__
from growgan.config import Settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.execution.callback import NullCallback, TrainingStatus
from growgan.execution.scoring import build_batches, build_scorer
from growgan.execution.trainer import CandidateTrainer
from growgan.execution.trial import Trial, TrialResult
from growgan.metrics.features.base import FeatureExtractor
from growgan.metrics.features.own import OwnExtractor
from growgan.training.checkpoint import CheckpointFiles, gan_from_files, gan_to_files
from growgan.training.loop import TrainingProgress
from growgan.training.runtime import runtime_from_settings


@dataclass(frozen=True)
class WorkerContext:
    """What every trial of a run needs.

    Attributes:
        run_id: Unique id of the run.
        data: Training images.
        settings: All settings of the run.
        extractor: Feature extractor of the score, on the CPU.
        pretrained_files: Checkpoint of the GAN that roots are initialized from, if any.
        version: Version of growgan in the driver.
        update_interval_seconds: Minimum time between two progress updates of a worker.
    """

    run_id: str
    data: ImageSet
    settings: Settings
    extractor: FeatureExtractor | None
    pretrained_files: CheckpointFiles | None = None
    version: str = __version__
    update_interval_seconds: float = 0.0


@dataclass(frozen=True)
class ProgressUpdate:
    """Progress of a trial. ``progress`` is None while the candidate is being scored."""

    trial_id: str
    status: TrainingStatus
    progress: TrainingProgress | None


@dataclass(frozen=True)
class OutOfMemoryUpdate:
    """Memory ran out: each batch is split into ``num_micro_batches`` from now on."""

    trial_id: str
    num_micro_batches: int


Update = ProgressUpdate | OutOfMemoryUpdate


class ProgressActor:
    """A Ray actor that collects updates. It keeps the newest one of each kind per trial."""

    def __init__(self) -> None:
        self.updates: dict[tuple[str, type], Update] = {}

    def publish(self, update: Update) -> None:
        """Store an update. It replaces the previous one of its kind."""
        self.updates[update.trial_id, type(update)] = update

    def drain(self) -> list[Update]:
        """Return the updates since the last call."""
        updates, self.updates = list(self.updates.values()), {}
        return updates


class ProgressReporter(NullCallback):
    """The callback of a worker. It sends updates to the progress actor and saves no checkpoints.

    A trial whose worker dies starts again from its beginning.

    Args:
        actor: Handle of the :class:`ProgressActor`.
        interval_seconds: Minimum time between two progress updates.
    """

    def __init__(self, actor: Any, interval_seconds: float = 0.0) -> None:
        self.actor, self.interval_seconds = actor, interval_seconds
        self._last_update_time = float("-inf")

    def on_progress(
        self, trial: Trial, status: TrainingStatus, progress: TrainingProgress | None
    ) -> None:
        """Send a progress update, if the last one is old enough."""
        now = time.perf_counter()
        if progress is not None and now - self._last_update_time < self.interval_seconds:
            return
        self._last_update_time = now
        self.actor.publish.remote(ProgressUpdate(trial.id, status, progress))

    def on_out_of_memory(self, trial: Trial, num_micro_batches: int) -> None:
        """Send the new number of micro-batches."""
        self.actor.publish.remote(OutOfMemoryUpdate(trial.id, num_micro_batches))


_trainer_by_run: dict[str, CandidateTrainer] = {}  # the newest run of this worker process only


def train_candidate(
    context: WorkerContext, actor: Any, trial: Trial, parent_files: CheckpointFiles | None
) -> TrialResult:
    """Train one candidate in a worker; the result holds its checkpoint files.

    Args:
        context: What every trial of the run needs.
        actor: Handle of the :class:`ProgressActor`.
        trial: The trial.
        parent_files: Checkpoint of the parent; None for a root.

    Raises:
        UserError: The worker has another version of growgan than the driver.
    """
    if context.version != __version__:
        raise UserError(
            f"a worker has growgan {__version__}, but the driver has {context.version}; "
            "install the same version on all machines"
        )
    if context.run_id not in _trainer_by_run:
        _trainer_by_run.clear()
        _trainer_by_run[context.run_id] = _build_trainer(context)
    trainer = _trainer_by_run[context.run_id]
    trainer.callback = ProgressReporter(actor, context.update_interval_seconds)
    torch.set_num_threads(context.settings.threads or 1)
    parent = gan_from_files(parent_files, trainer.runtime.device) if parent_files else None
    result = trainer.run(trial, parent)
    files = gan_to_files(result.gan) if result.gan is not None else None
    return replace(result, gan=None, checkpoint_files=files)


def _build_trainer(context: WorkerContext) -> CandidateTrainer:
    """Build the trainer of a run in this process."""
    data, settings = context.data, context.settings
    runtime = runtime_from_settings(settings)
    scorer = build_scorer(data, settings, extractor_to(context.extractor, runtime.device))
    pretrained_gan = None
    if context.pretrained_files:
        pretrained_gan = gan_from_files(context.pretrained_files, runtime.device)
    return CandidateTrainer(
        build_batches(data, settings),
        runtime,
        scorer,
        NullCallback(),
        pretrained_gan=pretrained_gan,
    )


def extractor_to(
    extractor: FeatureExtractor | None, device: torch.device
) -> FeatureExtractor | None:
    """Return a copy of a feature extractor on another device."""
    if not isinstance(extractor, OwnExtractor):
        return extractor
    return OwnExtractor(
        deepcopy(extractor.network),
        extractor.resolution,
        extractor.channels,
        extractor.metadata,
        device,
    )
