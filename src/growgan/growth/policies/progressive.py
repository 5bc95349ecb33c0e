"""Progressive growing: double the resolution on a schedule (Karras et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from growgan.growth.actions import UNCHANGED
from growgan.growth.history import Candidate, History, Proposal, Space
from growgan.growth.policies.base import POLICIES, Selection, go_on, portion, usual_slice
from growgan.nets.cost import step_cost


@POLICIES.register(
    "progressive", "double the resolution on a schedule", "Karras et al. 2018, 1710.10196"
)
@dataclass(frozen=True)
class Progressive:
    """PGGAN's schedule, scaled to the budget: every resolution sees equally many images.

    In a budget of time the images are those that the stacks' cost leads one to expect.

    Attributes:
        fade: share of a resolution's images over which it fades in (published: 0.5).
        last: how many times as many images the last resolution sees as each one before.
    """

    fade: float = 0.5
    last: float = 1.0

    def propose(self, alive: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        space, usual = history.space, usual_slice(history)
        bounds = self.bounds(history)
        if not alive:
            share = min(usual, bounds[0])
            return [Proposal(None, share, stacks=space.stacks(0))]
        parent = alive[0]
        level = space.level(parent.resolution)
        ended = history.spent >= bounds[level] - usual / 4
        grows = level < space.levels and ended
        level += grows
        begin, end = bounds[level - 1] if level else 0.0, bounds[level]
        remaining = max(end - history.spent, usual / 4)  # late, after a slow start
        share = remaining if remaining < 1.5 * usual else usual
        share = portion(history, share)
        fade = self.fade * (end - begin) / share if level else 0.0
        growth = space.doubling(parent) if grows else UNCHANGED
        return [Proposal(parent.id, share, growth, fade)]

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        return go_on(children, history)

    def bounds(self, history: History) -> list[float]:
        """Return the share of the budget at which each resolution's turn ends, the last 1."""
        space = history.space
        weights = [self.last if k == space.levels else 1.0 for k in range(space.levels + 1)]
        if history.budget.seconds is not None:
            weights = [w * _cost(space, level) for level, w in enumerate(weights)]
        return [sum(weights[: k + 1]) / sum(weights) for k in range(space.levels + 1)]


def _cost(space: Space, level: int) -> float:
    """Return the time that an image takes at ``level``, in arbitrary units."""
    return step_cost(*space.stacks(level))
