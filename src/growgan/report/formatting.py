"""Formats numbers for people, in the same way in the terminal and in reports."""

from __future__ import annotations

import math

SECONDS_PER_MINUTE = 60
SECONDS_PER_HOUR = 3600
PHASE_LABELS = {
    "train": "training",
    "score": "scoring",
    "data": "preparing data",
    "build": "building networks",
    "search": "deciding",
    "save": "saving",
    "other": "everything else",
    "train_and_score": "training and scoring",
}


def phase_label(name: str) -> str:
    """Return the name of a phase of the ledger's cost, in words.

    >>> phase_label("score"), phase_label("warm_up")
    ('scoring', 'warm up')
    """
    return PHASE_LABELS.get(name, name.replace("_", " "))


def format_duration(seconds: float) -> str:
    """Return a duration in words.

    >>> format_duration(8.21), format_duration(105), format_duration(7500)
    ('8.2 s', '1 min 45 s', '2 h 05 min')
    """
    seconds = max(0.0, seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < SECONDS_PER_HOUR:
        minutes, rest = divmod(rounded, SECONDS_PER_MINUTE)
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / SECONDS_PER_MINUTE), 60)
    return f"{hours} h {minutes:02d} min"


def format_clock(seconds: float) -> str:
    """Return a time as minutes:seconds or hours:minutes:seconds.

    >>> format_clock(65.2), format_clock(3725)
    ('1:05', '1:02:05')
    """
    minutes, rest = divmod(round(max(0.0, seconds)), SECONDS_PER_MINUTE)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_count(value: float) -> str:
    """Return a count with three significant digits.

    >>> format_count(950), format_count(48000), format_count(1234567), format_count(12.4)
    ('950', '48k', '1.23M', '12')
    """
    for limit, unit in ((999.5e6, "G"), (999.5e3, "M"), (999.5, "k")):
        if abs(value) >= limit:
            scaled = value / {"G": 1e9, "M": 1e6, "k": 1e3}[unit]
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            text = f"{scaled:.{digits}f}"
            return (text.rstrip("0").rstrip(".") if "." in text else text) + unit
    return f"{value:.0f}"


def format_number(value: float | None) -> str:
    """Return a score or loss with three significant digits; "-" for None, NaN and Inf.

    >>> [format_number(value) for value in (1.2345, 0.01234, 341.2, 12345.0, None)]
    ['1.23', '0.0123', '341', '12345', '-']
    """
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    if abs(value) < 1e-6:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def format_score(score: float | None, stderr: float | None, plus_minus: str = "+-") -> str:
    """Return a score with its standard error.

    >>> format_score(1.234, 0.0412), format_score(1.234, None), format_score(None, None)
    ('1.23 +- 0.041', '1.23', '-')
    """
    if score is None or stderr is None:
        return format_number(score)
    return f"{format_number(score)} {plus_minus} {stderr:.2g}"


def format_resolution(resolution: tuple[int, int], separator: str = "x") -> str:
    """Return a resolution (height, width) as text, height first.

    >>> format_resolution((16, 32))
    '16x32'
    """
    return f"{resolution[0]}{separator}{resolution[1]}"


def to_single_line(text: str) -> str:
    """Return ``text`` with every control character replaced by a space.

    >>> to_single_line("a\\x1b[31m\\nb")
    'a [31m b'
    """
    return "".join(c if c.isprintable() else " " for c in text)


def pluralize(count: int, noun: str) -> str:
    """Return a count and its noun.

    >>> pluralize(1, "layer"), pluralize(3, "layer")
    ('1 layer', '3 layers')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
