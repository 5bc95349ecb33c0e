"""A display that prints one line of text per event, and the texts of these lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from growgan.report.formatting import (
    format_clock,
    format_count,
    format_duration,
    format_number,
    format_resolution,
    format_score,
    to_single_line,
)
from growgan.training.progress import Display, DisplayArg, RunStatus, SilentDisplay

PRINT_INTERVAL_SECONDS = 5.0  # shortest time between two lines of progress


def resolve_display(display: DisplayArg) -> Display:
    """Return the display; None stands for lines on standard error, and False for no output."""
    if display is None:
        return TextDisplay(sys.stderr)
    return display or SilentDisplay()


class TextDisplay:
    """Prints one line per event and lines of progress, without control characters.

    Args:
        stream: Where to print; standard output by default.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._clock = stream or sys.stdout, clock
        self._next_print_time = -1.0
        self._elapsed = 0.0
        self._stopped = False

    def start(self, start_event: Mapping[str, Any]) -> None:
        """Print the start."""
        self._print_line(start_line(start_event))

    def progress(self, status: RunStatus) -> None:
        """Print the state of the run every five seconds, and less often in long runs."""
        self._elapsed = status.elapsed_seconds
        now = self._clock()
        if now >= self._next_print_time:
            self._next_print_time = now + max(PRINT_INTERVAL_SECONDS, status.elapsed_seconds / 100)
            self._print_line(status_line(status), status.elapsed_seconds)

    def candidate(self, record: Mapping[str, Any]) -> None:
        """Print a finished candidate."""
        self._elapsed = float(record.get("elapsed", self._elapsed))
        self._print_line(candidate_line(record), self._elapsed)

    def select(self, record: Mapping[str, Any]) -> None:
        """Print a selection."""
        self._print_line(select_line(record), self._elapsed)

    def message(self, text: str) -> None:
        """Print a line."""
        self._print_line(text, self._elapsed)

    def stop(self, summary: Mapping[str, Any]) -> None:
        """Print the summary."""
        if not self._stopped:
            self._stopped = True
            for line in summary_lines(summary):
                self._print_line(line)

    def _print_line(self, text: str, elapsed: float | None = None) -> None:
        timestamp = "" if elapsed is None else f"[{format_clock(elapsed):>7}] "
        line = to_single_line(timestamp + text)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        printable = line.encode(encoding, "replace").decode(encoding)
        print(printable, file=self._stream, flush=True)


def start_line(start_event: Mapping[str, Any]) -> str:
    """Return the line for the ledger's start event or any part of it."""
    data, budget = start_event.get("data") or {}, start_event.get("budget") or {}
    words = [f"{data['name']} ({data.get('count', 0):,} images)"] if "name" in data else []
    words += [f"policy {start_event['policy']}"] if start_event.get("policy") else []
    words += [f"preset {start_event['preset']}"] if start_event.get("preset") else []
    words += (
        [f"to {format_resolution(tuple(start_event['resolution']))}"]
        if start_event.get("resolution")
        else []
    )
    words += [f"budget {format_duration(budget['seconds'])}"] if budget.get("seconds") else []
    words += [f"budget {budget['images']:,} images"] if budget.get("images") else []
    words += [f"seed {start_event['seed']}"] if "seed" in start_event else []
    return to_single_line("growgan: " + ", ".join(words))


def candidate_line(record: Mapping[str, Any]) -> str:
    """Return the line for a candidate event of the ledger."""
    growth = record["growth"] if record.get("parent") else "start"
    result = f"score {format_score(record.get('score'), record.get('score_stderr'))}"
    if record.get("status") == "failed":
        result = f"failed: {record.get('error', '')}"
    words = [
        f"{record['id']} {format_resolution(tuple(record['resolution']))}",
        str(growth),
        result,
        f"{format_count(record['images'])} images",
        format_duration(record["seconds"]),
    ]
    return to_single_line(", ".join(words))


def select_line(record: Mapping[str, Any]) -> str:
    """Return the line for a select event of the ledger."""
    reason = f" ({record['reason']})" if record.get("reason") else ""
    survivors = ", ".join(record.get("survivors", ())) or "none"
    verb = "continue" if len(record.get("survivors", ())) > 1 else "continues"
    return to_single_line(
        f"round {record['round']}: {survivors} {verb}{reason}; best {record.get('best')}"
    )


def status_line(status: RunStatus) -> str:
    """Return the line for the state of a run."""
    words = [
        f"{status.candidate} {status.phase}",
        *([f"alpha {status.alpha:.2f}"] if status.alpha < 1 else []),
        f"{format_count(status.images_seen)} images",
        f"{format_count(status.images_per_second)} images/s",
        *([losses_text(status)] if status.losses else []),
        *([f"score {format_number(status.score)}"] if status.score is not None else []),
        *([f"best {format_number(status.best_score)}"] if status.best_score is not None else []),
        f"{status.spent_fraction:.0%} of the budget",
        *(
            [f"{format_duration(status.seconds_left)} left"]
            if status.seconds_left is not None
            else []
        ),
    ]
    return ", ".join(words)


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return one line ``name: value`` per entry that is not None."""
    return [
        to_single_line(f"{name}: {value}") for name, value in summary.items() if value is not None
    ]


def losses_text(status: RunStatus) -> str:
    """Return the newest loss terms, such as "generator 1.32 r1 0.0213"."""
    return " ".join(
        f"{name.removeprefix('loss_')} {format_number(value)}"
        for name, value in status.losses.items()
    )
