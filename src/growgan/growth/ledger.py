"""The run's memory: an append-only file of JSON lines, each on the disk before work goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from growgan.data.files import replace_file, sync_folder
from growgan.errors import UserError
from growgan.growth.actions import Growth
from growgan.growth.budget import Budget
from growgan.growth.history import Candidate
from growgan.metrics.protocol import Protocol
from growgan.nets.spec import StackSpec
from growgan.plain import copy_of, folder_name, last_sum, read_lines, to_line, whole_lines
from growgan.training.doctor import Vitals

NUMBERS = ("score", "score_stderr")  # that may be missing


class Ledger:
    """Appends events to ``path`` and reads them back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = (0, 0)  # size, and checksum of the last line

    def append(self, event: Mapping[str, Any]) -> None:
        """Write one event, chained to the last, and wait until it is on the disk, and in a copy."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._end[0]:  # else it is as this object has left it
            self._end = (size, last_sum(self.path.read_bytes().splitlines()))
        line = to_line(event, self._end[1])
        for path in (self.path, copy_of(self.path)):
            _append(path, line)
        self._end = (size + len(line), last_sum([line]))

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the events; a last line that was torn by a crash is passed over.

        Raises:
            UserError: a line before the last is damaged or missing, or no event; it is named.
        """
        for number, event in enumerate(read_lines(self.path), 1):
            if not isinstance(event.get("event"), str):
                raise UserError(f"'{self.path}' holds something else than events in line {number}")
            yield event

    def check(self) -> None:
        """Check that every event is such that a run can go on from it.

        Raises:
            UserError: one is not; its line is named.
        """
        known: set[str] = set()
        waiting = 0  # children that have not been selected from
        for number, event in enumerate(self.read(), 1):
            with in_line(self.path, number):
                kind = event["event"]
                if (kind == "start") != (number == 1):
                    raise ValueError("the first event, and no other, is 'start'")
                FORMS.get(kind, Form).model_validate_json(json.dumps(event)).check(known)
                if kind == "candidate":
                    known.add(candidate_from_event(event).id)
                if kind == "select" and not waiting:
                    raise ValueError("there is nothing to select from")
                waiting = {"candidate": waiting + 1, "select": 0}.get(kind, waiting)

    def mend(self) -> None:
        """Cut off a torn last line; make file and copy one where lines are damaged or missing.

        Raises:
            UserError: a line is damaged or missing in both.
        """
        whole = b"".join(line + b"\n" for line, _ in whole_lines(self.path))
        for path in (self.path, copy_of(self.path)):
            if not path.exists() or path.read_bytes() != whole:
                replace_file(path, whole)

    def clear(self) -> None:
        """Remove what a start that came to nothing has left."""
        for path in (self.path, copy_of(self.path)):
            path.unlink(missing_ok=True)


def _append(path: Path, line: bytes) -> None:
    new = not path.exists()
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


@contextmanager
def in_line(path: Path, number: int) -> Iterator[None]:
    """Turn what is wrong with an event into a :class:`UserError` that names its line."""
    try:
        yield
    except (UserError, ValueError, KeyError, TypeError, OverflowError) as error:
        why = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            why = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise UserError(f"'{path}' makes no sense in line {number}: {why}") from error


Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Amount = Annotated[float, Field(ge=0, lt=1e15)]


class Form(BaseModel):
    """What an event must be like; it may hold more."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    elapsed: Amount = 0.0

    def check(self, known: Collection[str]) -> None:
        """Raise a ValueError for the name of a candidate that is not ``known``."""
        for key in ("parent", "best", "alive", "lost"):
            names = getattr(self, key, None) or ()
            for name in [names] if isinstance(names, str) else names:
                if name not in known:
                    raise ValueError(f"{key}: there is no candidate {name!r} before it")


class Limit(Form):
    """A budget."""

    model_config = ConfigDict(extra="forbid")

    seconds: Amount | None = None
    images: Count | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        """Check that there is one of them, and something of it."""
        Budget(self.seconds, self.images)
        return self


class Data(Form):
    """What a run is told to be made of."""

    name: str
    fingerprint: str


class Start(Form):
    """The ledger's first event."""

    budget: Limit
    data: Data
    resolution: list[Count] = []
    files: dict[str, str] = {}


