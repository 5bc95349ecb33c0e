"""A run directory, read back.

The ledger is the truth; ``stats.jsonl`` adds the curves, ``config.yaml`` the settings. A run that
was killed leaves at most one torn line at the end of each file, which is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from growgan.errors import UserError
from growgan.plain import folder_name, read_lines

Event = dict[str, Any]
STAT_FIELDS = frozenset(
    {"candidate", "elapsed", "images", "resolution", "alpha", "images_per_second"}
)


@dataclass(frozen=True)
class CandidateRecord:
    """One slice of training of one pair of networks.

    Attributes:
        images: real images seen by the whole lineage up to here.
        seconds: what this slice cost (branch, train and score).
        score: lower is better; None where it failed or was not scored.
        elapsed: the run's clock at the end of the slice, in seconds.
        spent: share of the budget used at that moment, 0 to 1.
        status: "best", "alive", "pruned" or "failed".
        samples: the sample sheet, None where it is missing.
        vitals: what the doctor measured, by name; empty where it did not look.
        spectra: the largest singular values of each player's weights, by player and name.
    """

    id: str
    parent: str | None
    round: int
    growth: str
    resolution: tuple[int, int]
    images: int
    seconds: float
    score: float | None
    score_stderr: float | None
    generator_layers: int
    discriminator_layers: int
    generator_parameters: int
    discriminator_parameters: int
    elapsed: float
    spent: float
    status: str
    error: str = ""
    samples: Path | None = None
    vitals: Mapping[str, float] = field(default_factory=dict)
    spectra: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """What made it out of its parent, in words; "start" for a root."""
        return self.growth if self.parent is not None else "start"

    @property
    def trains_on(self) -> bool:
        """Whether this slice continues its parent with the networks unchanged."""
        return self.parent is not None and self.growth.strip() == "train on"


@dataclass(frozen=True)
class SelectRecord:
    """One decision: who lives on after a round, and why."""

    round: int
    alive: tuple[str, ...]
    best: str | None
    reason: str


@dataclass(frozen=True)
class StatPoint:
    """One line of ``stats.jsonl``: the state of training at one moment.

    ``terms`` holds every further number by its name in the log (``loss_generator``, ...).
    """

    candidate: str
    elapsed: float
    images: int
    resolution: tuple[int, int]
    alpha: float
    images_per_second: float
    terms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """A whole run; times in seconds on the run's own clock, which stands while it is stopped.

    Attributes:
        notes: what went wrong and what was done about it, in sentences.
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
    data_count: int
    data_channels: int
    data_fingerprint: str
    machine: str
    started: float
    elapsed: float
    finished: bool
    resumed: int
    best: str | None
    cost: Mapping[str, float]
    config: str
    candidates: tuple[CandidateRecord, ...]
    selects: tuple[SelectRecord, ...]
    stats: tuple[StatPoint, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def by_id(self) -> Mapping[str, CandidateRecord]:
        """Candidates by id."""
        return {c.id: c for c in self.candidates}

    @cached_property
    def children(self) -> Mapping[str | None, tuple[CandidateRecord, ...]]:
        """Children of each id, in order; those of None are the roots."""
        found: dict[str | None, list[CandidateRecord]] = {}
        for c in self.candidates:
            found.setdefault(c.parent if c.parent in self.by_id else None, []).append(c)
        return {parent: tuple(children) for parent, children in found.items()}

    def lineage(self, id: str | None) -> tuple[CandidateRecord, ...]:
        """Return the candidates from the root to ``id``, that one included."""
        line: list[CandidateRecord] = []
        while id is not None and id in self.by_id and len(line) < len(self.candidates):
            line.append(self.by_id[id])
            id = line[-1].parent
        return tuple(reversed(line))

    @cached_property
    def best_lineage(self) -> tuple[CandidateRecord, ...]:
        """The candidates from the root to the run's best; empty before the first."""
        return self.lineage(self.best)


def read_run(directory: str | Path) -> RunRecord:
    """Return the record of the run in ``directory``.

    Raises:
        UserError: there is no such run, or its ledger is damaged before its last line.
    """
    path = Path(directory)
    if not (path / "ledger.jsonl").is_file():
        problem = "there is no ledger.jsonl in it" if path.is_dir() else "there is no such folder"
        raise UserError(f"RUN '{path}' is not a run directory: {problem}")
    events = list(read_lines(path / "ledger.jsonl"))
    start = next((e for e in events if e.get("event") == "start"), None)
    if start is None:
        raise UserError(f"RUN '{path}' is empty: its ledger has no start event")
    try:
        return _assemble(path, start, events)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"RUN '{path}' has a ledger of another kind: {error!r}") from error


