"""The run's memory: an append-only file of JSON lines, each on the disk before work goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from growgan.growth.actions import Growth
from growgan.growth.history import Candidate
from growgan.nets.spec import StackSpec


class Ledger:
    """Appends events to ``path`` and reads them back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Mapping[str, Any]) -> None:
        """Write one event and wait until it is on the disk."""
        line = json.dumps(event, allow_nan=False) + "\n"
        with self.path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the events; a last line that was torn by a crash is passed over."""
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return

    def mend(self) -> None:
        """Cut off a torn last line, so that the next event begins a line of its own."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
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
    """Rebuild a candidate from its line in the ledger."""
    return Candidate(
        id=event["id"],
        parent=event["parent"],
        round=event["round"],
        growth=Growth.from_json(event["edits"]),
        generator=StackSpec.from_json(event["generator"]),
        discriminator=StackSpec.from_json(event["discriminator"]),
        images=event["images"],
        trained=event["trained"],
        seconds=event["seconds"],
        rate=event["rate"],
        score=event["score"],
        stderr=event["score_stderr"],
        elapsed=event["elapsed"],
        spent=event["spent"],
        parts=event["parts"],
        error=event["error"],
    )
