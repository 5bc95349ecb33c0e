"""Growth at plateaus: the simplest policy that reacts to the score."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from growgan.search.growth import NO_GROWTH, Growth
from growgan.search.history import Candidate, History, Proposal
from growgan.search.policies.base import (
    LAST_GROWTH_SPENT_FRACTION,
    POLICIES,
    WIDEN_BOTH,
    ConfigurablePolicy,
    Selection,
    clamp_to_remaining,
    default_segment_fraction,
    keep_only_child,
)


@POLICIES.register("plateau", "Grow whenever the score stops improving.")
class PlateauPolicy(ConfigurablePolicy):
    """Double the resolution at each plateau. At the target resolution, double the width instead."""

    plateau_gain: float = Field(
        0.03,
        gt=0,
        lt=1,
        description="Relative gain of the score per segment below which it has plateaued.",
    )
    resolution_growth_fraction: float = Field(
        0.3,
        gt=0,
        le=1,
        description="Fraction of the budget by which the target resolution must be reached. It is"
        " divided evenly among the resolutions.",
    )
    fade_fraction: float = Field(
        0.5, ge=0, le=1, description="Fraction of a segment over which new layers fade in."
    )
    max_widenings: int = Field(
        1, ge=0, description="How often the width may double at the target resolution."
    )

    def propose(self, survivors: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        space = history.space
        # Below the target there must be time for three segments at each resolution.
        short_fraction = min(
            self.resolution_growth_fraction / (3 * space.max_level + 1),
            default_segment_fraction(history),
        )
        if not survivors:
            return [Proposal(None, short_fraction, root_specs=space.specs_at(0))]
        parent = survivors[0]
        below_target = parent.resolution != space.target_resolution
        fraction = clamp_to_remaining(
            history, short_fraction if below_target else default_segment_fraction(history)
        )
        growth = self.choose_growth(parent, history, below_target=below_target)
        fade_segments = self.fade_fraction if growth.has_fade_in() else 0.0
        return [Proposal(parent.id, fraction, growth, fade_segments)]

    def choose_growth(self, parent: Candidate, history: History, *, below_target: bool) -> Growth:
        """Return the growth of the next segment, which may be no growth."""
        space, lineage = history.space, history.lineage(parent)
        plateaued = has_plateaued(lineage, self.plateau_gain)
        if below_target:
            level = space.level_of(parent.resolution)
            deadline = self.resolution_growth_fraction * (level + 1) / (space.max_level + 1)
            overdue = history.spent_fraction >= deadline
            return space.doubling_growth(parent) if plateaued or overdue else NO_GROWTH
        num_widenings = sum(bool(c.growth) and not c.growth.has_fade_in() for c in lineage)
        if (
            plateaued
            and num_widenings < self.max_widenings
            and history.spent_fraction <= LAST_GROWTH_SPENT_FRACTION
        ):
            return WIDEN_BOTH
        return NO_GROWTH

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        return keep_only_child(children, history)


def has_plateaued(lineage: Sequence[Candidate], min_gain: float) -> bool:
    """Return whether the score gained less than ``min_gain`` per segment over the last two.

    ``min_gain`` is relative to the score. Segments that started with a growth do not count.
    """
    if len(lineage) < 3 or any(candidate.growth for candidate in lineage[-2:]):
        return False
    scores = [candidate.score for candidate in lineage[-3:]]
    if any(score is None for score in scores):
        return False
    first, _, last = (float(score or 0) for score in scores)
    return last > first * (1 - min_gain) ** 2
