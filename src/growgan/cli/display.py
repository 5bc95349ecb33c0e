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

from growgan.report.text import clock, count, duration, number, printable, scored, size
from growgan.training.progress import Display, SilentDisplay, Status

REFRESH = 0.25
LOG_EVERY = 5.0
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


class PlainDisplay:
    """Lines without control characters, for files and pipes: one an event, some for progress.

    Args:
        stream: where the lines go.
        now: a clock in seconds.
    """

    def __init__(
        self, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._now = stream or sys.stdout, now
        self._next = -1.0
        self._elapsed = 0.0
        self._stopped = False

    def start(self, info: Mapping[str, Any]) -> None:
        """Print what begins."""
        self._line(headline(info))

    def progress(self, status: Status) -> None:
        """Print where the run stands every five seconds, less often in a long run."""
        self._elapsed = status.elapsed
        now = self._now()
        if now >= self._next:
            self._next = now + max(LOG_EVERY, status.elapsed / 100)
            self._line(status_line(status), status.elapsed)

    def candidate(self, record: Mapping[str, Any]) -> None:
        """Print a finished candidate."""
        self._elapsed = float(record.get("elapsed", self._elapsed))
        self._line(candidate_line(record), self._elapsed)

    def select(self, record: Mapping[str, Any]) -> None:
        """Print a decision."""
        self._line(select_line(record), self._elapsed)

    def message(self, text: str) -> None:
        """Print a line."""
        self._line(text, self._elapsed)

    def stop(self, summary: Mapping[str, Any]) -> None:
        """Print the summary."""
        if not self._stopped:
            self._stopped = True
            for line in summary_lines(summary):
                self._line(line)

    def _line(self, text: str, elapsed: float | None = None) -> None:
        moment = "" if elapsed is None else f"[{clock(elapsed):>7}] "
        line = printable(moment + text)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        safe = line.encode(encoding, "replace").decode(encoding)
        print(safe, file=self._stream, flush=True)


def headline(info: Mapping[str, Any]) -> str:
    """Return what begins, from the ledger's start event or any part of it."""
    data, budget = info.get("data") or {}, info.get("budget") or {}
    words = [f"{data['name']} ({data.get('count', 0):,} images)"] if "name" in data else []
    words += [f"policy {info['policy']}"] if info.get("policy") else []
    words += [f"preset {info['preset']}"] if info.get("preset") else []
    words += [f"to {size(tuple(info['resolution']))}"] if info.get("resolution") else []
    words += [f"budget {duration(budget['seconds'])}"] if budget.get("seconds") else []
    words += [f"budget {budget['images']:,} images"] if budget.get("images") else []
    words += [f"seed {info['seed']}"] if "seed" in info else []
    return printable("growgan: " + ", ".join(words))


def candidate_line(record: Mapping[str, Any]) -> str:
    """Return a candidate's ledger event in one line."""
    growth = record["growth"] if record.get("parent") else "start"
    result = f"score {scored(record.get('score'), record.get('score_stderr'))}"
    if record.get("status") == "failed":
        result = f"failed: {record.get('error', '')}"
    words = [
        f"{record['id']} {size(tuple(record['resolution']))}",
        str(growth),
        result,
        f"{count(record['images'])} images",
        duration(record["seconds"]),
    ]
    return printable(", ".join(words))


def select_line(record: Mapping[str, Any]) -> str:
    """Return a decision's ledger event in one line."""
    reason = f" ({record['reason']})" if record.get("reason") else ""
    alive = ", ".join(record.get("alive", ())) or "none"
    verb = "go on" if len(record.get("alive", ())) > 1 else "goes on"
    return printable(f"round {record['round']}: {alive} {verb}{reason}; best {record.get('best')}")


def status_line(status: Status) -> str:
    """Return a status in one line."""
    words = [
        f"{status.candidate} {status.stage}",
        *([f"alpha {status.alpha:.2f}"] if status.alpha < 1 else []),
        f"{count(status.images)} images",
        f"{count(status.images_per_second)} images/s",
        *([_losses(status)] if status.losses else []),
        *([f"score {number(status.score)}"] if status.score is not None else []),
        *([f"best {number(status.best)}"] if status.best is not None else []),
        f"{status.spent:.0%} of the budget",
        *([f"{duration(status.left)} left"] if status.left is not None else []),
    ]
    return ", ".join(words)


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return a line an entry: ``name: value``."""
    return [printable(f"{name}: {value}") for name, value in summary.items() if value is not None]


def _losses(status: Status) -> str:
    return " ".join(f"{k.removeprefix('loss_')} {number(v)}" for k, v in status.losses.items())


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
        ("losses", _one_line(_losses(status) or "-")),
        ("score", _one_line(f"{number(status.score)}, best {number(status.best)}")),
        ("budget", budget if bar else used),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def _one_line(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")
