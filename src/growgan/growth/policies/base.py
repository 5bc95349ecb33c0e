"""What a policy is, and the arithmetic of shares that all of them use."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import log
from typing import Any, Protocol

from growgan.errors import UserError, unknown
from growgan.growth.actions import Growth
from growgan.growth.history import Candidate, History, Proposal
from growgan.nets.edits import Widen
from growgan.registry import Registry

SLICE_SECONDS = 60.0  # of plain training between two scores
SLICES = 10  # of a budget that is shorter
BESIDE = 0.03  # of a slice may go into anything but training
LONGEST = 1 / 3  # of the budget, however slowly a pair is scored
EVERYTHING = Growth((Widen(),), (Widen(),))


@dataclass(frozen=True)
class Selection:
    """Which candidates go on, the best first, and why, in a sentence."""

    alive: tuple[str, ...]
    reason: str


class GrowthPolicy(Protocol):
    """Decides a search. Both methods are pure functions of their arguments."""

    def propose(self, alive: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        """Return the children to try next; none at all ends the run."""

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        """Return who goes on, given the round's children; ``history`` holds them too."""


POLICIES: Registry[type[GrowthPolicy]] = Registry("policy")


def make_policy(name: str, values: Mapping[str, Any]) -> GrowthPolicy:
    """Build the policy called ``name``.

    Raises:
        UserError: an unknown name or field, or a value of the wrong type.
    """
    policy: type[Any] = POLICIES[name]
    known = {field.name: field for field in fields(policy)}
    for key, value in values.items():
        if key not in known:
            raise unknown(f"{name} setting", key, known)
        kind = type(known[key].default)
        right = isinstance(value, (int, float) if kind is float else kind)
        if not right or isinstance(value, bool) != (kind is bool):
            raise UserError(f"setting 'growth.{key}' must be {kind.__name__}, but got {value!r}")
    made: GrowthPolicy = policy(**values)
    return made


def check_range(policy: object, low: float, high: float, *names: str, closed: bool = False) -> None:
    """Raise a :class:`UserError` unless each named field of ``policy`` is in (low, high].

    With ``closed`` it may be ``low`` itself.
    """
    for name in names:
        value = getattr(policy, name)
        if not (low <= value if closed else low < value) or value > high:
            bounds = f"{'[' if closed else '('}{low}, {high}]"
            raise UserError(f"setting 'growth.{name}' must be in {bounds}, but got {value}")


def slope(line: Sequence[Candidate]) -> float | None:
    """Return how fast the score falls: its logarithm, a unit of the budget.

    Taken over the last two slices, which must both be unchanged; None if they are not.
    """
    if len(line) < 3 or any(c.growth for c in line[-2:]):
        return None
    first, last = line[-3], line[-1]
    if not first.score or not last.score or last.spent <= first.spent:
        return None
    return log(first.score / last.score) / (last.spent - first.spent)


def usual_slice(history: History) -> float:
    """Return the share of the budget that one slice of plain training takes.

    Where time is counted, a pair that is slow to score is scored less often.
    """
    seconds = history.budget.seconds
    if seconds is None:
        return 1 / SLICES
    beside = sum(c.seconds - c.trained for c in history.candidates[-1:])
    least = min(1 / SLICES, SLICE_SECONDS / seconds)
    return max(least, min(LONGEST, beside / BESIDE / seconds))


def portion(history: History, share: float) -> float:
    """Return ``share``, or all that is left where less than half of another would remain."""
    return history.left if history.left < 1.5 * share else share


def dice(history: History, *keys: object) -> random.Random:
    """Return random numbers keyed by the run's seed and the round."""
    return random.Random(f"{history.seed}/{history.round}/{keys}")


def go_on(children: Sequence[Candidate], history: History) -> Selection:
    """Keep the one child there is; if it failed, go back to the best that did not."""
    sound = [child.id for child in children if not child.error]
    if sound:
        return Selection((sound[-1],), "the only child goes on")
    best = history.best
    return Selection((best.id,) if best else (), "the child failed; back to the best so far")
