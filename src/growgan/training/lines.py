"""A run as lines of text: what each event says, and the display that prints them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from growgan.report.text import clock, count, duration, number, printable, scored, size
from growgan.training.progress import Display, Shown, SilentDisplay, Status

LOG_EVERY = 5.0


def display_of(shown: Shown) -> Display:
    """Return the display that is meant by ``shown``; standard output stays the caller's own."""
    if shown is None:
        return PlainDisplay(sys.stderr)
    return shown or SilentDisplay()


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
        *([losses_text(status)] if status.losses else []),
        *([f"score {number(status.score)}"] if status.score is not None else []),
        *([f"best {number(status.best)}"] if status.best is not None else []),
        f"{status.spent:.0%} of the budget",
        *([f"{duration(status.left)} left"] if status.left is not None else []),
    ]
    return ", ".join(words)


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return a line an entry: ``name: value``."""
    return [printable(f"{name}: {value}") for name, value in summary.items() if value is not None]


def losses_text(status: Status) -> str:
    """Return the newest terms of the objective in a few words."""
    return " ".join(f"{k.removeprefix('loss_')} {number(v)}" for k, v in status.losses.items())
