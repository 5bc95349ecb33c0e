"""Dynamically grown GANs: the growth is searched for while the pair trains (DGGAN, AAAI 2021).

The published search is top-K greedy pruning: the parents of a round are the best K pairs in the
history, each legal growth of each parent is a candidate with probability p, each candidate trains
for a fixed slice and is scored, and the scores decide. This policy keeps that, and makes it pay on
a small budget: it decides by measured speed what can be known beforehand (the size to begin with,
when to double the resolution), and by trial what cannot. A trial takes time from the winner, so
the smallest budgets have none: by the defaults the first opens where the pair sees 1.25 million
images in the whole budget.

1. *Size.* The shape in the settings trains for a short slice, which shows how fast this machine is.
   If the budget can feed a larger pair, with ``shown`` images for each of its parameters, the run
   begins anew with the largest such: what starts wide learns better than what was widened.
2. *Climb.* The pair doubles its resolution as soon as its score stops falling fast, at the
   latest after a small share of the budget, so that most of it is left for the target.
3. *Grow when it pays.* When the score has flattened, a round of trials opens: the unchanged child,
   which is always there, and growths drawn from the legal ones. All trials take equal time (or
   images, if these are what the budget counts), so a growth that slows the steps must make up for
   it: capacity pays rent. In the first half of the budget a growth within the noise is taken,
   since what it adds pays later; then only a real gain.
4. *Go back.* A growth whose score does not return to its parent's is given up for the parent.
5. *Planner.* Tried growths together take at most ``search`` of the budget. None starts in its last
   part, where the rate falls and everything that arrives would stay half trained; none that would
   end before the running average has forgotten the parent; and none of a pair that is too large
   to learn from the images which it would still see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import sqrt

from growgan.config import StackSettings
from growgan.growth.actions import UNCHANGED, Growth
from growgan.growth.history import Candidate, History, Proposal, Space
from growgan.growth.policies.base import (
    EVERYTHING,
    POLICIES,
    Selection,
    check_range,
    dice,
    portion,
    slope,
    usual_slice,
)
from growgan.nets.cost import parameters, step_cost
from growgan.nets.edits import Widen
from growgan.nets.spec import StackSpec

WIDENINGS = (Growth((Widen(),), ()), EVERYTHING)

# Widths of G and D that a run may begin anew with, relative to the shape in the settings.
SIZES = ((2, 1), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8))


@POLICIES.register("dynamic", "search for the growth while training", "Liu et al. 2021, 2106.08505")
@dataclass(frozen=True)
class Dynamic:
    """Top-K greedy pruning from a planned size, trials on demand, and a budget planner.

    Attributes:
        top_k: how many of the best pairs of a round go on to be parents in a round of trials.
        keep: probability with which each legal growth becomes a candidate.
        probe: share of the budget of the first slice.
        anew: begin again with a larger pair where the budget can feed one.
        start: side in pixels at which the run starts, or the next larger that doublings reach.
        step: share of the budget that each slice below the target gets.
        steep: relative gain a slice below which a resolution is left for the next.
        reach: share of the budget that each resolution below the target gets at most.
        threshold: fall of the score's logarithm in a tenth of the budget below which it is flat.
        trial: share of the budget that each trial gets.
        tries: growths tried in one round, beside the unchanged child; as many as workers can take.
        search: share of the budget that tried growths may take together, of each worker.
        images: a trial that would see fewer is not begun; the running average halves in 10,000.
        shown: images that a larger pair must still see for each of its parameters.
        calm: last share of the budget, in which nothing grows.
        fade: share of a slice over which a growth fades in.
    """

    top_k: int = 3
    keep: float = 0.25
    probe: float = 0.02
    anew: bool = True
    start: int = 32
    step: float = 0.03
    steep: float = 0.3
    reach: float = 0.06
    threshold: float = 0.4
    trial: float = 0.04
    tries: int = 1
    search: float = 0.08
    images: int = 50_000
    shown: float = 0.4
    calm: float = 0.4
    fade: float = 0.8

    def __post_init__(self) -> None:
        check_range(self, 0, 1, "keep", "probe", "step", "trial", "reach", "fade")
        check_range(self, 0, 1, "search", "calm", closed=True)
        check_range(self, 0, 8192, "start")
        check_range(self, 0, 100, "top_k", "tries", "shown", "steep", "threshold")

    def propose(self, alive: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        space = history.space
        level = self._first_level(space)
        if not alive:
            return [Proposal(None, self.probe, stacks=space.stacks(level))]
        leader = alive[0]
        larger = self._larger(leader, history)
        if larger is not None:
            return [Proposal(None, self.step, stacks=space.stacks(level, larger))]
        if leader.resolution != space.target:
            if not self._climbs(leader, history):
                return [Proposal(leader.id, self.step)]
            return [Proposal(leader.id, self.step, space.doubling(leader), self.fade)]
        if self._opens_trials(leader, history):
            return self._trials(alive, history)
        return [Proposal(leader.id, portion(history, usual_slice(history)))]

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        """Keep the best K of the children, the leader first, and what the leader may go back to."""
        sound = [c for c in children if c.score is not None]
        if not sound:
            best = history.best
            return Selection((best.id,) if best else (), "every child failed; back to the best")
        ranked = sorted(sound, key=_score)
        leader, reason = self._winner(ranked, early=history.left > 0.5)
        if leader.parent is None and len(history.candidates) > len(children):
            first = history.candidates[0]
            wider = [
                own.stem / old.stem for own, old in zip(leader.specs, first.specs, strict=True)
            ]
            reason = f"begun anew, G {wider[0]:g} and D {wider[1]:g} times as wide: they can be fed"
        before = unproven(history.lineage(leader))
        if before is not None and withers(leader, before, history):
            return Selection((before.id,), f"the growth of {before.id} did not take; back to it")
        # Rivals of earlier rounds have fallen behind: a growth of theirs would start from less.
        same_size = [c.id for c in ranked if c.resolution == leader.resolution and c != leader]
        kept = [leader.id, *same_size[: self.top_k - 1], *([before.id] if before else [])]
        return Selection(tuple(dict.fromkeys(kept)), reason)

    def _larger(self, leader: Candidate, history: History) -> StackSettings | None:
        """Return the largest shape that the budget can feed, once the first slice is done."""
        if len(history.candidates) != 1:
            return None
        return self.planned(leader.specs, outlook(leader, history, history.left), history)

    def planned(
        self, known: tuple[StackSpec, StackSpec], images: float, history: History
    ) -> StackSettings | None:
        """Return the largest shape that the budget can feed, None if that is the settings' own.

        Args:
            known: a pair of the settings' own shape.
            images: how many it would see in the rest of the budget.
        """
        space, largest = history.space, None
        for g_scale, d_scale in SIZES if self.anew else ():
            shape = space.shape.scaled(g_scale, d_scale)
            pair = space.stacks(space.levels, shape)
            if max(spec.stem for spec in pair) > space.actions.widest:
                break
            if self._feeds(known, images, pair, history):
                largest = shape
        return largest

    def _first_level(self, space: Space) -> int:
        sides = [min(space.resolution(level)) for level in range(space.levels)]
        return sum(side < self.start for side in sides)

    def _climbs(self, leader: Candidate, history: History) -> bool:
        """Return whether it is time to leave the leader's resolution for the next."""
        space = history.space
        climbed = space.level(leader.resolution) - self._first_level(space)
        if history.spent + self.step > self.reach * (climbed + 1):
            return True
        before = history[leader.parent] if leader.parent else None
        if before is None or before.resolution != leader.resolution or leader.growth:
            return False
        return _score(leader) > (1 - self.steep) * _score(before)

    def _opens_trials(self, leader: Candidate, history: History) -> bool:
        seen = outlook(leader, history, self.trial)
        if history.left < self.calm or seen < self.images or self._affordable(history) < 1:
            return False
        pace = slope(history.lineage(leader))
        return pace is not None and pace < 10 * self.threshold

    def _affordable(self, history: History) -> int:
        """Return how many more growths may be tried; those below the target are no trials."""
        target = history.space.target
        tried = sum(
            c.growth.factors[0] == 1 and c.resolution == target and bool(c.growth)
            for c in history.candidates
        )
        return int(history.workers * self.search / self.trial + 1e-9) - tried

    def _trials(self, alive: Sequence[Candidate], history: History) -> list[Proposal]:
        """Return the unchanged child of the leader, and kept growths of the best parents.

        Doubling the leader's widths comes first, G's before D's, which cost more; then what needs
        no fade-in: a short trial judges by the shock what has to fade. Nothing is tried twice.
        """
        leader, rng = alive[0], dice(history)
        first: list[tuple[Candidate, Growth]] = []
        kept: list[tuple[Candidate, Growth]] = []
        for parent in self._parents(alive, history):
            growths = history.space.growths(parent)
            known = [c.growth for c in history.candidates if _grew_from(parent, c, history)]
            fresh = [growth for growth in growths if growth and growth not in known]
            first += [(parent, g) for g in WIDENINGS if parent is leader and g in fresh]
            kept += [(parent, g) for g in fresh if rng.random() < self.keep]
        rng.shuffle(kept)
        kept.sort(key=lambda pair: pair[1].fades())
        ranked = first + [pair for pair in kept if pair not in first]
        room = max(0, min(self._affordable(history), max(self.tries, history.workers - 1)))
        tried = list(islice((c for c in ranked if self._grows(*c, history)), room))
        share = self.trial if tried else portion(history, usual_slice(history))
        return [
            Proposal(leader.id, share),
            *(Proposal(p.id, share, g, self.fade if g.fades() else 0.0) for p, g in tried),
        ]

    def _parents(self, alive: Sequence[Candidate], history: History) -> list[Candidate]:
        """Return the leader and its rivals of the same size; its ancestors would only go back."""
        leader = alive[0]
        line = {c.id for c in history.lineage(leader)}
        rivals = [c for c in alive[1:] if c.resolution == leader.resolution and c.id not in line]
        return [leader, *rivals][: self.top_k]

    def _grows(self, parent: Candidate, growth: Growth, history: History) -> bool:
        images = outlook(parent, history, history.left)
        return self._feeds(parent.specs, images, growth.specs(*parent.specs), history)

    def _feeds(
        self,
        known: tuple[StackSpec, StackSpec],
        images: float,
        pair: tuple[StackSpec, StackSpec],
        history: History,
    ) -> bool:
        """Return whether enough images are left for each parameter of ``pair``.

        Its speed is that of a ``known`` one, which would see ``images``, at the relative cost of
        their steps.
        """
        if history.budget.seconds is not None:
            images *= step_cost(*known) / step_cost(*pair)
        return images >= self.shown * sum(map(parameters, pair))

    def _winner(self, ranked: Sequence[Candidate], *, early: bool) -> tuple[Candidate, str]:
        """Return the winner of a round; later in the run, noise speaks for the unchanged child."""
        best = ranked[0]
        unchanged = next((c for c in ranked if c.growth == UNCHANGED), None)
        grown = next((c for c in ranked if c.growth), None)
        if unchanged is None or grown is None:
            return best, f"{best.id} goes on"
        noise = sqrt((grown.stderr or 0) ** 2 + (unchanged.stderr or 0) ** 2)
        gain = _score(unchanged) - _score(grown)
        if gain > (-1 if early else 2) * noise:
            return grown, f"{grown.growth} gained {gain:.3g}, noise {noise:.2g}"
        return unchanged, f"{grown.growth} gained {gain:.3g}, noise {noise:.2g}: not enough"


def _grew_from(parent: Candidate, child: Candidate, history: History) -> bool:
    return child.parent is not None and history[child.parent].specs == parent.specs


def outlook(candidate: Candidate, history: History, share: float) -> float:
    """Return how many images ``candidate`` would see in ``share`` of the budget."""
    if history.budget.images is not None:
        return share * history.budget.images
    return share * (history.budget.seconds or 0) * candidate.rate


def unproven(line: Sequence[Candidate]) -> Candidate | None:
    """Return the parent of the newest growth as long as the score has not come back to its own."""
    for parent, child in zip(reversed(line[:-1]), reversed(line), strict=False):
        if child.growth:
            return parent if _score(line[-1]) > _score(parent) else None
    return None


def withers(leader: Candidate, before: Candidate, history: History) -> bool:
    """Return whether training on has not mended what a growth broke: D, say, died of it."""
    if leader.growth or leader.parent is None:
        return False
    stuck = _score(leader) > 0.95 * _score(history[leader.parent])
    return stuck and _score(leader) > 2 * _score(before)


def _score(candidate: Candidate) -> float:
    return float("inf") if candidate.score is None else candidate.score
