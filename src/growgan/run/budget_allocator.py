"""How much of the budget is spent, and how long each trial may train."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from growgan.config import Settings
from growgan.execution.trial import Trial
from growgan.search.budget import Budget
from growgan.search.history import History, Proposal
from growgan.training.loop import TrainingSegment

MIN_SEGMENT_FRACTION = 0.01  # of the budget; no shorter segment is started
MIN_SEGMENT_SECONDS = 0.1


class BudgetMeter:
    """Measures what a run has spent. Time between an interruption and the resume does not count.

    Args:
        budget: The budget of the run.
        elapsed: Seconds that earlier processes spent.
        images_seen: Images that earlier processes trained on.

    Attributes:
        images_seen: Images trained on, summed over all candidates.
        phase_seconds: Seconds by phase ("train", "score", "data", ...).
    """

    def __init__(self, budget: Budget, elapsed: float = 0.0, images_seen: int = 0) -> None:
        self.budget = budget
        self.images_seen = images_seen
        self.phase_seconds: dict[str, float] = {}
        self._start_time = time.perf_counter() - elapsed

    @property
    def elapsed(self) -> float:
        """Seconds on the run's clock."""
        return time.perf_counter() - self._start_time

    @property
    def spent_fraction(self) -> float:
        """Fraction of the budget that is spent. It may exceed 1."""
        if self.budget.seconds is not None:
            return self.elapsed / self.budget.seconds
        return self.images_seen / (self.budget.images or 1)

    @property
    def seconds_left(self) -> float | None:
        """Seconds left. None in a budget of images."""
        return None if self.budget.seconds is None else self.budget.seconds - self.elapsed

    def add_elapsed(self, seconds: float) -> None:
        """Count ``seconds`` that an earlier process spent."""
        self._start_time -= seconds

    def add_phase_seconds(self, phase: str, seconds: float) -> None:
        """Add ``seconds`` to a phase."""
        self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + seconds


def allocated_images(trials: Iterable[Trial]) -> int:
    """Return how many images the trials will train on; 0 in a budget of time."""
    return sum(trial.segment.images or 0 for trial in trials)


@dataclass(frozen=True)
class BudgetAllocator:
    """Divides the budget into training segments: whole batches of images, or seconds."""

    meter: BudgetMeter
    batch_size: int

    def has_budget_for_trial(self, images_seen: int, overhead_seconds: float) -> bool:
        """Return whether the budget allows another trial.

        Args:
            images_seen: Images that are spent, including those of running trials.
            overhead_seconds: Time a trial takes besides training.
        """
        budget, seconds_left = self.meter.budget, self.meter.seconds_left
        if seconds_left is not None:
            min_seconds = MIN_SEGMENT_FRACTION * (budget.seconds or 0)
            return seconds_left > 2 * overhead_seconds + min_seconds
        return images_seen + self.batch_size <= (budget.images or 0)

    def allocate_trials(
        self,
        proposals: Iterable[Proposal],
        history: History,
        settings: Settings,
        *,
        first_id: int,
        overhead_seconds: float,
        images_in_flight: int = 0,
    ) -> Iterator[Trial]:
        """Yield a trial for each proposal that the budget allows.

        A trial does not depend on the outcome of the others in its round, so that it is the same
        whether they are trained one after another or all at once.

        Args:
            proposals: What to train.
            history: The history that the proposals are based on.
            settings: Settings of the trials.
            first_id: Number of the first trial.
            overhead_seconds: Time a trial takes besides training.
            images_in_flight: Images of trials that are running already.
        """
        images_seen = self.meter.images_seen + images_in_flight
        start_fraction = history.spent_fraction
        for number, proposal in enumerate(proposals, first_id):
            # The first trial of a run is always made.
            if number and not self.has_budget_for_trial(images_seen, overhead_seconds):
                return
            segment = replace(
                self._segment(proposal, overhead_seconds, images_seen),
                start_fraction=start_fraction,
                end_fraction=start_fraction + proposal.budget_fraction,
            )
            images_seen += segment.images or 0
            yield Trial(
                id=f"{number:04d}",
                round=history.round,
                proposal=proposal,
                segment=segment,
                seed=(settings.seed * 1_000_003 + number) & 0x7FFFFFFF,
                settings=settings,
            )

    def _segment(
        self, proposal: Proposal, overhead_seconds: float, images_seen: int
    ) -> TrainingSegment:
        """Convert a fraction of the budget into whole batches, or into seconds without overhead."""
        budget, batch_size = self.meter.budget, self.batch_size
        if budget.images is not None:
            images = min(
                round(proposal.budget_fraction * budget.images), budget.images - images_seen
            )
            return TrainingSegment(
                images=max(batch_size, images // batch_size * batch_size),
                fade_segments=proposal.fade_segments,
            )
        total_seconds = proposal.budget_fraction * (budget.seconds or 0)
        train_seconds = max(total_seconds - overhead_seconds, total_seconds / 2)
        seconds_left = (self.meter.seconds_left or 0) - overhead_seconds
        return TrainingSegment(
            seconds=max(MIN_SEGMENT_SECONDS, min(train_seconds, seconds_left)),
            fade_segments=proposal.fade_segments,
        )