def _assemble(path: Path, start: Event, events: list[Event]) -> RunRecord:
    kinds = [e.get("event") for e in events]
    candidates = {e["id"]: _candidate(path, e) for e in events if e.get("event") == "candidate"}
    selects = tuple(_select(e) for e in events if e.get("event") == "select")
    ends = [e for e in events if e.get("event") == "end"]
    finished = bool(ends) and "candidate" not in kinds[_last(kinds, "end") :]
    best = _best(events, candidates)
    elapsed = max((_number(e.get("elapsed")) or 0.0 for e in events), default=0.0)
    data = start.get("data") or {}
    # A run may be resumed with another budget.
    budget = [start["budget"], *(e["budget"] for e in events if "budget" in e)][-1]
    config = path / "config.yaml"
    return RunRecord(
        path=path,
        version=str(start.get("version", "")),
        policy=str(start.get("policy", "")),
        preset=str(start.get("preset", "")),
        budget_seconds=_number(budget.get("seconds")),
        budget_images=_whole(budget.get("images")) or None,
        seed=_whole(start.get("seed")),
        resolution=_size(start["resolution"]),
        data_name=str(data.get("name", "")),
        data_count=_whole(data.get("count")),
        data_channels=_whole(data.get("channels")),
        data_fingerprint=str(data.get("fingerprint", "")),
        machine=str(start.get("machine", "")),
        started=_number(start.get("time")) or 0.0,
        elapsed=elapsed,
        finished=finished,
        resumed=kinds.count("resume"),
        best=best,
        cost=_cost(ends[-1] if finished else None, candidates, elapsed),
        config=config.read_text("utf-8", errors="replace") if config.is_file() else "",
        candidates=_with_status(candidates, selects, best),
        selects=selects,
        stats=_read_stats(path / "stats.jsonl"),
        notes=tuple(filter(None, map(_note, events))),
    )


def _candidate(path: Path, e: Event) -> CandidateRecord:
    samples = path / "candidates" / folder_name(e["id"]) / "samples.png"
    vitals = e.get("vitals") or {}
    return CandidateRecord(
        id=str(e["id"]),
        parent=None if e.get("parent") is None else str(e["parent"]),
        round=_whole(e.get("round")),
        growth=str(e.get("growth", "")),
        resolution=_size(e["resolution"]),
        images=_whole(e.get("images")),
        seconds=_number(e.get("seconds")) or 0.0,
        score=_number(e.get("score")),
        score_stderr=_number(e.get("score_stderr")),
        generator_layers=_whole(e.get("generator_layers")),
        discriminator_layers=_whole(e.get("discriminator_layers")),
        generator_parameters=_whole(e.get("generator_parameters")),
        discriminator_parameters=_whole(e.get("discriminator_parameters")),
        elapsed=_number(e.get("elapsed")) or 0.0,
        spent=_number(e.get("spent")) or 0.0,
        status="failed" if e.get("status") == "failed" else "scored",
        error=str(e.get("error") or ""),
        samples=samples if samples.is_file() else None,
        vitals={key: value for key, each in vitals.items() if (value := _number(each)) is not None},
        spectra=vitals.get("spectra") or {},
    )


