"""Dynamic growth: a search for growths while the GAN trains, after DGGAN (Liu et al., AAAI 2021).

DGGAN prunes greedily: the K best candidates of the whole history are grown in every round, each
legal growth is tried with probability p, each trial trains for a fixed segment, and the scores
decide. This policy is cheaper, because every trial takes budget from the winner. Measured speed
decides what can be predicted: the initial size, and when to double the resolution. Trials decide
the rest, and only in a large enough budget: with the defaults, only a run that trains on at least
1.25 million images tries any growth at the target.

1. *Initial size.* The networks of the settings train for a short segment, which measures the speed
   of this machine. If the budget allows ``images_per_parameter`` images for each parameter of
   wider networks, the run restarts with the widest such networks: networks that start wide learn
   better than networks that are widened later.
2. *Resolution.* Below the target, the resolution doubles as soon as the score stops falling fast,
   and at the latest after a small fraction of the budget.
3. *Trials.* At the target, once the score falls slowly, a round of trials opens. It always contains
   the leader without growth, plus growths that have not been tried yet. The parents are the leader
   and the best other children of the last round (``top_k`` in total), not the best candidates of
   the whole history. The first growths are the widenings of the leader: of G, then of both.
   Then come the legal growths of the parents, each with probability ``sample_prob``, those without
   a fade-in first. With the defaults, a round tries one growth. All trials get the same fraction of
   the budget, so a growth that makes training slower must make up for it.
4. *Selection.* While more than half of the budget is left, a growth wins unless its score is worse
   by more than the noise, because its capacity pays off later. After that, it must be better by
   twice the noise.
5. *Recovery.* As long as the score after a growth is worse than before it, the parent stays among
   the survivors. If the score is more than twice as high and training no longer improves it, the
   search returns to the parent.
6. *Limits.* Trials take at most ``trial_budget_fraction`` of the budget per worker. None starts
   in the last ``freeze_fraction`` of the budget, and none that would see fewer than
   ``min_trial_images`` images or leave fewer than ``images_per_parameter`` images per parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from math import inf, sqrt
from typing import ClassVar

from pydantic import Field

from growgan.config import NetworkConfig
from growgan.nets.flops import count_parameters, relative_step_time
from growgan.nets.growth_ops import Widen
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec
from growgan.search.growth import NO_GROWTH, Growth
from growgan.search.history import Candidate, History, Proposal, SearchSpace
from growgan.search.policies.base import (
    POLICIES,
    WIDEN_BOTH,
    ConfigurablePolicy,
    Selection,
    clamp_to_remaining,
    default_segment_fraction,
    improvement_rate,
    round_rng,
)

WIDENING_GROWTHS = (Growth((Widen(),), ()), WIDEN_BOTH)  # G alone, which costs less, comes first

# Width multipliers of G and D for a restart, relative to the network settings.
WIDTH_MULTIPLIERS = ((2, 1), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8))

MIN_RECOVERY_GAIN = 0.05  # relative gain per segment below which a growth does not recover
MAX_RECOVERABLE_SCORE_RATIO = 2.0  # relative to the score before the growth


@POLICIES.register(
    "dynamic", "Search for growths while the GAN trains.", "Liu et al. 2021, 2106.08505"
)
class DynamicPolicy(ConfigurablePolicy):
    """Predict the initial size, double the resolution early, and try growths at the target."""

    uses_edit_settings: ClassVar[bool] = True

    top_k: int = Field(
        3, ge=1, le=100, description="Number of candidates of a round that may be grown next."
    )
    sample_prob: float = Field(
        0.25, gt=0, le=1, description="Probability that a legal growth becomes a trial."
    )
    calibration_fraction: float = Field(
        0.02,
        gt=0,
        le=1,
        description="Fraction of the budget for the first segment, which measures the speed.",
    )
    autoscale: bool = Field(
        True, description="Restart with wider networks if the budget is large enough for them."
    )
    start_resolution: int = Field(
        32,
        ge=1,
        le=8192,
        description="Shorter image side in pixels at the start, rounded up to what the preset can"
        " double to the target.",
    )
    segment_fraction: float = Field(
        0.03,
        gt=0,
        le=1,
        description="Fraction of the budget for each segment below the target resolution.",
    )
    plateau_gain: float = Field(
        0.3,
        gt=0,
        le=100,
        description="Relative gain of the score per segment below which the resolution doubles.",
    )
    max_fraction_per_resolution: float = Field(
        0.06,
        gt=0,
        le=1,
        description="Largest fraction of the budget for each resolution below the target.",
    )
    plateau_slope: float = Field(
        0.4,
        gt=0,
        le=100,
        description="Fall of the score's natural logarithm per tenth of the budget below which"
        " trials open.",
    )
    trial_fraction: float = Field(
        0.04, gt=0, le=1, description="Fraction of the budget for each trial."
    )
    trials_per_round: int = Field(
        1,
        ge=1,
        le=100,
        description="Number of growths tried in a round, besides the leader without growth. With"
        " several workers it is at least their number minus one.",
    )
    trial_budget_fraction: float = Field(
        0.08,
        ge=0,
        le=1,
        description="Largest fraction of the budget of each worker that all trials together take.",
    )
    min_trial_images: int = Field(
        50_000,
        ge=0,
        description="Fewest images a trial may see. The default lets the running average of the"
        " weights forget the parent.",
    )
    images_per_parameter: float = Field(
        0.4,
        gt=0,
        le=100,
        description="Images that must be left in the budget for each parameter of larger networks.",
    )
    freeze_fraction: float = Field(
        0.4, ge=0, le=1, description="Last fraction of the budget, in which nothing grows."
    )
    fade_fraction: float = Field(
        0.8, gt=0, le=1, description="Fraction of a segment over which new layers fade in."
    )

    def propose(self, survivors: Sequence[Candidate], history: History) -> Sequence[Proposal]:
        space = history.space
        level = self._start_level(space)
        if not survivors:
            return [Proposal(None, self.calibration_fraction, root_specs=space.specs_at(level))]
        leader = survivors[0]
        wider = self._autoscaled_network(leader, history)
        if wider is not None:
            return [Proposal(None, self.segment_fraction, root_specs=space.specs_at(level, wider))]
        if leader.resolution != space.target_resolution:
            if not self._should_double_resolution(leader, history):
                return [Proposal(leader.id, self.segment_fraction)]
            growth = space.doubling_growth(leader)
            return [Proposal(leader.id, self.segment_fraction, growth, self.fade_fraction)]
        if self._should_open_trials(leader, history):
            return self._propose_trials(survivors, history)
        return [Proposal(leader.id, clamp_to_remaining(history, default_segment_fraction(history)))]

    def select(self, children: Sequence[Candidate], history: History) -> Selection:
        """Keep the leader, its best rivals, and the parent it may have to return to."""
        scored = [child for child in children if child.score is not None]
        if not scored:
            best = history.best
            return Selection(
                (best.id,) if best else (), "every candidate failed; back to the best so far"
            )
        ranked = sorted(scored, key=_score_or_inf)
        leader, reason = self._pick_winner(
            ranked, accept_within_noise=history.remaining_fraction > 0.5
        )
        is_restart = leader.parent_id is None and len(history.candidates) > len(children)
        if is_restart:
            first = history.candidates[0]
            g_scale, d_scale = (
                spec.stem_width / first_spec.stem_width
                for spec, first_spec in zip(leader.specs, first.specs, strict=True)
            )
            reason = f"restarted with {g_scale:g} times the width in G and {d_scale:g} times in D"
        growth_parent = parent_of_unrecovered_growth(history.lineage(leader))
        if growth_parent is not None and growth_failed(leader, growth_parent, history):
            reason = f"the growth of {growth_parent.id} did not recover; back to {growth_parent.id}"
            return Selection((growth_parent.id,), reason)
        # Rivals from earlier rounds have trained for less time, so they are dropped.
        rival_ids = [
            child.id
            for child in ranked
            if child.resolution == leader.resolution and child != leader
        ]
        survivor_ids = [leader.id, *rival_ids[: self.top_k - 1]]
        if growth_parent is not None:
            survivor_ids.append(growth_parent.id)
        return Selection(tuple(dict.fromkeys(survivor_ids)), reason)

    def _start_level(self, space: SearchSpace) -> int:
        sides = [min(space.resolution_at(level)) for level in range(space.max_level)]
        return sum(side < self.start_resolution for side in sides)

    def _autoscaled_network(self, leader: Candidate, history: History) -> NetworkConfig | None:
        """Return the settings to restart with after the first segment, None to continue."""
        if len(history.candidates) != 1:
            return None
        remaining_images = expected_images(leader, history, history.remaining_fraction)
        return self.largest_affordable_network(leader.specs, remaining_images, history)

    def largest_affordable_network(
        self,
        reference_specs: tuple[GeneratorSpec, DiscriminatorSpec],
        remaining_images: float,
        history: History,
    ) -> NetworkConfig | None:
        """Return the widest network settings that the budget allows.

        None if the budget allows nothing wider than the settings of the search space.

        Args:
            reference_specs: G and D whose training speed is known.
            remaining_images: Images that they would see in the rest of the budget.
            history: For the search space and the kind of budget.
        """
        space, largest = history.space, None
        for g_scale, d_scale in WIDTH_MULTIPLIERS if self.autoscale else ():
            network = space.network_settings.scale_width(g_scale, d_scale)
            specs = space.specs_at(space.max_level, network)
            if max(spec.stem_width for spec in specs) > space.edit_settings.max_width:
                break
            if self._has_enough_images(reference_specs, remaining_images, specs, history):
                largest = network
        return largest

    def _should_double_resolution(self, leader: Candidate, history: History) -> bool:
        """Return whether the score of the leader has flattened, or its time is up."""
        num_doublings = history.space.level_of(leader.resolution) - self._start_level(history.space)
        time_limit = self.max_fraction_per_resolution * (num_doublings + 1)
        if history.spent_fraction + self.segment_fraction > time_limit:
            return True
        parent = history[leader.parent_id] if leader.parent_id else None
        if parent is None or parent.resolution != leader.resolution or leader.growth:
            return False
        return _score_or_inf(leader) > (1 - self.plateau_gain) * _score_or_inf(parent)

    def _should_open_trials(self, leader: Candidate, history: History) -> bool:
        if (
            history.remaining_fraction < self.freeze_fraction
            or expected_images(leader, history, self.trial_fraction) < self.min_trial_images
            or self._num_affordable_trials(history) < 1
        ):
            return False
        rate = improvement_rate(history.lineage(leader))
        return rate is not None and rate < 10 * self.plateau_slope

    def _num_affordable_trials(self, history: History) -> int:
        """Return how many more growths may be tried at the target resolution."""
        num_tried = sum(
            candidate.growth.resampling_factors[0] == 1
            and candidate.resolution == history.space.target_resolution
            and bool(candidate.growth)
            for candidate in history.candidates
        )
        # The tolerance keeps a quotient such as 0.08 / 0.04 from being rounded down.
        num_trials = history.num_workers * self.trial_budget_fraction / self.trial_fraction + 1e-9
        return int(num_trials) - num_tried

    def _propose_trials(self, survivors: Sequence[Candidate], history: History) -> list[Proposal]:
        """Return the leader without growth, and the growths to try."""
        max_trials = min(
            self._num_affordable_trials(history),
            max(self.trials_per_round, history.num_workers - 1),
        )
        affordable = (
            (parent, growth)
            for parent, growth in self._ranked_growths(survivors, history)
            if self._can_afford_growth(parent, growth, history)
        )
        trials = list(islice(affordable, max(0, max_trials)))
        fraction = (
            self.trial_fraction
            if trials
            else clamp_to_remaining(history, default_segment_fraction(history))
        )
        proposals = [Proposal(survivors[0].id, fraction)]
        for parent, growth in trials:
            fade_segments = self.fade_fraction if growth.has_fade_in() else 0.0
            proposals.append(Proposal(parent.id, fraction, growth, fade_segments))
        return proposals

    def _ranked_growths(
        self, survivors: Sequence[Candidate], history: History
    ) -> Iterator[tuple[Candidate, Growth]]:
        """Yield parents and growths that have not been tried yet, in the order to try them.

        Growths with a fade-in come last, since they upset the score at first and a trial is short.
        """
        leader, rng = survivors[0], round_rng(history)
        widenings: list[tuple[Candidate, Growth]] = []
        sampled: list[tuple[Candidate, Growth]] = []
        for parent in self._trial_parents(survivors, history):
            tried = [
                candidate.growth
                for candidate in history.candidates
                if _grew_from_specs_of(parent, candidate, history)
            ]
            untried = [
                growth
                for growth in history.space.legal_growths(parent)
                if growth and growth not in tried
            ]
            if parent is leader:
                widenings += [(parent, growth) for growth in WIDENING_GROWTHS if growth in untried]
            sampled += [(parent, growth) for growth in untried if rng.random() < self.sample_prob]
        rng.shuffle(sampled)
        sampled.sort(key=lambda trial: trial[1].has_fade_in())
        yield from widenings
        yield from (trial for trial in sampled if trial not in widenings)

    def _trial_parents(self, survivors: Sequence[Candidate], history: History) -> list[Candidate]:
        """Return the leader and its rivals of the same resolution, but none of its ancestors."""
        leader = survivors[0]
        lineage_ids = {candidate.id for candidate in history.lineage(leader)}
        rivals = [
            candidate
            for candidate in survivors[1:]
            if candidate.resolution == leader.resolution and candidate.id not in lineage_ids
        ]
        return [leader, *rivals][: self.top_k]

    def _can_afford_growth(self, parent: Candidate, growth: Growth, history: History) -> bool:
        remaining_images = expected_images(parent, history, history.remaining_fraction)
        specs = growth.grown_specs(*parent.specs)
        return self._has_enough_images(parent.specs, remaining_images, specs, history)

    def _has_enough_images(
        self,
        reference_specs: tuple[GeneratorSpec, DiscriminatorSpec],
        remaining_images: float,
        specs: tuple[GeneratorSpec, DiscriminatorSpec],
        history: History,
    ) -> bool:
        """Return whether the rest of the budget has enough images per parameter of ``specs``.

        ``remaining_images`` are those that ``reference_specs`` would see. In a budget of time they
        are converted by the relative time of a training step.
        """
        if history.budget.seconds is not None:
            remaining_images *= relative_step_time(*reference_specs) / relative_step_time(*specs)
        return remaining_images >= self.images_per_parameter * sum(map(count_parameters, specs))

    def _pick_winner(
        self, ranked: Sequence[Candidate], *, accept_within_noise: bool
    ) -> tuple[Candidate, str]:
        """Compare the best growth with the unchanged candidate; return the winner and the reason.

        With ``accept_within_noise``, a growth may be worse by one standard error of the difference.
        Otherwise it must be better by two.
        """
        best = ranked[0]
        unchanged = next((c for c in ranked if c.growth == NO_GROWTH), None)
        grown = next((c for c in ranked if c.growth), None)
        if unchanged is None or grown is None:
            return best, f"{best.id} has the best score"
        noise = sqrt((grown.score_stderr or 0) ** 2 + (unchanged.score_stderr or 0) ** 2)
        gain = _score_or_inf(unchanged) - _score_or_inf(grown)
        comparison = f"{grown.growth} gained {gain:.3g} with a noise of {noise:.2g}"
        if gain > (-1 if accept_within_noise else 2) * noise:
            return grown, comparison
        return unchanged, f"{comparison}, which is not enough"


def _grew_from_specs_of(parent: Candidate, candidate: Candidate, history: History) -> bool:
    """Return whether the parent of ``candidate`` has the same specs as ``parent``."""
    return candidate.parent_id is not None and history[candidate.parent_id].specs == parent.specs


def expected_images(candidate: Candidate, history: History, fraction: float) -> float:
    """Return how many images ``candidate`` would see in a ``fraction`` of the budget."""
    if history.budget.images is not None:
        return fraction * history.budget.images
    return fraction * (history.budget.seconds or 0) * candidate.images_per_second


def parent_of_unrecovered_growth(lineage: Sequence[Candidate]) -> Candidate | None:
    """Return the parent of the last growth if its score was better than the score is now."""
    for parent, child in zip(reversed(lineage[:-1]), reversed(lineage), strict=False):
        if child.growth:
            return parent if _score_or_inf(lineage[-1]) > _score_or_inf(parent) else None
    return None


def growth_failed(leader: Candidate, growth_parent: Candidate, history: History) -> bool:
    """Return whether the score is far worse than before the growth and no longer improves."""
    if leader.growth or leader.parent_id is None:
        return False
    previous_score = _score_or_inf(history[leader.parent_id])
    stalled = _score_or_inf(leader) > (1 - MIN_RECOVERY_GAIN) * previous_score
    far_worse = _score_or_inf(leader) > MAX_RECOVERABLE_SCORE_RATIO * _score_or_inf(growth_parent)
    return stalled and far_worse


def _score_or_inf(candidate: Candidate) -> float:
    return inf if candidate.score is None else candidate.score
