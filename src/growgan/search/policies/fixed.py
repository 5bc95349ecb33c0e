"""A fixed architecture: the preset's complete networks, trained for the whole budget."""

from __future__ import annotations

from collections.abc import Sequence

from growgan.search.history import Candidate, History, Proposal
from growgan.search.policies.base import (
    POLICIES,
    ConfigurablePolicy,
    Selection,
    clamp_to_remaining,
    default_segment_fraction,
    keep_only_child,
)


@POLICIES.register("fixed", "Train the preset's complete networks without growth.")
class FixedPolicy(ConfigurablePolicy):
    """Train the preset's complete networks without growth."""

    def propose(self, survivors: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        space = history.space
        fraction = clamp_to_remaining(history, default_segment_fraction(history))
        if not survivors:
            return [Proposal(None, fraction, root_specs=space.specs_at(space.max_level))]
        return [Proposal(parent.id, fraction) for parent in survivors]

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        return keep_only_child(children, history)
