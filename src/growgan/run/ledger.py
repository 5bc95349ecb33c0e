"""The ledger of a run: an append-only file of JSON lines, each on disk before work continues."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from growgan.errors import UserError
from growgan.files import fsync_dir, replace_file
from growgan.jsonl import (
    backup_path,
    encode_line,
    last_checksum,
    read_records,
    read_verified_lines,
    validate_id,
)
from growgan.metrics.result import MeasurementProtocol
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec
from growgan.search.budget import Budget
from growgan.search.growth import Growth
from growgan.search.history import Candidate
from growgan.training.health import HealthMetrics


class Ledger:
    """Appends events to the file ``path`` and to its backup copy, and reads them back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size, self._last_checksum = 0, 0  # of the file as this object left it

    def append(self, event: Mapping[str, Any]) -> None:
        """Write one event to both files, with a checksum, and wait until it is on disk."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._size:
            self._size = size
            self._last_checksum = last_checksum(self.path.read_bytes().splitlines())
        line = encode_line(event, self._last_checksum)
        for path in (self.path, backup_path(self.path)):
            _append_line(path, line)
        self._size, self._last_checksum = size + len(line), last_checksum([line])

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the events. An incomplete last line, as a crash may leave it, is skipped.

        Raises:
            UserError: A line before the last is damaged or missing, or is not an event.
        """
        for line_number, event in enumerate(read_records(self.path), 1):
            if not isinstance(event.get("event"), str):
                raise UserError(
                    f"'{self.path}' has something other than an event in line {line_number}"
                )
            yield event

    def validate(self) -> None:
        """Check that a run can resume from the events.

        Raises:
            UserError: It cannot. The message names the line.
        """
        known_ids: set[str] = set()
        num_pending = 0  # candidates since the last selection
        for line_number, event in enumerate(self.read(), 1):
            with naming_line(self.path, line_number):
                kind = event["event"]
                if (kind == "start") != (line_number == 1):
                    raise ValueError("the first event must be 'start', and no other may be")
                model = EVENT_MODELS.get(kind, LedgerEvent)
                model.model_validate_json(json.dumps(event)).check_references(known_ids)
                if kind == "candidate":
                    known_ids.add(candidate_from_event(event).id)
                    num_pending += 1
                elif kind == "select":
                    if not num_pending:
                        raise ValueError("there is no candidate to select from")
                    num_pending = 0

    def repair(self) -> None:
        """Cut off an incomplete last line, and restore lines that one of the files lacks.

        Raises:
            UserError: A line is damaged or missing in both files.
        """
        content = b"".join(line + b"\n" for line, _ in read_verified_lines(self.path))
        for path in (self.path, backup_path(self.path)):
            if not path.exists() or path.read_bytes() != content:
                replace_file(path, content)

    def delete(self) -> None:
        """Delete both files."""
        for path in (self.path, backup_path(self.path)):
            path.unlink(missing_ok=True)


def _append_line(path: Path, line: bytes) -> None:
    is_new = not path.exists()
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        fsync_dir(path.parent)


@contextmanager
def naming_line(path: Path, line_number: int) -> Iterator[None]:
    """Turn an error about an event into a :class:`UserError` that names its line."""
    try:
        yield
    except (UserError, ValueError, KeyError, TypeError, OverflowError) as error:
        problem = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            problem = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise UserError(
            f"'{path}' has an invalid event in line {line_number}: {problem}"
        ) from error


NonNegativeInt = Annotated[int, Field(ge=0, lt=1 << 53)]
NonNegativeFloat = Annotated[float, Field(ge=0, lt=1e15)]


