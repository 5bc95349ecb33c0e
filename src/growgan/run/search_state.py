"""The state of a search, computed from the events of its ledger without any I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from growgan.config import DERIVED_FIELDS, Settings, make_settings
from growgan.run.ledger import candidate_from_event
from growgan.search.history import Candidate, History
from growgan.training.health import Diagnosis, HealthMetrics

INITIAL_OVERHEAD_SECONDS = 1.0


@dataclass
class SearchState:
    """The events of a ledger so far, folded into what the search has to know.

    A running search and a resumed one change it in the same way: each event goes through
    :meth:`apply`.

    Attributes:
        history: The finished rounds.
        settings: Settings of the next round, after all mitigations.
        round_settings: Settings of the current round.
        pending: Candidates of the current round, which have not been selected from yet.
        images_trained: Images trained on, summed over all candidates.
        overhead_seconds: Estimated seconds of a trial besides training.
        num_micro_batches: Micro-batches that each batch is divided into, to save memory.
        health_by_id: Health metrics of the healthy candidates.
        manifest_digests: SHA-256 of the candidates' manifest files.
        leader_since_round: Round from which the current leader leads.
        unmitigated: The last candidate and its diagnosis, if a mitigation must follow.
        num_mitigations: Number of mitigations so far.
        stop_reason: Why the run stops before its budget is spent. Empty if it does not.
        has_ended: Whether the last event ended the search.
    """

    history: History
    settings: Settings
    round_settings: Settings = field(init=False)
    pending: list[Candidate] = field(default_factory=list)
    images_trained: int = 0
    overhead_seconds: float = INITIAL_OVERHEAD_SECONDS
    num_micro_batches: int = 1
    health_by_id: dict[str, HealthMetrics] = field(default_factory=dict)
    manifest_digests: dict[str, str | None] = field(default_factory=dict)
    leader_since_round: int = 0
    unmitigated: tuple[Candidate, Diagnosis] | None = None
    num_mitigations: int = 0
    stop_reason: str = ""
    has_ended: bool = False

    def __post_init__(self) -> None:
        self.round_settings = self.settings

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates, including those of the current round."""
        return (*self.history.candidates, *self.pending)

    @property
    def survivors(self) -> list[Candidate]:
        """The candidates that the last selection kept, the leader first."""
        return [self.history[candidate_id] for candidate_id in self.history.survivor_ids]

    def waiting_growth_ids(self) -> list[str]:
        """Return the ids of growths that finished before their leader's next segment did.

        Only asynchronous mode has any: they wait to be compared with that segment.
        """
        return [
            candidate.id
            for candidate in self.history.candidates
            if candidate.round >= self.leader_since_round
            and candidate.growth
            and not candidate.error
        ]

    def apply(self, event: Mapping[str, Any]) -> None:
        """Update the state by one event. Events that do not concern the search are ignored."""
        match event["event"]:
            case "candidate":
                self._apply_candidate(event)
            case "select":
                survivor_ids = tuple(event["survivors"])
                self._apply_selection(self.history.with_round(tuple(self.pending), survivor_ids))
            case "mitigation":
                self._apply_mitigation(event)
            case "micro_batches":
                self.num_micro_batches = event["num_micro_batches"]
            case "corruption":
                self.has_ended = False
                self.history = replace(
                    self.history,
                    corrupted_ids=frozenset(event["corrupted"]),
                    survivor_ids=tuple(event["survivors"]),
                )
            case "end":
                self.has_ended = True

    def fail_pending(self, errors: Mapping[str, str]) -> None:
        """Mark the pending candidates that have an error, by id, as failed."""
        self.pending = [
            replace(candidate, score=None, error=errors[candidate.id])
            if candidate.id in errors
            else candidate
            for candidate in self.pending
        ]

    def _images_seen(self, candidate_id: str | None) -> int:
        if candidate_id is None:
            return 0
        pending = (candidate for candidate in self.pending if candidate.id == candidate_id)
        return (next(pending, None) or self.history[candidate_id]).images_seen

    def _apply_candidate(self, event: Mapping[str, Any]) -> None:
        candidate = candidate_from_event(event)
        self.images_trained += candidate.images_seen - self._images_seen(candidate.parent_id)
        # A resumed run may have another budget than the one in the event.
        budget = self.history.budget
        if budget.images is not None:
            spent_fraction = self.images_trained / budget.images
        else:
            spent_fraction = candidate.elapsed / (budget.seconds or 1)
        candidate = replace(candidate, spent_fraction=spent_fraction)

        self.has_ended = False
        self.pending.append(candidate)
        self.manifest_digests[candidate.id] = event.get("manifest_digest")
        self.overhead_seconds = 0.5 * (
            self.overhead_seconds + candidate.seconds - candidate.train_seconds
        )
        if event.get("health_metrics") and not candidate.error:
            self.health_by_id[candidate.id] = HealthMetrics(**event["health_metrics"])
        failure = event.get("failure")
        self.unmitigated = (candidate, Diagnosis(failure, candidate.error)) if failure else None

    def _apply_selection(self, history: History) -> None:
        if history.survivor_ids[:1] != self.history.survivor_ids[:1]:
            self.leader_since_round = history.round
        self.history, self.pending, self.round_settings = history, [], self.settings

    def _apply_mitigation(self, event: Mapping[str, Any]) -> None:
        self.unmitigated = None
        self.num_mitigations += 1
        settings = make_settings(self.settings.model_dump(), event["settings"])
        derived = {name: getattr(self.settings.network, name) for name in DERIVED_FIELDS}
        network = settings.network.model_copy(update=derived)
        self.settings = settings.model_copy(update={"network": network})
        if not event["mitigation"]:
            self.stop_reason = str(event["diagnosis"])
