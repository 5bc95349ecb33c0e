"""Tests of the displays: plain lines of text, and a live panel that restores the terminal."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import growgan as gg
from growgan.cli.live_display import LiveDisplay, make_display
from growgan.training.progress import Display, RunStatus, SilentDisplay
from growgan.training.text_display import TextDisplay

STATUS = RunStatus(
    candidate="0007",
    phase="fade in 16x16",
    resolution=(16, 16),
    alpha=0.42,
    images_seen=48_000,
    images_per_second=812.4,
    losses={"loss_generator": 1.3157, "loss_discriminator": 0.842, "r1": 0.0213},
    score=1.92,
    best_score=1.31,
    spent_fraction=0.35,
    elapsed_seconds=105.2,
    seconds_left=195.0,
)
START = {
    "data": {"name": "shirts", "count": 60000},
    "policy": "dynamic",
    "preset": "pggan",
    "resolution": [32, 32],
    "budget": {"seconds": 300.0},
    "seed": 0,
}
CANDIDATE = {
    "id": "0007",
    "parent": "0003",
    "growth": "G + conv 3x3 64",
    "resolution": [16, 16],
    "images": 48000,
    "seconds": 12.3,
    "score": 1.23,
    "score_stderr": 0.04,
    "status": "scored",
    "elapsed": 105.2,
}
SELECT = {
    "round": 3,
    "survivors": ["0007", "0005"],
    "best": "0007",
    "reason": "it improves fastest",
}
CHILD = """
import sys, time
from growgan.cli.live_display import make_display
from growgan.training.progress import RunStatus
display = make_display()
display.start({"policy": "dynamic"})
try:
    while True:
        display.progress(RunStatus("0007", "train 8x8", (8, 8), 1.0, 10, 5.0))
        time.sleep(0.05)
except KeyboardInterrupt:
    if "finally" in sys.argv:
        display.stop({"run": "RUN"})
    sys.exit(130)