class LedgerEvent(BaseModel):
    """Base of the events. An event may have further keys."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    elapsed: NonNegativeFloat = Field(0.0, description="Seconds on the run's clock.")

    def check_references(self, known_ids: Collection[str]) -> None:
        """Check that the candidates it refers to are among ``known_ids``.

        Raises:
            ValueError: One is not.
        """
        for key in ("parent", "best", "survivors", "corrupted"):
            value = getattr(self, key, None) or ()
            for candidate_id in [value] if isinstance(value, str) else value:
                if candidate_id not in known_ids:
                    raise ValueError(f"{key}: there is no candidate {candidate_id!r} before it")


class DataFields(LedgerEvent):
    """The training images of a run."""

    name: str
    fingerprint: str = Field(description="Digest of the images and labels.")


class StartEvent(LedgerEvent):
    """The first event of a ledger."""

    budget: Budget
    data: DataFields
    resolution: list[NonNegativeInt] = []
    file_digests: dict[str, str] = Field({}, description="SHA-256 of files, by name.")


class ResumeEvent(LedgerEvent):
    """A run continues after an interruption, or with another budget."""

    budget: Budget


class ProtocolEvent(LedgerEvent):
    """How all scores of the run are measured."""

    protocol: dict[str, Any]

    def check_references(self, known_ids: Collection[str]) -> None:
        """Check that the protocol is complete."""
        MeasurementProtocol.from_json(self.protocol)


class CandidateEvent(LedgerEvent):
    """A trained and scored candidate; :func:`candidate_from_event` reads the rest of it."""

    id: Annotated[str, Field(pattern=r"^\d{4,18}$")]
    parent: str | None
    round: NonNegativeInt
    images: NonNegativeInt
    train_seconds: NonNegativeFloat
    seconds: NonNegativeFloat
    images_per_second: NonNegativeFloat
    score: float | None
    score_stderr: float | None
    spent_fraction: NonNegativeFloat
    score_components: dict[str, float]
    error: str
    health_metrics: HealthMetrics | None = None
    failure: str | None = Field(None, description="Training failure that needs a mitigation.")
    manifest_digest: str | None = Field(None, description="SHA-256 of manifest.json.")

    def check_references(self, known_ids: Collection[str]) -> None:
        """Check that the parent is known and the id is new."""
        super().check_references(known_ids)
        if self.id in known_ids:
            raise ValueError(f"there is a candidate {self.id!r} before it")


class SelectEvent(LedgerEvent):
    """The candidates that a round keeps."""

    round: NonNegativeInt
    survivors: list[str]
    best: str | None = None
    reason: str = ""


class MitigationEvent(LedgerEvent):
    """A change of the settings after a training failure, or the end of the run."""

    mitigation: str = Field(description="The change in words. Empty if the run stops.")
    diagnosis: str
    settings: dict[str, Any]


class MicroBatchEvent(LedgerEvent):
    """From now on each batch is processed in several micro-batches, to save memory."""

    num_micro_batches: Annotated[int, Field(ge=1, lt=1 << 31)]


class CorruptionEvent(LedgerEvent):
    """Files of candidates are damaged, and the run continues from others."""

    corrupted: list[str]
    survivors: list[str]
    best: str | None = None


class EndEvent(LedgerEvent):
    """The search has ended."""

    best: str | None = None


EVENT_MODELS: dict[str, type[LedgerEvent]] = {
    "start": StartEvent,
    "resume": ResumeEvent,
    "protocol": ProtocolEvent,
    "candidate": CandidateEvent,
    "select": SelectEvent,
    "mitigation": MitigationEvent,
    "micro_batches": MicroBatchEvent,
    "corruption": CorruptionEvent,
    "end": EndEvent,
}


def candidate_to_event(candidate: Candidate, parameter_counts: tuple[int, int]) -> dict[str, Any]:
    """Return the ledger event of a candidate.

    Args:
        candidate: The candidate.
        parameter_counts: Number of parameters of G and of D.
    """
    return {
        "event": "candidate",
        "id": candidate.id,
        "parent": candidate.parent_id,
        "round": candidate.round,
        "growth": str(candidate.growth),
        "edits": candidate.growth.to_json(),
        "resolution": list(candidate.resolution),
        "images": candidate.images_seen,
        "seconds": round(candidate.seconds, 3),
        "train_seconds": round(candidate.train_seconds, 3),
        "images_per_second": round(candidate.images_per_second, 1),
        "score": candidate.score,
        "score_stderr": candidate.score_stderr,
        "score_components": dict(candidate.score_components),
        "generator_layers": candidate.layer_counts[0],
        "discriminator_layers": candidate.layer_counts[1],
        "generator_parameters": parameter_counts[0],
        "discriminator_parameters": parameter_counts[1],
        "status": "failed" if candidate.error else "scored",
        "elapsed": round(candidate.elapsed, 3),
        "spent_fraction": candidate.spent_fraction,
        "error": candidate.error,
        "generator_spec": candidate.generator_spec.to_json(),
        "discriminator_spec": candidate.discriminator_spec.to_json(),
    }


def candidate_from_event(event: Mapping[str, Any]) -> Candidate:
    """Rebuild a candidate from its ledger event.

    Raises:
        UserError: The event is not that of a candidate.
    """
    try:
        return _parse_candidate(event)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(
            f"candidate {event.get('id')!r} of the ledger is invalid: {error}"
        ) from error


def _parse_candidate(event: Mapping[str, Any]) -> Candidate:
    score, score_stderr = event["score"], event["score_stderr"]
    return Candidate(
        id=validate_id(event["id"]),
        parent_id=None if event["parent"] is None else str(event["parent"]),
        round=int(event["round"]),
        growth=Growth.from_json(event["edits"]),
        generator_spec=GeneratorSpec.from_json(event["generator_spec"]),
        discriminator_spec=DiscriminatorSpec.from_json(event["discriminator_spec"]),
        images_seen=int(event["images"]),
        train_seconds=float(event["train_seconds"]),
        seconds=float(event["seconds"]),
        images_per_second=float(event["images_per_second"]),
        score=None if score is None else float(score),
        score_stderr=None if score_stderr is None else float(score_stderr),
        elapsed=float(event["elapsed"]),
        spent_fraction=float(event["spent_fraction"]),
        score_components={
            str(name): float(value) for name, value in event["score_components"].items()
        },
        error=str(event["error"]),
    )
