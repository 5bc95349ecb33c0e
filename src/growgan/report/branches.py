"""The growth tree, one node an architecture.

Slices that train the same pair on are one :class:`Branch`, so that the tree shows growths and not
the clock; what grew out of any of those slices hangs below the branch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from growgan.report.run import CandidateRecord, RunRecord

ORDER = {"best": 0, "alive": 1, "pruned": 2, "failed": 3}


@dataclass(frozen=True)
class Branch:
    """One pair of networks, slice after slice.

    Attributes:
        members: the slices, oldest first; at least one.
        children: what grew from them: the way to the best first, then by score.
        leads: whether it lies on the way from the root to the best candidate.
        lives: whether it or anything below it is still alive.
    """

    members: tuple[CandidateRecord, ...]
    children: tuple[Branch, ...]
    leads: bool
    lives: bool

    @property
    def face(self) -> CandidateRecord:
        """The slice that stands for the branch: the run's best if it is here, else the last."""
        best = [c for c in self.members if c.status == "best"]
        return (best or [c for c in self.members if c.status != "failed"] or self.members)[-1]

    @property
    def status(self) -> str:
        """ "best", "alive" (also: lives on below), "pruned" or "failed"."""
        if any(c.status == "best" for c in self.members):
            return "best"
        if self.lives or self.leads:
            return "alive"
        return "failed" if all(c.status == "failed" for c in self.members) else "pruned"

    @property
    def seconds(self) -> float:
        """Cost of its own slices, without those below."""
        return sum(c.seconds for c in self.members)


def branches(run: RunRecord) -> tuple[Branch, ...]:
    """Return the roots of the growth tree."""
    path = frozenset(c.id for c in run.best_lineage)
    roots = [_branch(run, root, path) for root in run.children.get(None, ())]
    return tuple(sorted(roots, key=_rank))


def _branch(run: RunRecord, first: CandidateRecord, path: frozenset[str]) -> Branch:
    members = [first]
    grown: list[CandidateRecord] = []
    while True:
        below = run.children.get(members[-1].id, ())
        same = sorted((c for c in below if c.trains_on), key=lambda c: _order(c, path))
        grown += [c for c in below if c not in same[:1]]
        if not same:
            break
        members.append(same[0])
    children = tuple(sorted((_branch(run, c, path) for c in grown), key=_rank))
    lives = any(c.status in ("best", "alive") for c in members) or any(b.lives for b in children)
    return Branch(tuple(members), children, any(c.id in path for c in members), lives)


def _order(c: CandidateRecord, path: frozenset[str]) -> tuple[bool, int, float]:
    return c.id not in path, ORDER[c.status], math.inf if c.score is None else c.score


def _rank(b: Branch) -> tuple[bool, int, float]:
    score = b.face.score
    return not b.leads, ORDER[b.status], math.inf if score is None else score
