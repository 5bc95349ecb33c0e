"""Reads a run directory into a :class:`RunRecord`.

The ledger holds the events, ``stats.jsonl`` the curves, and ``config.yaml`` the settings. A run
that was killed leaves at most one incomplete line at the end of each file, which is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from growgan.errors import UserError
from growgan.jsonl import check_ledger_format, read_records, validate_id

EventDict = dict[str, Any]
NO_GROWTH = "no growth"  # growth of a candidate whose networks equal its parent's
STAT_POINT_FIELDS = frozenset(
    {"candidate", "elapsed", "images", "resolution", "alpha", "images_per_second"}
)


@dataclass(frozen=True)
class CandidateRecord:
    """A candidate: one training segment of a pair of networks.

    Attributes:
        growth: The edits of G and D in words.
        images_seen: Real images that the lineage has seen at the end of the segment.
        seconds: Cost of the segment (copying, training and scoring).
        score: Lower is better; None if the candidate failed or was not scored.
        elapsed: Seconds on the run's clock at the end of the segment.
        spent_fraction: Fraction of the budget used by then, 0 to 1.
        status: "best", "alive", "pruned" or "failed".
        samples_path: Grid of samples; None if it is missing.
        health_metrics: Measurements of the health checks by name; empty if there are none.
        singular_values: Largest singular values of the weights, by network and layer.
    """

    id: str
    parent_id: str | None
    round: int
    growth: str
    resolution: tuple[int, int]
    images_seen: int
    seconds: float
    score: float | None
    score_stderr: float | None
    generator_layers: int
    discriminator_layers: int
    generator_parameters: int
    discriminator_parameters: int
    elapsed: float
    spent_fraction: float
    status: str
    error: str = ""
    samples_path: Path | None = None
    health_metrics: Mapping[str, float] = field(default_factory=dict)
    singular_values: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)

    @property
    def growth_label(self) -> str:
        """The edits in words; "start" for a root."""
        return self.growth if self.parent_id is not None else "start"

    @property
    def is_continuation(self) -> bool:
        """Whether the networks equal the parent's."""
        return self.parent_id is not None and self.growth.strip() == NO_GROWTH


@dataclass(frozen=True)
class SelectionRecord:
    """The candidates that survive a round, and why."""

    round: int
    survivors: tuple[str, ...]
    best_id: str | None
    reason: str


@dataclass(frozen=True)
class StatPoint:
    """One line of ``stats.jsonl``: the state of training at one moment.

    Attributes:
        elapsed: Seconds on the run's clock.
        fade_alpha: Fade-in weight of the newest layers, 0 to 1.
        scalars: All other numbers by name (``loss_generator``, ...).
    """

    candidate_id: str
    elapsed: float
    images_seen: int
    resolution: tuple[int, int]
    fade_alpha: float
    images_per_second: float
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """A run. Times are in seconds on the run's clock, which stops while the run is interrupted.

    Attributes:
        started_at: Unix time of the start.
        seconds_by_phase: Cost of training, scoring, and so on.
        incidents: Training failures, memory shortages and damaged files, one sentence each.
    """

    path: Path
    version: str
    policy: str
    preset: str
    budget_seconds: float | None
    budget_images: int | None
    seed: int
    resolution: tuple[int, int]
    data_name: str
    num_training_images: int
    data_channels: int
    data_fingerprint: str
    machine: str
    started_at: float
    elapsed: float
    finished: bool
    num_resumes: int
    best_id: str | None
    seconds_by_phase: Mapping[str, float]
    config_yaml: str
    candidates: tuple[CandidateRecord, ...]
    selections: tuple[SelectionRecord, ...]
    stats: tuple[StatPoint, ...]
    incidents: tuple[str, ...] = ()

    @cached_property
    def candidates_by_id(self) -> Mapping[str, CandidateRecord]:
        """Candidates by id."""
        return {c.id: c for c in self.candidates}

    @cached_property
    def children_by_parent(self) -> Mapping[str | None, tuple[CandidateRecord, ...]]:
        """Children of each candidate, in order; the roots are under None."""
        children: dict[str | None, list[CandidateRecord]] = {}
        for c in self.candidates:
            parent_id = c.parent_id if c.parent_id in self.candidates_by_id else None
            children.setdefault(parent_id, []).append(c)
        return {parent_id: tuple(group) for parent_id, group in children.items()}

    def lineage(self, candidate_id: str | None) -> tuple[CandidateRecord, ...]:
        """Return the candidates from the root to ``candidate_id``, inclusive."""
        line: list[CandidateRecord] = []
        while (
            candidate_id is not None
            and candidate_id in self.candidates_by_id
            and len(line) < len(self.candidates)
        ):
            line.append(self.candidates_by_id[candidate_id])
            candidate_id = line[-1].parent_id
        return tuple(reversed(line))

    @cached_property
    def best_lineage(self) -> tuple[CandidateRecord, ...]:
        """The candidates from the root to the run's best; empty before the first."""
        return self.lineage(self.best_id)


