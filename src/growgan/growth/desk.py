"""What a proposal becomes on a budget: a task with a slice of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from growgan.config import Settings
from growgan.growth.budget import Meter
from growgan.growth.executor import Task
from growgan.growth.history import History, Proposal
from growgan.training.stage import Slice

LEAST = 0.01  # share of the budget that a slice is worth beginning for


def planned(tasks: Iterable[Task]) -> int:
    """Return how many images tasks that are being made will see, where these are counted."""
    return sum(task.piece.images or 0 for task in tasks)


@dataclass(frozen=True)
class Desk:
    """Cuts a budget into slices of whole batches of ``batch`` images, or of seconds."""

    meter: Meter
    batch: int

    def room(self, seen: int, overhead: float) -> bool:
        """Return whether there is budget for another slice.

        ``seen`` images are spent, those of tasks under way included; ``overhead`` is what a slice
        costs beside its training, in seconds.
        """
        budget, left = self.meter.budget, self.meter.left
        if left is not None:
            return left > 2 * overhead + LEAST * (budget.seconds or 0)
        return seen + self.batch <= (budget.images or 0)

    def tasks(
        self,
        proposals: Iterable[Proposal],
        history: History,
        settings: Settings,
        number: int,
        overhead: float,
        flying: int = 0,
    ) -> Iterator[Task]:
        """Yield a task for each proposal that there is budget for, numbered from ``number`` on.

        ``flying`` images are being seen by others. Nothing in a task hangs on how another one of
        its round ends, so that it is the same whether they are made in turn or all at once.
        """
        seen, begin = self.meter.images + flying, history.spent
        for i, proposal in enumerate(proposals, number):
            if i and not self.room(seen, overhead):
                return
            piece = self._piece(proposal, overhead, seen)
            seen += piece.images or 0
            piece = replace(piece, begin=begin, end=begin + proposal.share)
            seed = (settings.seed * 1_000_003 + i) & 0x7FFFFFFF
            yield Task(f"{i:04d}", history.round, proposal, piece, seed, settings)

    def _piece(self, proposal: Proposal, overhead: float, seen: int) -> Slice:
        """Turn a share of the budget into seconds, scoring included, or into whole batches."""
        budget, batch = self.meter.budget, self.batch
        if budget.images is not None:
            images = min(round(proposal.share * budget.images), budget.images - seen)
            return Slice(images=max(batch, images // batch * batch), fade=proposal.fade)
        whole = proposal.share * (budget.seconds or 0)
        seconds = max(whole - overhead, whole / 2)
        left_over = (self.meter.left or 0) - overhead
        return Slice(seconds=max(0.1, min(seconds, left_over)), fade=proposal.fade)