def _note(e: Event) -> str:
    """Return an event of the doctor, of memory or of damage as a sentence, "" for another."""
    if e.get("event") == "doctor":
        then = f"went back, with {e['remedy']}" if e.get("remedy") else "stopped"
        return f"{e.get('candidate')}: {e.get('diagnosis')}; the run {then}."
    if e.get("event") == "memory":
        parts = f"batches went through in {e.get('parts')} parts"
        return f"{e.get('candidate')}: memory was short; {parts}."
    if e.get("event") == "damage":
        return f"{e.get('reason')}; the run went back to {', '.join(map(str, e.get('alive', ())))}."
    return ""


def _select(e: Event) -> SelectRecord:
    alive = tuple(str(id) for id in e.get("alive", ()))
    best = None if e.get("best") is None else str(e["best"])
    return SelectRecord(_whole(e.get("round")), alive, best, str(e.get("reason", "")))


def _best(events: list[Event], candidates: Mapping[str, CandidateRecord]) -> str | None:
    """Return the newest decision's best, or before the first one the lowest score's id."""
    for e in reversed(events):
        if e.get("event") in ("select", "end") and e.get("best") in candidates:
            return str(e["best"])
    scores = {c.id: c.score for c in candidates.values() if c.score is not None}
    return min(scores, key=lambda id: scores[id]) if scores else None


def _with_status(
    candidates: Mapping[str, CandidateRecord], selects: tuple[SelectRecord, ...], best: str | None
) -> tuple[CandidateRecord, ...]:
    """Return the candidates, each one best, alive, pruned or failed by the newest decision."""
    alive = set(selects[-1].alive) if selects else set()
    decided = selects[-1].round if selects else -1

    def status(c: CandidateRecord) -> str:
        if c.id == best:
            return "best"
        if c.status == "failed":
            return "failed"
        return "alive" if c.id in alive or c.round > decided else "pruned"

    return tuple(replace(c, status=status(c)) for c in candidates.values())


def _cost(
    end: Event | None, candidates: Mapping[str, CandidateRecord], elapsed: float
) -> dict[str, float]:
    """Return seconds by purpose; a run that has not ended knows only two purposes."""
    if end is not None and isinstance(end.get("cost"), dict):
        return {str(k): _number(v) or 0.0 for k, v in end["cost"].items()}
    slices = sum(c.seconds for c in candidates.values())
    return {"train_and_score": slices, "other": max(0.0, elapsed - slices)}


def _read_stats(path: Path) -> tuple[StatPoint, ...]:
    """Return the curves; points that a resumed run made anew replace their first version."""
    points: dict[str, list[StatPoint]] = {}
    for e in read_lines(path, strict=False):
        try:
            point = _stat(e)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        line = points.setdefault(point.candidate, [])
        while line and line[-1].images >= point.images:
            line.pop()
        line.append(point)
    return tuple(sorted((p for line in points.values() for p in line), key=lambda p: p.elapsed))


def _stat(e: Event) -> StatPoint:
    values = {k: _number(v) for k, v in e.items() if k not in STAT_FIELDS}
    return StatPoint(
        candidate=str(e["candidate"]),
        elapsed=float(e["elapsed"]),
        images=_whole(e["images"]),
        resolution=_size(e["resolution"]),
        alpha=_number(e.get("alpha", 1.0)) or 0.0,
        images_per_second=_number(e.get("images_per_second")) or 0.0,
        terms={k: v for k, v in values.items() if v is not None},
    )


def _last(kinds: list[Any], kind: str) -> int:
    return len(kinds) - 1 - kinds[::-1].index(kind)


def _number(value: object) -> float | None:
    """Return a finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _whole(value: object) -> int:
    return int(_number(value) or 0)


def _size(value: Any) -> tuple[int, int]:
    height, width = value
    return int(height), int(width)
