"""The interface of a growth policy, and arithmetic that several policies share."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar, Protocol

from pydantic import ConfigDict, ValidationError

from growgan.config import SettingsGroup
from growgan.errors import UserError, unknown_name_error
from growgan.nets.growth_ops import Widen
from growgan.registry import Registry
from growgan.search.growth import Growth
from growgan.search.history import Candidate, History, Proposal

TARGET_SEGMENT_SECONDS = 60.0  # training between two scores
MIN_SEGMENTS_PER_RUN = 10  # in a budget too short for segments of the target length
MAX_OVERHEAD_FRACTION = 0.03  # of a segment, for everything but training
MAX_SEGMENT_FRACTION = 1 / 3  # of the budget, however slow the scoring is
LAST_GROWTH_SPENT_FRACTION = 0.7  # new layers would not be trained after this point of the budget
WIDEN_BOTH = Growth((Widen(),), (Widen(),))


@dataclass(frozen=True)
class Selection:
    """The outcome of a round.

    Attributes:
        survivor_ids: Ids of the candidates to continue with, the leader first.
        reason: Why, in one sentence.
    """

    survivor_ids: tuple[str, ...]
    reason: str


class GrowthPolicy(Protocol):
    """Decides what a search tries and keeps. Both methods are pure functions."""

    def propose(self, survivors: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        """Return the candidates to train next. An empty sequence ends the run."""

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        """Choose the survivors of a round. ``history`` already contains the ``children``."""


class ConfigurablePolicy(SettingsGroup, ABC):
    """A policy for the registry. Its fields are the settings ``growth.*``.

    Attributes:
        uses_edit_settings: Whether the policy chooses among the edits that the settings
            ``edits.*`` allow.
    """

    model_config = ConfigDict(strict=True)
    uses_edit_settings: ClassVar[bool] = False

    @abstractmethod
    def propose(self, survivors: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        """Return the candidates to train next. An empty sequence ends the run."""

    @abstractmethod
    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        """Choose the survivors of a round. ``history`` already contains the ``children``."""


POLICIES: Registry[type[ConfigurablePolicy]] = Registry("policy")


def make_policy(name: str, options: Mapping[str, Any]) -> GrowthPolicy:
    """Build the policy ``name`` with the settings ``growth.*``.

    Raises:
        UserError: The name or a setting is unknown, or a value has the wrong type or range.
    """
    policy_type = POLICIES[name]
    try:
        return policy_type.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            valid = [f"growth.{field}" for field in policy_type.model_fields]
            raise unknown_name_error("setting", f"growth.{key}", valid) from error
        raise UserError(
            f"setting 'growth.{key}' cannot be {first['input']!r}: {first['msg'].lower()}"
        ) from error


def improvement_rate(lineage: Sequence[Candidate]) -> float | None:
    """Return how fast the logarithm of the score falls, per whole budget.

    It is measured over the last two segments. None if either of them started with a growth, or if
    a score is missing.
    """
    if len(lineage) < 3 or any(candidate.growth for candidate in lineage[-2:]):
        return None
    first, last = lineage[-3], lineage[-1]
    if not first.score or not last.score or last.spent_fraction <= first.spent_fraction:
        return None
    return log(first.score / last.score) / (last.spent_fraction - first.spent_fraction)


def default_segment_fraction(history: History) -> float:
    """Return the fraction of the budget for one segment of training without growth.

    In a budget of time, segments are longer if scoring is slow, so that the overhead stays small.
    """
    seconds = history.budget.seconds
    if seconds is None:
        return 1 / MIN_SEGMENTS_PER_RUN
    overhead_seconds = sum(c.seconds - c.train_seconds for c in history.candidates[-1:])
    shortest = min(1 / MIN_SEGMENTS_PER_RUN, TARGET_SEGMENT_SECONDS / seconds)
    return max(
        shortest, min(MAX_SEGMENT_FRACTION, overhead_seconds / MAX_OVERHEAD_FRACTION / seconds)
    )


def clamp_to_remaining(history: History, fraction: float) -> float:
    """Return ``fraction``, or all that is left if less than half a segment would remain."""
    return history.remaining_fraction if history.remaining_fraction < 1.5 * fraction else fraction


def round_rng(history: History, *keys: object) -> random.Random:
    """Return a random number generator seeded by the run's seed, the round and ``keys``."""
    return random.Random(f"{history.seed}/{history.round}/{keys}")


def keep_only_child(children: Sequence[Candidate], history: History) -> Selection:
    """Keep the only child of a round. If it failed, return to the best candidate so far."""
    succeeded = [child.id for child in children if not child.error]
    if succeeded:
        return Selection((succeeded[-1],), "the only candidate of the round")
    best = history.best
    return Selection((best.id,) if best else (), "the candidate failed; back to the best so far")
