"""The run's memory: an append-only file of JSON lines, each on the disk before work goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from growgan.data.files import replace_file
from growgan.errors import UserError
from growgan.growth.actions import Growth
from growgan.growth.history import Candidate
from growgan.nets.spec import StackSpec
from growgan.plain import copy_of, folder_name, read_lines, to_line

NUMBERS = ("score", "score_stderr")  # that may be missing


class Ledger:
    """Appends events to ``path`` and reads them back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Mapping[str, Any]) -> None:
        """Write one event, with its checksum, and wait until it is on the disk, and in a copy."""
        line = to_line(event)
        for path in (self.path, copy_of(self.path)):
            _append(path, line)

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the events; a last line that was torn by a crash is passed over.

        Raises:
            UserError: a line before the last is damaged, or no event; it is named.
        """
        for number, event in enumerate(read_lines(self.path), 1):
            if not isinstance(event.get("event"), str):
                raise UserError(f"'{self.path}' holds something else than events in line {number}")
            yield event

    def mend(self) -> None:
        """Cut off a torn last line, and put whole lines of the copy in place of damaged ones.

        Raises:
            UserError: a line is damaged in the copy, too.
        """
        if not self.path.exists():
            return
        whole = b"".join(to_line(event) for event in self.read())
        for path in (self.path, copy_of(self.path)):
            if not path.exists() or path.read_bytes() != whole:
                replace_file(path, whole)


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


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
