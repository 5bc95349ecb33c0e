"""A run as it goes on: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import atexit
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from growgan.report.text import count, duration, number, printable, size
from growgan.training.lines import (
    PlainDisplay,
    candidate_line,
    headline,
    losses_text,
    select_line,
    summary_lines,
)
from growgan.training.progress import Display, SilentDisplay, Status

REFRESH = 0.25
EVENTS_SHOWN = 5
BAR_FROM = 90


def make_display(quiet: bool = False, stream: TextIO | None = None) -> Display:
    """Return the display that suits a stream (standard output if None).

    Args:
        quiet: show nothing at all.
        stream: where to show; a panel if it is a terminal, else lines.
    """
    if quiet:
        return SilentDisplay()
    stream = stream or sys.stdout
    console = Console(file=stream, highlight=False)
    if stream.isatty() and not console.is_dumb_terminal:
        return LiveDisplay(console)
    return PlainDisplay(stream)


class LiveDisplay:
    """A panel at the foot of the terminal, drawn at most four times a second.

    Args:
        console: where to draw.
        now: a clock in seconds.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        self._console, self._now = console, now
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self._title = "growgan"
        self._status: Status | None = None
        self._live: Live | None = None
        self._drawn = -REFRESH

    def start(self, info: Mapping[str, Any]) -> None:
        """Print what begins, and open the panel."""
        self._console.print(Text(headline(info)))
        # No thread of its own: it would draw in the middle of a training step.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        atexit.register(self._close)
        self._live.start()

    def progress(self, status: Status) -> None:
        """Draw the panel anew, unless that was done a moment ago."""
        self._status = status
        self._draw()

    def candidate(self, record: Mapping[str, Any]) -> None:
        """Add a candidate to the last events."""
        self._events.append(candidate_line(record))
        self._draw()

    def select(self, record: Mapping[str, Any]) -> None:
        """Add a decision to the last events."""
        self._events.append(select_line(record))
        self._draw()

    def message(self, text: str) -> None:
        """Print a line above the panel, where it stays."""
        self._console.print(Text(printable(text)))

    def stop(self, summary: Mapping[str, Any]) -> None:
        """Remove the panel, give the cursor back, and print the summary."""
        if self._close():
            for line in summary_lines(summary):
                self._console.print(Text(line), soft_wrap=True)

    def _close(self) -> bool:
        live, self._live = self._live, None
        if live is None:
            return False
        live.stop()
        atexit.unregister(self._close)
        return True

    def _draw(self) -> None:
        now = self._now()
        if self._live is not None and now - self._drawn >= REFRESH:
            self._drawn = now
            self._live.update(self._panel(), refresh=True)

    def _panel(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._status is not None:
            parts.append(_status_table(self._status, bar=self._width() >= BAR_FROM))
        parts += [_one_line(line, "dim") for line in self._events]
        return Panel(
            Group(*parts), title=Text(self._title), title_align="left", width=self._width()
        )

    def _width(self) -> int:
        return min(100, self._console.width)


def _status_table(status: Status, *, bar: bool) -> Table:
    left = "" if status.left is None else f", {duration(status.left)} left"
    used = _one_line(f"{status.spent:.0%}, {duration(status.elapsed)} used{left}")
    budget = Table.grid(padding=(0, 2))
    if bar:
        part = min(1.0, status.spent)
        budget.add_row(ProgressBar(total=1.0, completed=part, width=30), used)
    images = f"{count(status.images)}, {count(status.images_per_second)} a second"
    fade = f", alpha {status.alpha:.2f}" if status.alpha < 1 else ""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=10)
    table.add_column(no_wrap=True, overflow="ellipsis")
    rows: list[tuple[str, RenderableType]] = [
        ("stage", _one_line(status.stage + fade, "bold")),
        ("resolution", _one_line(size(status.resolution))),
        ("candidate", _one_line(status.candidate)),
        ("images", _one_line(images)),
        ("losses", _one_line(losses_text(status) or "-")),
        ("score", _one_line(f"{number(status.score)}, best {number(status.best)}")),
        ("budget", budget if bar else used),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def _one_line(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")
