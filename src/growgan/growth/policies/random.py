"""Random growth: the control that every search should beat."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from growgan.growth.actions import UNCHANGED, Growth
from growgan.growth.history import Candidate, History, Proposal
from growgan.growth.policies.base import (
    POLICIES,
    Selection,
    dice,
    go_on,
    portion,
    usual_slice,
)


@POLICIES.register("random", "one random legal growth after another", "control of DGGAN")
@dataclass(frozen=True)
class RandomGrowth:
    """Grow at random from the base grid; nothing is compared, nothing is thrown away.

    Attributes:
        reach: share of the budget by which the target resolution must be reached.
        grow: probability of a growth at each slice once it has been reached.
        fade: share of a slice over which a growth fades in.
    """

    reach: float = 0.2
    grow: float = 0.3
    fade: float = 0.5

    def propose(self, alive: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        space = history.space
        slices = 2 * space.levels + 1  # one growth at each size, and the doublings
        climb = min(self.reach / slices, usual_slice(history))
        if not alive:
            return [Proposal(None, climb, stacks=space.stacks(0))]
        parent = alive[0]
        rng = dice(history)
        below = parent.resolution != space.target
        share = portion(history, climb if below else usual_slice(history))
        growth = self.draw(rng, parent, history, below=below)
        return [Proposal(parent.id, share, growth, self.fade if growth.fades() else 0.0)]

    def draw(
        self, rng: random.Random, parent: Candidate, history: History, *, below: bool
    ) -> Growth:
        """Return a random legal growth; a doubling at least at every other slice until the top."""
        space = history.space
        growths = space.growths(parent)
        doublings = [g for g in growths if g.factors[0] == 2] or [space.doubling(parent)]
        others = [growth for growth in growths if growth.factors[0] == 1 and growth]
        if below:
            late = parent.growth.factors[0] == 1
            return rng.choice(doublings if late else growths)
        late_run = history.spent > 0.7  # what arrives now would not be trained
        if late_run or not others or rng.random() > self.grow:
            return UNCHANGED
        return rng.choice(others)

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        return go_on(children, history)