def read_run(run_dir: str | Path) -> RunRecord:
    """Return the record of the run in ``run_dir``.

    Raises:
        UserError: There is no run, its ledger is damaged before its last line, or it was written by
            another version of growgan.
    """
    path = Path(run_dir)
    if not (path / "ledger.jsonl").is_file():
        problem = "it has no ledger.jsonl" if path.is_dir() else "there is no such folder"
        raise UserError(f"RUN '{path}' is not a run directory: {problem}")
    events = list(read_records(path / "ledger.jsonl"))
    start = next((e for e in events if e.get("event") == "start"), None)
    if start is None:
        raise UserError(f"RUN '{path}' is empty: its ledger has no start event")
    check_ledger_format(path, start)
    try:
        return _build_run_record(path, start, events)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"RUN '{path}' has an invalid ledger: {error!r}") from error


def _build_run_record(run_dir: Path, start: EventDict, events: list[EventDict]) -> RunRecord:
    kinds = [e.get("event") for e in events]
    candidates = {
        e["id"]: _parse_candidate(run_dir, e) for e in events if e.get("event") == "candidate"
    }
    selections = tuple(_parse_selection(e) for e in events if e.get("event") == "select")
    ends = [e for e in events if e.get("event") == "end"]
    finished = bool(ends) and "candidate" not in kinds[_last_index(kinds, "end") :]
    best_id = _find_best_id(events, candidates)
    elapsed = max((_finite_or_none(e.get("elapsed")) or 0.0 for e in events), default=0.0)
    data = start.get("data") or {}
    # A resumed run may have another budget.
    budget = [start["budget"], *(e["budget"] for e in events if "budget" in e)][-1]
    config = run_dir / "config.yaml"
    return RunRecord(
        path=run_dir,
        version=str(start.get("version", "")),
        policy=str(start.get("policy", "")),
        preset=str(start.get("preset", "")),
        budget_seconds=_finite_or_none(budget.get("seconds")),
        budget_images=_int_or_zero(budget.get("images")) or None,
        seed=_int_or_zero(start.get("seed")),
        resolution=_parse_resolution(start["resolution"]),
        data_name=str(data.get("name", "")),
        num_training_images=_int_or_zero(data.get("count")),
        data_channels=_int_or_zero(data.get("channels")),
        data_fingerprint=str(data.get("fingerprint", "")),
        machine=str(start.get("machine", "")),
        started_at=_finite_or_none(start.get("timestamp")) or 0.0,
        elapsed=elapsed,
        finished=finished,
        num_resumes=kinds.count("resume"),
        best_id=best_id,
        seconds_by_phase=_seconds_by_phase(ends[-1] if finished else None, candidates, elapsed),
        config_yaml=config.read_text("utf-8", errors="replace") if config.is_file() else "",
        candidates=_assign_statuses(candidates, selections, best_id),
        selections=selections,
        stats=_read_stats(run_dir / "stats.jsonl"),
        incidents=tuple(filter(None, map(_incident_sentence, events))),
    )


def _parse_candidate(run_dir: Path, event: EventDict) -> CandidateRecord:
    samples = run_dir / "candidates" / validate_id(event["id"]) / "samples.png"
    health = event.get("health_metrics") or {}
    return CandidateRecord(
        id=str(event["id"]),
        parent_id=None if event.get("parent") is None else str(event["parent"]),
        round=_int_or_zero(event.get("round")),
        growth=str(event.get("growth", "")),
        resolution=_parse_resolution(event["resolution"]),
        images_seen=_int_or_zero(event.get("images")),
        seconds=_finite_or_none(event.get("seconds")) or 0.0,
        score=_finite_or_none(event.get("score")),
        score_stderr=_finite_or_none(event.get("score_stderr")),
        generator_layers=_int_or_zero(event.get("generator_layers")),
        discriminator_layers=_int_or_zero(event.get("discriminator_layers")),
        generator_parameters=_int_or_zero(event.get("generator_parameters")),
        discriminator_parameters=_int_or_zero(event.get("discriminator_parameters")),
        elapsed=_finite_or_none(event.get("elapsed")) or 0.0,
        spent_fraction=_finite_or_none(event.get("spent_fraction")) or 0.0,
        status="failed" if event.get("status") == "failed" else "scored",
        error=str(event.get("error") or ""),
        samples_path=samples if samples.is_file() else None,
        health_metrics={
            name: number
            for name, value in health.items()
            if (number := _finite_or_none(value)) is not None
        },
        singular_values=health.get("singular_values") or {},
    )