class Resume(Form):
    """A run goes on."""

    budget: Limit


class Measured(Form):
    """How scores are taken."""

    protocol: dict[str, Any]

    def check(self, known: Collection[str]) -> None:
        """Raise an error if it is no protocol."""
        Protocol.from_json(self.protocol)


class Child(Form):
    """A candidate, beside what :func:`candidate_from_event` reads."""

    id: Annotated[str, Field(pattern=r"^\d{4,18}$")]
    parent: str | None
    round: Count
    images: Count
    trained: Amount
    seconds: Amount
    rate: Amount
    score: float | None
    score_stderr: float | None
    spent: Amount
    parts: dict[str, float]
    error: str
    vitals: Vitals | None = None
    ailment: str | None = None
    manifest: str | None = None

    def check(self, known: Collection[str]) -> None:
        """Raise a ValueError for an unknown parent, or an id that there has been."""
        super().check(known)
        if self.id in known:
            raise ValueError(f"there is a candidate {self.id!r} before it")


class Select(Form):
    """Who lives on."""

    round: Count
    alive: list[str]
    best: str | None = None
    reason: str = ""


class Doctor(Form):
    """A remedy."""

    remedy: str
    diagnosis: str
    settings: dict[str, Any]


class Memory(Form):
    """Batches go through in parts."""

    parts: Annotated[int, Field(ge=1, lt=1 << 31)]


class Damage(Form):
    """Whose files are lost, and who lives on."""

    lost: list[str]
    alive: list[str]
    best: str | None = None


class End(Form):
    """What there is when the budget is spent."""

    best: str | None = None


FORMS: dict[str, type[Form]] = {
    "start": Start,
    "resume": Resume,
    "protocol": Measured,
    "candidate": Child,
    "select": Select,
    "doctor": Doctor,
    "memory": Memory,
    "damage": Damage,
    "end": End,
}


def candidate_to_event(c: Candidate, sizes: tuple[int, int]) -> dict[str, Any]:
    """Return the ledger's line for a candidate; ``sizes`` are both players' parameter counts."""
    return {
        "event": "candidate",
        "id": c.id,
        "parent": c.parent,
        "round": c.round,
        "growth": str(c.growth),
        "edits": c.growth.to_json(),
        "resolution": list(c.resolution),
        "images": c.images,
        "seconds": round(c.seconds, 3),
        "trained": round(c.trained, 3),
        "rate": round(c.rate, 1),
        "score": c.score,
        "score_stderr": c.stderr,
        "parts": dict(c.parts),
        "generator_layers": c.layers[0],
        "discriminator_layers": c.layers[1],
        "generator_parameters": sizes[0],
        "discriminator_parameters": sizes[1],
        "status": "failed" if c.error else "scored",
        "elapsed": round(c.elapsed, 3),
        "spent": c.spent,
        "error": c.error,
        "generator": c.generator.to_json(),
        "discriminator": c.discriminator.to_json(),
    }


def candidate_from_event(event: Mapping[str, Any]) -> Candidate:
    """Rebuild a candidate from its line in the ledger; raise a UserError if that is none."""
    try:
        return _candidate(event)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(f"candidate {event.get('id')!r} of the ledger is none: {error}") from error


def _candidate(event: Mapping[str, Any]) -> Candidate:
    number = {key: None if event[key] is None else float(event[key]) for key in NUMBERS}
    return Candidate(
        id=folder_name(event["id"]),
        parent=None if event["parent"] is None else str(event["parent"]),
        round=int(event["round"]),
        growth=Growth.from_json(event["edits"]),
        generator=StackSpec.from_json(event["generator"]),
        discriminator=StackSpec.from_json(event["discriminator"]),
        images=int(event["images"]),
        trained=float(event["trained"]),
        seconds=float(event["seconds"]),
        rate=float(event["rate"]),
        score=number["score"],
        stderr=number["score_stderr"],
        elapsed=float(event["elapsed"]),
        spent=float(event["spent"]),
        parts={str(key): float(value) for key, value in event["parts"].items()},
        error=str(event["error"]),
    )
