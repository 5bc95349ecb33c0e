"""Progressive growing: double the resolution on a schedule (Karras et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from growgan.nets.flops import relative_step_time
from growgan.search.growth import NO_GROWTH
from growgan.search.history import Candidate, History, Proposal, SearchSpace
from growgan.search.policies.base import (
    POLICIES,
    ConfigurablePolicy,
    Selection,
    clamp_to_remaining,
    default_segment_fraction,
    keep_only_child,
)


@POLICIES.register(
    "progressive", "Double the resolution on a schedule.", "Karras et al. 2018, 1710.10196"
)
class ProgressivePolicy(ConfigurablePolicy):
    """The schedule of PGGAN, scaled to the budget: every resolution sees equally many images.

    In a budget of time, the number of images is estimated from the cost of the networks.
    """

    fade_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Fraction of a resolution's images over which its layers fade in. The paper"
        " uses 0.5.",
    )
    final_resolution_weight: float = Field(
        1.0,
        gt=0,
        description="Number of images of the final resolution, relative to each one before it.",
    )

    def propose(self, survivors: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        space, default_fraction = history.space, default_segment_fraction(history)
        end_fractions = self.resolution_end_fractions(history)
        if not survivors:
            fraction = min(default_fraction, end_fractions[0])
            return [Proposal(None, fraction, root_specs=space.specs_at(0))]
        parent = survivors[0]
        level = space.level_of(parent.resolution)
        is_over = history.spent_fraction >= end_fractions[level] - default_fraction / 4
        grows = level < space.max_level and is_over
        level += grows
        start, end = end_fractions[level - 1] if level else 0.0, end_fractions[level]
        # After a slow start the phase may be over already, and still needs a segment.
        phase_left = max(end - history.spent_fraction, default_fraction / 4)
        fraction = phase_left if phase_left < 1.5 * default_fraction else default_fraction
        fraction = clamp_to_remaining(history, fraction)
        fade_segments = self.fade_fraction * (end - start) / fraction if level else 0.0
        growth = space.doubling_growth(parent) if grows else NO_GROWTH
        return [Proposal(parent.id, fraction, growth, fade_segments)]

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        return keep_only_child(children, history)

    def resolution_end_fractions(self, history: History) -> list[float]:
        """Return the fraction of the budget at which each resolution ends; the last is 1."""
        space = history.space
        weights = [
            self.final_resolution_weight if level == space.max_level else 1.0
            for level in range(space.max_level + 1)
        ]
        if history.budget.seconds is not None:
            weights = [
                weight * _relative_image_time(space, level) for level, weight in enumerate(weights)
            ]
        return [sum(weights[: level + 1]) / sum(weights) for level in range(space.max_level + 1)]


def _relative_image_time(space: SearchSpace, level: int) -> float:
    """Return the training time per image at ``level``, in arbitrary units."""
    return relative_step_time(*space.specs_at(level))
