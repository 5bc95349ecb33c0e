"""Growth when the score stops improving: the simplest policy that looks at the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from growgan.growth.actions import UNCHANGED, Growth
from growgan.growth.history import Candidate, History, Proposal
from growgan.growth.policies.base import (
    EVERYTHING,
    POLICIES,
    Selection,
    go_on,
    portion,
    usual_slice,
)


@POLICIES.register("plateau", "grow when the score stops improving")
@dataclass(frozen=True)
class Plateau:
    """Double the resolution at each plateau; at the target, double the width instead.

    Attributes:
        threshold: relative gain a slice below which the score counts as flat.
        reach: share of the budget by which the target resolution must be reached; each size has
            its part of it, so that a score that never flattens cannot hold the run back.
        fade: share of a slice over which a growth fades in.
        widen: how often the width may double at the target.
    """

    threshold: float = 0.03
    reach: float = 0.3
    fade: float = 0.5
    widen: int = 1

    def propose(self, alive: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        space = history.space
        climb = min(self.reach / (3 * space.levels + 1), usual_slice(history))
        if not alive:
            return [Proposal(None, climb, stacks=space.stacks(0))]
        parent = alive[0]
        below = parent.resolution != space.target
        share = portion(history, climb if below else usual_slice(history))
        growth = self.growth(parent, history, below=below)
        return [Proposal(parent.id, share, growth, self.fade if growth.fades() else 0.0)]

    def growth(self, parent: Candidate, history: History, *, below: bool) -> Growth:
        """Return what to grow now, if anything."""
        space, line = history.space, history.lineage(parent)
        flat = is_flat(line, self.threshold)
        if below:
            level = space.level(parent.resolution)
            overdue = history.spent >= self.reach * (level + 1) / (space.levels + 1)
            return space.doubling(parent) if flat or overdue else UNCHANGED
        widened = sum(bool(c.growth) and not c.growth.fades() for c in line)
        late = history.spent > 0.7  # what arrives now would not be trained
        return EVERYTHING if flat and widened < self.widen and not late else UNCHANGED

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        return go_on(children, history)


def is_flat(line: Sequence[Candidate], threshold: float) -> bool:
    """Return whether the last two slices, both unchanged, gained less than ``threshold`` each."""
    if len(line) < 3 or any(c.growth for c in line[-2:]):
        return False
    scores = [c.score for c in line[-3:]]
    if any(score is None for score in scores):
        return False
    first, _, last = (float(score or 0) for score in scores)
    return last > first * (1 - threshold) ** 2
