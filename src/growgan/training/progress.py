"""What a run says while it goes on.

The search speaks to a :class:`Display` and knows nothing of terminals; the command line brings one
that draws (:mod:`growgan.cli.display`), Python code gets lines (:mod:`growgan.training.lines`)
unless it brings its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Status:
    """Where a run stands at one moment.

    Attributes:
        candidate: id of the candidate in training ("0007").
        stage: what happens, in words ("fade in 16x16", "train 32x32", "score 32x32").
        resolution: (height, width) of the images in training, in pixels.
        alpha: fade weight of the newest layer, 0 to 1; 1 when nothing fades.
        images: real images that this lineage has seen.
        images_per_second: training speed.
        losses: named terms of the objective, newest values.
        score: the newest candidate's score (lower is better), None before the first.
        best: the best score so far, None before the first.
        spent: share of the budget that is used, 0 to 1.
        elapsed: seconds on the run's clock.
        left: seconds left, None where the budget is counted in images.
    """

    candidate: str
    stage: str
    resolution: tuple[int, int]
    alpha: float
    images: int
    images_per_second: float
    losses: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    best: float | None = None
    spent: float = 0.0
    elapsed: float = 0.0
    left: float | None = None


class Display(Protocol):
    """Shows a run: ``start`` once, then any number of the others, then ``stop`` in any case."""

    def start(self, info: Mapping[str, Any]) -> None:
        """Begin; ``info`` is the ledger's start event or a part of it."""

    def progress(self, status: Status) -> None:
        """Show where the run stands; may be called at every step, so it must be cheap."""

    def candidate(self, record: Mapping[str, Any]) -> None:
        """Show a finished candidate: the ledger's candidate event."""

    def select(self, record: Mapping[str, Any]) -> None:
        """Show a decision: the ledger's select event."""

    def message(self, text: str) -> None:
        """Show one line that the user should not miss."""

    def stop(self, summary: Mapping[str, Any]) -> None:
        """Leave the terminal clean and show ``summary``, a line an entry; safe to call twice."""


# A display of one's own; lines to standard error for None; nothing for False.
Shown = Display | Literal[False] | None


class Together:
    """Several displays as one."""

    def __init__(self, *displays: Display) -> None:
        self.displays = displays

    def start(self, info: Mapping[str, Any]) -> None:
        """Begin everywhere."""
        for each in self.displays:
            each.start(info)

    def progress(self, status: Status) -> None:
        """Show ``status`` everywhere."""
        for each in self.displays:
            each.progress(status)

    def candidate(self, record: Mapping[str, Any]) -> None:
        """Show a candidate everywhere."""
        for each in self.displays:
            each.candidate(record)

    def select(self, record: Mapping[str, Any]) -> None:
        """Show a decision everywhere."""
        for each in self.displays:
            each.select(record)

    def message(self, text: str) -> None:
        """Show a line everywhere."""
        for each in self.displays:
            each.message(text)

    def stop(self, summary: Mapping[str, Any]) -> None:
        """Stop everywhere, the first display last, so that its summary stands at the end."""
        for each in reversed(self.displays):
            each.stop(summary)


class SilentDisplay:
    """Shows nothing."""

    def start(self, info: Mapping[str, Any]) -> None:
        """Ignore ``info``."""

    def progress(self, status: Status) -> None:
        """Ignore ``status``."""

    def candidate(self, record: Mapping[str, Any]) -> None:
        """Ignore ``record``."""

    def select(self, record: Mapping[str, Any]) -> None:
        """Ignore ``record``."""

    def message(self, text: str) -> None:
        """Ignore ``text``."""

    def stop(self, summary: Mapping[str, Any]) -> None:
        """Ignore ``summary``."""
