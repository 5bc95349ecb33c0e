"""No growth at all: a complete stack, trained to the end of the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from growgan.growth.history import Candidate, History, Proposal
from growgan.growth.policies.base import POLICIES, Selection, go_on, portion, usual_slice


@POLICIES.register("fixed", "train the complete stack, never grow")
@dataclass(frozen=True)
class Fixed:
    """Train the preset's complete stack."""

    def propose(self, alive: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        share = portion(history, usual_slice(history))
        if not alive:
            return [Proposal(None, share, stacks=history.space.stacks(history.space.levels))]
        return [Proposal(parent.id, share) for parent in alive]

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        return go_on(children, history)