"""


class Clock:
    """A clock that returns the given times one by one."""

    def __init__(self, moments: Iterable[float]) -> None:
        self.moments: Iterator[float] = iter(moments)

    def __call__(self) -> float:
        return next(self.moments)


def show_run(display: Display) -> None:
    """Show the events of a short run."""
    display.start(START)
    display.progress(STATUS)
    display.candidate(CANDIDATE)
    display.select(SELECT)
    display.message("rolled back once")
    display.stop({"best": "0007, score 1.23", "report": "RUN/report.html"})
    display.stop({"best": "0007, score 1.23"})


def terminal(width: int = 80) -> tuple[io.StringIO, Console]:
    stream = io.StringIO()
    size = {"width": width, "height": 40}
    console = Console(file=stream, force_terminal=True, _environ={"TERM": "xterm"}, **size)
    return stream, console


def test_text_lines_report_everything_once() -> None:
    stream = io.StringIO()
    show_run(TextDisplay(stream))
    assert stream.getvalue().splitlines() == [
        "growgan: shirts (60,000 images), policy dynamic, preset pggan, to 32x32,"
        " budget 5 min, seed 0",
        "[   1:45] 0007 fade in 16x16, alpha 0.42, 48k images, 812 images/s,"
        " generator 1.32 discriminator 0.842 r1 0.0213, score 1.92, best 1.31,"
        " 35% of the budget, 3 min 15 s left",
        "[   1:45] 0007 16x16, G + conv 3x3 64, score 1.23 +- 0.04, 48k images, 12.3 s",
        "[   1:45] round 3: 0007, 0005 continue (it improves fastest); best 0007",
        "[   1:45] rolled back once",
        "best: 0007, score 1.23",
        "report: RUN/report.html",
    ]


def test_text_progress_appears_every_five_seconds_and_less_often_in_a_long_run() -> None:
    stream = io.StringIO()
    display = TextDisplay(stream, clock=Clock([0.0, 4.9, 5.0, 9.9, 10.1, 19.0, 20.2]))
    for elapsed in (0.0, 4.9, 5.0, 9.9, 1000.0, 1009.0, 1010.0):
        display.progress(replace(STATUS, elapsed_seconds=elapsed))
    moments = [line.split("]")[0].strip("[ ") for line in stream.getvalue().splitlines()]
    assert moments == ["0:00", "0:05", "16:40", "16:50"]


def test_text_lines_hold_no_control_characters_and_fit_the_encoding_of_the_stream() -> None:
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding="ascii")
    display = TextDisplay(stream)
    display.message("\x1b[31mred\r\nnew \u00e9")
    display.candidate({**CANDIDATE, "status": "failed", "error": "a\nb", "score": None})
    lines = data.getvalue().decode("ascii").splitlines()
    assert lines[0] == "[   0:00]  [31mred  new ?"
    assert "failed: a b" in lines[1] and len(lines) == 2


def test_a_bare_status_and_a_start_without_facts_can_be_shown() -> None:
    stream = io.StringIO()
    display = TextDisplay(stream)
    display.start({})
    display.progress(RunStatus("0000", "score 4x4", (4, 4), 1.0, 0, 0.0))
    assert "0000 score 4x4, 0 images, 0 images/s, 0% of the budget" in stream.getvalue()
    stream, console = terminal()
    live = LiveDisplay(console)
    live.start({})
    live.progress(RunStatus("0000", "score 4x4", (4, 4), 1.0, 0, 0.0))
    live.stop({})
    assert "score 4x4" in stream.getvalue()


def test_the_panel_shows_the_status_and_the_last_events() -> None:
    stream, console = terminal(110)
    display = LiveDisplay(console, clock=Clock(range(100)))
    display.start(START)
    display.candidate(CANDIDATE)
    display.select(SELECT)
    display.progress(STATUS)
    output = stream.getvalue()
    for text in (
        "fade in 16x16, alpha 0.42", "48k, 812 per second", "1.92, best 1.31",
        "generator 1.32 discriminator 0.842 r1 0.0213", "35%, 1 min 45 s used, 3 min 15 s left",
        "0007 16x16, G + conv 3x3 64, score 1.23 +- 0.04", "round 3: 0007, 0005 continue",
    ):  # fmt: skip
        assert text in output
    display.stop({"report": "RUN/report.html"})
    assert "report: RUN/report.html" in stream.getvalue()


def test_the_panel_is_drawn_at_most_four_times_a_second() -> None:
    stream, console = terminal()
    display = LiveDisplay(console, clock=Clock([0.01 * k for k in range(301)]))
    display.start({})
    for _ in range(301):  # three seconds
        display.progress(STATUS)
    assert 11 <= stream.getvalue().count("812 per second") <= 13
    display.stop({})


@pytest.mark.parametrize("width", [30, 50, 200])
def test_the_panel_fits_its_terminal(width: int) -> None:
    stream, console = terminal(width)
    display = LiveDisplay(console, clock=Clock(range(9)))
    display.start({})
    display.select({**SELECT, "reason": "long " * 50})
    before = len(stream.getvalue())
    display.progress(replace(STATUS, phase="[bold]no markup[/bold]"))
    lines = [line for line in stream.getvalue()[before:].split("\n") if "\u2502" in line]
    assert len(lines) == 8  # seven rows and one event, none wrapped
    display.stop({})


def test_the_cursor_is_restored_once() -> None:
    stream, console = terminal()
    show_run(LiveDisplay(console))
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1
    assert stream.getvalue().count("best: 0007") == 1
    assert "rolled back once" in stream.getvalue()


def test_make_display_chooses_by_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(make_display(stream=Terminal()), LiveDisplay)
    assert isinstance(make_display(stream=io.StringIO()), TextDisplay)
    assert isinstance(make_display(quiet=True, stream=Terminal()), SilentDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(stream=Terminal()), TextDisplay)


def test_a_run_from_python_prints_progress_unless_display_is_false(
    make_blob_images: Callable[..., gg.ImageSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: Any = {"policy": "fixed", "batch_size": 8, "network": {"width": 8, "latent_dim": 8}}
    options = {"images": 64, "settings": {**settings, "score": {"num_samples": 32}}}
    data = make_blob_images(64, 1, 16, 16)
    gg.grow(data, out=tmp_path / "printed", **options)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("growgan: blobs (64 images), policy fixed")
    assert "% of the budget" in err and "0000 16x16, start, score" in err
    gg.grow(data, out=tmp_path / "silent", display=False, **options)
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
@pytest.mark.parametrize("ending", ["finally", "forgotten"])
def test_an_interrupt_leaves_the_terminal_clean(ending: str) -> None:
    master, slave = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, ending], stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    output = read_until(master, b"train 8x8")
    child.send_signal(signal.SIGINT)
    output += read_until(master, None)
    os.close(master)
    assert child.wait(10) == 130
    assert output.count(b"\x1b[?25l") == output.count(b"\x1b[?25h") == 1
    after = output.rpartition(b"\x1b[?25h")[2]
    assert b"\xe2\x94\x82" not in after  # no panel after the cursor is restored
    assert (b"run: RUN" in after) == (ending == "finally")


def read_until(file: int, text: bytes | None) -> bytes:
    """Return the output of a terminal up to ``text``, or until it closes."""
    output, deadline = b"", time.monotonic() + 20
    while time.monotonic() < deadline and (text is None or text not in output):
        if not select.select([file], [], [], 0.2)[0]:
            continue
        try:
            data = os.read(file, 65536)
        except OSError:  # Linux raises it when the other side has closed
            break
        if not data:
            break
        output += data
    return output
