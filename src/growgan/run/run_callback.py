"""The training callback of a run: it shows and logs the progress and saves checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from growgan.execution.callback import TrainingStatus
from growgan.execution.trial import Trial
from growgan.report.formatting import format_resolution
from growgan.run.budget_allocator import BudgetMeter
from growgan.run.checkpointer import TrialCheckpointer
from growgan.run.run_directory import STATS_FILE
from growgan.run.search_state import SearchState
from growgan.training.gan import Gan
from growgan.training.loop import ResumePoint, TrainingProgress
from growgan.training.progress import Display, RunStatus


class RunCallback:
    """The :class:`TrainingCallback` of a search loop.

    Args:
        run_dir: The run directory.
        batch_size: Images per training step.
        state: The state of the search, for its scores.
        meter: Measures what is spent.
        display: Shows the progress.
        checkpointer: Saves trials in training.
        record: Appends an event to the ledger.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        batch_size: int,
        state: SearchState,
        meter: BudgetMeter,
        display: Display,
        checkpointer: TrialCheckpointer,
        record: Callable[[dict[str, Any]], None],
    ) -> None:
        self.stats_path, self.batch_size = run_dir / STATS_FILE, batch_size
        self.state, self.meter, self.display = state, meter, display
        self.checkpointer, self.record = checkpointer, record

    def on_progress(
        self, trial: Trial, status: TrainingStatus, progress: TrainingProgress | None
    ) -> None:
        """Show the progress of a trial and append it to ``stats.jsonl``.

        ``progress`` is None while the candidate is being scored.
        """
        phase = "score" if progress is None else "fade in" if status.alpha < 1 else "train"
        history, elapsed = self.state.history, self.meter.elapsed
        self.display.progress(
            RunStatus(
                candidate=trial.id,
                phase=f"{phase} {format_resolution(status.resolution)}",
                resolution=status.resolution,
                alpha=status.alpha,
                images_seen=status.images_seen,
                images_per_second=progress.images_per_second if progress else 0.0,
                losses=progress.terms if progress else {},
                score=history.candidates[-1].score if history.candidates else None,
                best_score=history.best.score if history.best else None,
                spent_fraction=self._spent_fraction(trial, progress),
                elapsed_seconds=elapsed,
                seconds_left=self.meter.seconds_left,
            )
        )
        if progress:
            line = {
                "candidate": trial.id,
                "elapsed": round(elapsed, 3),
                "images": status.images_seen,
                "resolution": list(status.resolution),
                "alpha": round(status.alpha, 4),
                "images_per_second": round(progress.images_per_second, 1),
                **progress.terms,
            }
            with self.stats_path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def on_step_end(self, trial: Trial, gan: Gan, resume_point: ResumePoint) -> None:
        """Save the trial if a checkpoint is due.

        Raises:
            KeyboardInterrupt: The run must stop. The trial is saved.
        """
        self.checkpointer.save_if_due(trial, gan, resume_point)

    def on_out_of_memory(self, trial: Trial, num_micro_batches: int) -> None:
        """Record and show that each batch is divided into micro-batches from now on."""
        self.record(
            {
                "event": "micro_batches",
                "candidate": trial.id,
                "num_micro_batches": num_micro_batches,
            }
        )
        size = self.batch_size // num_micro_batches
        self.display.message(
            f"not enough memory: each batch is now processed {size} images at a time"
        )

    def restore(self, trial: Trial) -> tuple[Gan, ResumePoint] | None:
        """Return the newest checkpoint of a trial and where to resume it, if there is one."""
        initial_specs = trial.proposal.initial_specs(self.state.history)
        return self.checkpointer.restore(trial, initial_specs, self.display.message)

    def _spent_fraction(self, trial: Trial, progress: TrainingProgress | None) -> float:
        if self.meter.budget.seconds is not None:
            return self.meter.spent_fraction
        segment_fraction = progress.segment_fraction if progress else 1.0
        return self.meter.spent_fraction + trial.proposal.budget_fraction * segment_fraction
