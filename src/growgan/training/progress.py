"""Displays: what a run reports while it trains.

A search reports to a :class:`Display`. The command line uses one that draws in the terminal
(:mod:`growgan.cli.live_display`). Python code gets lines of text
(:mod:`growgan.training.text_display`) unless it passes its own display.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class RunStatus:
    """The state of a run at one moment.

    Attributes:
        candidate: Id of the candidate in training, such as "0007".
        phase: The current work, such as "fade in 16x16", "train 32x32" or "score 32x32".
        resolution: Height and width of the images in training, in pixels.
        alpha: Fade-in weight of the newest layer, 0 to 1; 1 if nothing fades in.
        images_seen: Real images seen along this lineage.
        images_per_second: Training speed.
        losses: Newest values of the objective's terms, by name.
        score: Score of the newest candidate (lower is better); None before the first.
        best_score: Best score so far; None before the first.
        spent_fraction: Used fraction of the budget, 0 to 1.
        elapsed_seconds: Seconds since the run started, without interruptions.
        seconds_left: Seconds left; None if the budget counts images.
    """

    candidate: str
    phase: str
    resolution: tuple[int, int]
    alpha: float
    images_seen: int
    images_per_second: float
    losses: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    best_score: float | None = None
    spent_fraction: float = 0.0
    elapsed_seconds: float = 0.0
    seconds_left: float | None = None


class Display(Protocol):
    """Shows a run: one ``start``, then any number of other calls, then always ``stop``."""

    def start(self, start_event: Mapping[str, Any]) -> None:
        """Show the start; ``start_event`` is the ledger's start event or a part of it."""

    def progress(self, status: RunStatus) -> None:
        """Show the state of the run. It may be called in every step, so it must be fast."""

    def candidate(self, record: Mapping[str, Any]) -> None:
        """Show a finished candidate; ``record`` is the ledger's candidate event."""

    def select(self, record: Mapping[str, Any]) -> None:
        """Show a selection; ``record`` is the ledger's select event."""

    def message(self, text: str) -> None:
        """Show one important line."""

    def stop(self, summary: Mapping[str, Any]) -> None:
        """Restore the terminal and show ``summary``, one line per entry. It may be called twice."""


# A display, None for lines of text on standard error, or False for no output.
DisplayArg = Display | Literal[False] | None


class CompositeDisplay:
    """Forwards every call to several displays."""

    def __init__(self, *displays: Display) -> None:
        self.displays = displays

    def start(self, start_event: Mapping[str, Any]) -> None:
        """Show the start on all displays."""
        for display in self.displays:
            display.start(start_event)

    def progress(self, status: RunStatus) -> None:
        """Show ``status`` on all displays."""
        for display in self.displays:
            display.progress(status)

    def candidate(self, record: Mapping[str, Any]) -> None:
        """Show a candidate on all displays."""
        for display in self.displays:
            display.candidate(record)

    def select(self, record: Mapping[str, Any]) -> None:
        """Show a selection on all displays."""
        for display in self.displays:
            display.select(record)

    def message(self, text: str) -> None:
        """Show a line on all displays."""
        for display in self.displays:
            display.message(text)

    def stop(self, summary: Mapping[str, Any]) -> None:
        """Stop all displays, the first one last, so that its summary is at the end."""
        for display in reversed(self.displays):
            display.stop(summary)


class SilentDisplay:
    """Shows nothing."""

    def start(self, start_event: Mapping[str, Any]) -> None:
        """Ignore ``start_event``."""

    def progress(self, status: RunStatus) -> None:
        """Ignore ``status``."""

    def candidate(self, record: Mapping[str, Any]) -> None:
        """Ignore ``record``."""

    def select(self, record: Mapping[str, Any]) -> None:
        """Ignore ``record``."""

    def message(self, text: str) -> None:
        """Ignore ``text``."""

    def stop(self, summary: Mapping[str, Any]) -> None:
        """Ignore ``summary``."""
