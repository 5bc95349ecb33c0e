"""Shows the progress of a run: a live panel in a terminal, lines of text elsewhere."""

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

from growgan.report.formatting import (
    format_count,
    format_duration,
    format_number,
    format_resolution,
    to_single_line,
)
from growgan.training.progress import Display, RunStatus, SilentDisplay
from growgan.training.text_display import (
    TextDisplay,
    candidate_line,
    losses_text,
    select_line,
    start_line,
    summary_lines,
)

REFRESH_INTERVAL_SECONDS = 0.25
MAX_EVENTS = 5  # newest events in the panel
MIN_COLUMNS_FOR_BAR = 90  # narrower panels have no progress bar
MAX_PANEL_COLUMNS = 100


def make_display(quiet: bool = False, stream: TextIO | None = None) -> Display:
    """Return the display that suits a stream.

    Args:
        quiet: Show nothing.
        stream: Where to show it; None for standard output. A terminal gets a panel, anything else
            lines of text.
    """
    if quiet:
        return SilentDisplay()
    stream = stream or sys.stdout
    console = Console(file=stream, highlight=False)
    if stream.isatty() and not console.is_dumb_terminal:
        return LiveDisplay(console)
    return TextDisplay(stream)


class LiveDisplay:
    """A panel at the bottom of the terminal, redrawn at most four times a second.

    Args:
        console: Where to draw.
        clock: Returns the time in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._events: deque[str] = deque(maxlen=MAX_EVENTS)
        self._title = "growgan"
        self._status: RunStatus | None = None
        self._live: Live | None = None
        self._last_drawn_seconds = -REFRESH_INTERVAL_SECONDS

    def start(self, start_event: Mapping[str, Any]) -> None:
        """Print the settings of the run and open the panel."""
        self._console.print(Text(start_line(start_event)))
        # A refresh thread would interrupt training steps.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        atexit.register(self._close)
        self._live.start()

    def progress(self, status: RunStatus) -> None:
        """Show the current state of training."""
        self._status = status
        self._refresh()

    def candidate(self, record: Mapping[str, Any]) -> None:
        """Add a finished candidate to the newest events."""
        self._events.append(candidate_line(record))
        self._refresh()

    def select(self, record: Mapping[str, Any]) -> None:
        """Add a selection to the newest events."""
        self._events.append(select_line(record))
        self._refresh()

    def message(self, text: str) -> None:
        """Print a permanent line above the panel."""
        self._console.print(Text(to_single_line(text)))

    def stop(self, summary: Mapping[str, Any]) -> None:
        """Remove the panel, restore the cursor, and print the summary."""
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

    def _refresh(self) -> None:
        now = self._clock()
        if self._live is not None and now - self._last_drawn_seconds >= REFRESH_INTERVAL_SECONDS:
            self._last_drawn_seconds = now
            self._live.update(self._make_panel(), refresh=True)

    def _make_panel(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._status is not None:
            parts.append(
                _status_table(self._status, show_bar=self._panel_width() >= MIN_COLUMNS_FOR_BAR)
            )
        parts += [_ellipsized(line, "dim") for line in self._events]
        return Panel(
            Group(*parts), title=Text(self._title), title_align="left", width=self._panel_width()
        )

    def _panel_width(self) -> int:
        return min(MAX_PANEL_COLUMNS, self._console.width)


def _status_table(status: RunStatus, *, show_bar: bool) -> Table:
    left = "" if status.seconds_left is None else f", {format_duration(status.seconds_left)} left"
    used = _ellipsized(
        f"{status.spent_fraction:.0%}, {format_duration(status.elapsed_seconds)} used{left}"
    )
    budget = Table.grid(padding=(0, 2))
    if show_bar:
        completed = min(1.0, status.spent_fraction)
        budget.add_row(ProgressBar(total=1.0, completed=completed, width=30), used)
    images = (
        f"{format_count(status.images_seen)}, {format_count(status.images_per_second)} per second"
    )
    fade = f", alpha {status.alpha:.2f}" if status.alpha < 1 else ""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=10)
    table.add_column(no_wrap=True, overflow="ellipsis")
    rows: list[tuple[str, RenderableType]] = [
        ("phase", _ellipsized(status.phase + fade, "bold")),
        ("resolution", _ellipsized(format_resolution(status.resolution))),
        ("candidate", _ellipsized(status.candidate)),
        ("images", _ellipsized(images)),
        ("losses", _ellipsized(losses_text(status) or "-")),
        (
            "score",
            _ellipsized(f"{format_number(status.score)}, best {format_number(status.best_score)}"),
        ),
        ("budget", budget if show_bar else used),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def _ellipsized(text: str, style: str = "") -> Text:
    return Text(to_single_line(text), style=style, no_wrap=True, overflow="ellipsis")