def _incident_sentence(event: EventDict) -> str:
    """Return a sentence about a failure, a memory shortage or damaged files, else ""."""
    kind, candidate_id = event.get("event"), event.get("candidate")
    if kind == "mitigation":
        change = event.get("mitigation")
        action = f"went back and continued with {change}" if change else "stopped"
        return f"{candidate_id}: {event.get('diagnosis')}; the run {action}."
    if kind == "micro_batches":
        count = event.get("num_micro_batches")
        return f"{candidate_id}: memory ran short; each batch was split into {count} micro-batches."
    if kind == "corruption":
        survivors = ", ".join(map(str, event.get("survivors", ())))
        return f"{event.get('reason')}; the run went back to {survivors}."
    return ""


def _parse_selection(event: EventDict) -> SelectionRecord:
    return SelectionRecord(
        round=_int_or_zero(event.get("round")),
        survivors=tuple(str(id) for id in event.get("survivors", ())),
        best_id=None if event.get("best") is None else str(event["best"]),
        reason=str(event.get("reason", "")),
    )


def _find_best_id(events: list[EventDict], candidates: Mapping[str, CandidateRecord]) -> str | None:
    """Return the best of the newest selection; before the first, the one with the lowest score."""
    for e in reversed(events):
        if e.get("event") in ("select", "end") and e.get("best") in candidates:
            return str(e["best"])
    scores = {c.id: c.score for c in candidates.values() if c.score is not None}
    return min(scores, key=lambda id: scores[id]) if scores else None


def _assign_statuses(
    candidates: Mapping[str, CandidateRecord],
    selections: tuple[SelectionRecord, ...],
    best_id: str | None,
) -> tuple[CandidateRecord, ...]:
    """Return the candidates with their status after the newest selection."""
    survivors = set(selections[-1].survivors) if selections else set()
    last_round = selections[-1].round if selections else -1

    def status(c: CandidateRecord) -> str:
        if c.id == best_id:
            return "best"
        if c.status == "failed":
            return "failed"
        return "alive" if c.id in survivors or c.round > last_round else "pruned"

    return tuple(replace(c, status=status(c)) for c in candidates.values())


def _seconds_by_phase(
    end_event: EventDict | None, candidates: Mapping[str, CandidateRecord], elapsed: float
) -> dict[str, float]:
    """Return the cost of each phase; an unfinished run distinguishes only two."""
    if end_event is not None and isinstance(end_event.get("cost"), dict):
        return {str(k): _finite_or_none(v) or 0.0 for k, v in end_event["cost"].items()}
    seconds = sum(c.seconds for c in candidates.values())
    return {"train_and_score": seconds, "other": max(0.0, elapsed - seconds)}


def _read_stats(path: Path) -> tuple[StatPoint, ...]:
    """Return the curves. Points that a resumed run repeats replace the original ones."""
    points: dict[str, list[StatPoint]] = {}
    for e in read_records(path, strict=False):
        try:
            point = _parse_stat_point(e)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        line = points.setdefault(point.candidate_id, [])
        while line and line[-1].images_seen >= point.images_seen:
            line.pop()
        line.append(point)
    return tuple(sorted((p for line in points.values() for p in line), key=lambda p: p.elapsed))


def _parse_stat_point(event: EventDict) -> StatPoint:
    values = {k: _finite_or_none(v) for k, v in event.items() if k not in STAT_POINT_FIELDS}
    return StatPoint(
        candidate_id=str(event["candidate"]),
        elapsed=float(event["elapsed"]),
        images_seen=_int_or_zero(event["images"]),
        resolution=_parse_resolution(event["resolution"]),
        fade_alpha=_finite_or_none(event.get("alpha", 1.0)) or 0.0,
        images_per_second=_finite_or_none(event.get("images_per_second")) or 0.0,
        scalars={k: v for k, v in values.items() if v is not None},
    )


def _last_index(kinds: list[Any], kind: str) -> int:
    return len(kinds) - 1 - kinds[::-1].index(kind)


def _finite_or_none(value: object) -> float | None:
    """Return a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _int_or_zero(value: object) -> int:
    return int(_finite_or_none(value) or 0)


def _parse_resolution(value: Any) -> tuple[int, int]:
    height, width = value
    return int(height), int(width)
