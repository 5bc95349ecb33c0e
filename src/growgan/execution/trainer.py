"""Trains one candidate: build its networks, train them, score them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from growgan.data.batches import Batches
from growgan.execution.callback import TrainingCallback, TrainingStatus
from growgan.execution.candidate_scorer import CandidateScorer
from growgan.execution.stopwatch import Stopwatch
from growgan.execution.trial import TrainRequest, Trial, TrialResult
from growgan.execution.warm_start import init_from_pretrained
from growgan.metrics.scorer import Scorer
from growgan.objectives import make_objective
from growgan.training.checkpoint import gan_to_files
from growgan.training.gan import Gan
from growgan.training.health import is_finite
from growgan.training.loop import (
    DivergenceError,
    ResumePoint,
    TrainingProgress,
    train,
)
from growgan.training.memory import PeakMemory, choose_num_micro_batches, is_out_of_memory
from growgan.training.runtime import Runtime

SAMPLE_SHEET_IMAGES = 64  # images on the sample sheet of a candidate
SAMPLE_SHEET_SEED = 1  # all candidates use the same latents


class CandidateTrainer:
    """Trains and scores candidates. It makes no decisions.

    Args:
        batches: Training data.
        runtime: Device, precision and processes.
        scorer: Measures the score. Only the main process of a distributed run has one.
        callback: Shows the progress and saves checkpoints.
        pretrained_gan: The GAN that roots are initialized from, if any.
        num_micro_batches: Number of parts into which each batch is split. It grows if memory runs
            out.
    """

    def __init__(
        self,
        batches: Batches,
        runtime: Runtime,
        scorer: Scorer | None,
        callback: TrainingCallback,
        *,
        pretrained_gan: Gan | None = None,
        num_micro_batches: int = 1,
    ) -> None:
        self.batches, self.runtime, self.callback = batches, runtime, callback
        self.pretrained_gan = pretrained_gan
        self.num_micro_batches = num_micro_batches
        self.candidate_scorer = CandidateScorer(batches, runtime, scorer)

    def run(self, trial: Trial, parent: Gan | None) -> TrialResult:
        """Train and score a candidate.

        Divergence and a lack of memory are reported in the result, not raised.
        """
        result, stopwatch = TrialResult(trial), Stopwatch()
        peak_memory = PeakMemory(self.runtime.device)

        # Build the networks, or restore an interrupted trial.
        restored = self.callback.restore(trial)
        if restored is not None:
            gan, resume_point = restored
        else:
            gan = self._build_gan(trial, parent)
            resume_point = ResumePoint(gan.images_seen, gan.alpha)
        result.seconds_by_phase["build"] = stopwatch.lap()

        # Train, in all processes.
        distributed = self.runtime.distributed
        if distributed.world_size > 1:
            distributed.broadcast_object(TrainRequest(trial, gan_to_files(gan), resume_point))
        result.error = self.train_only(trial, gan, resume_point)
        result.images_trained = gan.images_seen - resume_point.segment_start_images
        result.train_seconds = resume_point.seconds_trained + stopwatch.lap()
        result.seconds_by_phase["train"] = result.train_seconds

        # Score.
        if not result.error:
            self.callback.on_progress(trial, TrainingStatus.of(gan), None)
            generator, discriminator = gan.generator, gan.discriminator
            result.gan, result.specs = gan, (generator.spec, discriminator.spec)
            result.num_parameters = generator.num_parameters(), discriminator.num_parameters()
            try:
                self._retry_with_more_micro_batches(
                    trial, partial(self._score_and_check_health, result, gan)
                )
            except MemoryError as error:
                result.error = str(error)
        result.seconds_by_phase["score"] = stopwatch.lap()
        result.peak_memory_mib = peak_memory.mib
        return result

    def train_only(self, trial: Trial, gan: Gan, resume_point: ResumePoint) -> str:
        """Train ``gan`` for the rest of its segment.

        Returns:
            Why training failed, or "" if it did not.
        """
        try:
            self._choose_micro_batches(trial, gan)
            with self.runtime.fork_rng(gan.generator.is_stochastic):
                segment_training = _SegmentTraining(self, trial, gan, resume_point)
                self._retry_with_more_micro_batches(trial, segment_training.run)
        except (DivergenceError, MemoryError) as error:
            return str(error)
        return ""

    def _build_gan(self, trial: Trial, parent: Gan | None) -> Gan:
        proposal = trial.proposal
        if parent is not None:
            growth = proposal.growth
            return parent.grown_copy(
                growth.generator_edits, growth.discriminator_edits, seed=trial.seed
            )
        if proposal.root_specs is None:
            raise ValueError(f"proposal {trial.id} has neither a parent nor root specs")
        settings, device = trial.settings.optimizer, self.runtime.device
        if self.pretrained_gan is not None:
            return init_from_pretrained(
                self.pretrained_gan, proposal.root_specs, settings, seed=trial.seed, device=device
            )
        return Gan.create(*proposal.root_specs, settings, seed=trial.seed, device=device)

    def _score_and_check_health(self, result: TrialResult, gan: Gan) -> None:
        """Score a candidate and measure its health. Weights that are not finite get no score."""
        settings = result.trial.settings
        if is_finite(gan):
            result.sample_images = gan.generate(
                SAMPLE_SHEET_IMAGES,
                seed=SAMPLE_SHEET_SEED,
                source=self.candidate_scorer.source_images(SAMPLE_SHEET_IMAGES),
            )
            result.score = self.candidate_scorer.score(
                gan, batch_size=min(256, 8 * settings.batch_size // self.num_micro_batches)
            )
        result.health = self.candidate_scorer.check_health(
            gan, result.score, batch_size=self.batches.batch_size // self.num_micro_batches
        )

    def _retry_with_more_micro_batches(self, trial: Trial, function: Callable[[], None]) -> None:
        """Call ``function``, with twice as many micro-batches each time that memory runs out.

        Raises:
            MemoryError: Memory runs out even with the smallest micro-batches.
        """
        while True:
            try:
                return function()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.runtime.distributed.world_size > 1:
                    raise
                self._double_micro_batches(trial)

    def _choose_micro_batches(self, trial: Trial, gan: Gan) -> None:
        """Split batches if the free memory is unlikely to suffice for whole ones.

        A budget of images repeats exactly, so there the free memory must not matter.
        """
        if trial.segment.images is not None or self.runtime.distributed.world_size > 1:
            return
        num_micro_batches = choose_num_micro_batches(
            (gan.generator.spec, gan.discriminator.spec),
            trial.settings.batch_size,
            trial.settings.network.mbstd_group_size,
            self.runtime.device,
        )
        if num_micro_batches > self.num_micro_batches:
            self.num_micro_batches = num_micro_batches
            self.callback.on_out_of_memory(trial, num_micro_batches)

    def _double_micro_batches(self, trial: Trial) -> None:
        """Double the number of micro-batches, each of which must hold whole mbstd groups."""
        size = trial.settings.batch_size // self.num_micro_batches
        if size % (2 * max(1, trial.settings.network.mbstd_group_size)):
            raise MemoryError(
                f"candidate {trial.id} does not fit into memory, even with micro-batches of "
                f"{size} images"
            )
        self.num_micro_batches *= 2
        self.callback.on_out_of_memory(trial, self.num_micro_batches)


@dataclass
class _SegmentTraining:
    """Trains a segment, and remembers its position so that ``run`` can be called again.

    Attributes:
        trainer: Supplies the data, the runtime and the callback.
        trial: The trial.
        gan: Trained in place.
        resume_point: Current position in the segment.
    """

    trainer: CandidateTrainer
    trial: Trial
    gan: Gan
    resume_point: ResumePoint

    def run(self) -> None:
        """Train for the rest of the segment."""
        train(
            self.gan,
            self.trainer.batches,
            make_objective(self.trial.settings),
            self.trial.settings,
            runtime=self.trainer.runtime,
            segment=self.trial.segment,
            on_progress=self._on_progress,
            on_step_end=self._on_step_end,
            resume_point=self.resume_point,
            num_micro_batches=self.trainer.num_micro_batches,
        )

    def _on_progress(self, progress: TrainingProgress) -> None:
        self.trainer.callback.on_progress(self.trial, TrainingStatus.of(self.gan), progress)

    def _on_step_end(self, resume_point: ResumePoint) -> None:
        self.resume_point = resume_point
        self.trainer.callback.on_step_end(self.trial, self.gan, resume_point)
