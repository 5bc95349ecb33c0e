"""Random growth: the baseline that every search should beat."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from growgan.search.growth import NO_GROWTH, Growth
from growgan.search.history import Candidate, History, Proposal
from growgan.search.policies.base import (
    LAST_GROWTH_SPENT_FRACTION,
    POLICIES,
    ConfigurablePolicy,
    Selection,
    clamp_to_remaining,
    default_segment_fraction,
    keep_only_child,
    round_rng,
)


@POLICIES.register("random", "Apply random legal growths, as a baseline.")
class RandomPolicy(ConfigurablePolicy):
    """Grow at random from the base resolution. No candidates are compared."""

    uses_edit_settings: ClassVar[bool] = True

    resolution_growth_fraction: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Fraction of the budget by which the target resolution must be reached.",
    )
    growth_prob: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Probability of a growth before each segment at the target resolution.",
    )
    fade_fraction: float = Field(
        0.5, ge=0, le=1, description="Fraction of a segment over which new layers fade in."
    )

    def propose(self, survivors: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        space = history.space
        # Below the target, each resolution has time for one other growth and for the doubling.
        num_segments = 2 * space.max_level + 1
        short_fraction = min(
            self.resolution_growth_fraction / num_segments, default_segment_fraction(history)
        )
        if not survivors:
            return [Proposal(None, short_fraction, root_specs=space.specs_at(0))]
        parent = survivors[0]
        below_target = parent.resolution != space.target_resolution
        fraction = clamp_to_remaining(
            history, short_fraction if below_target else default_segment_fraction(history)
        )
        growth = self.sample_growth(round_rng(history), parent, history, below_target=below_target)
        fade_segments = self.fade_fraction if growth.has_fade_in() else 0.0
        return [Proposal(parent.id, fraction, growth, fade_segments)]

    def sample_growth(
        self, rng: random.Random, parent: Candidate, history: History, *, below_target: bool
    ) -> Growth:
        """Return a random legal growth.

        Below the target, at least every other growth doubles the resolution.
        """
        growths = history.space.legal_growths(parent)
        doublings = [growth for growth in growths if growth.resampling_factors[0] == 2]
        others = [growth for growth in growths if growth.resampling_factors[0] == 1 and growth]
        if below_target:
            must_double = parent.growth.resampling_factors[0] == 1
            doublings = doublings or [history.space.doubling_growth(parent)]
            return rng.choice(doublings if must_double else growths)
        too_late = history.spent_fraction > LAST_GROWTH_SPENT_FRACTION
        if too_late or not others or rng.random() > self.growth_prob:
            return NO_GROWTH
        return rng.choice(others)

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        return keep_only_child(children, history)
