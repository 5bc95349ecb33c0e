"""Numbers as a person reads them; the same words in the terminal and on the page."""

from __future__ import annotations

import math

MINUTE = 60
HOUR = 3600
PURPOSES = {
    "train": "training",
    "score": "scoring",
    "data": "preparing data",
    "branch": "branching",
    "search": "deciding",
    "save": "saving",
    "other": "everything else",
    "train_and_score": "training and scoring",
}


def purpose(name: str) -> str:
    """Return what a kind of cost in the ledger is, in words.

    >>> purpose("score"), purpose("warm_up")
    ('scoring', 'warm up')
    """
    return PURPOSES.get(name, name.replace("_", " "))


def duration(seconds: float) -> str:
    """Return a time span in words.

    >>> duration(8.21), duration(105), duration(7500)
    ('8.2 s', '1 min 45 s', '2 h 05 min')
    """
    seconds = max(0.0, seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < HOUR:
        minutes, rest = divmod(whole, MINUTE)
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / MINUTE), 60)
    return f"{hours} h {minutes:02d} min"


def clock(seconds: float) -> str:
    """Return a moment on the run's clock.

    >>> clock(65.2), clock(3725)
    ('1:05', '1:02:05')
    """
    minutes, rest = divmod(round(max(0.0, seconds)), MINUTE)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def count(number: float) -> str:
    """Return a count in three digits.

    >>> count(950), count(48000), count(1234567), count(12.4)
    ('950', '48k', '1.23M', '12')
    """
    for limit, unit in ((999.5e6, "G"), (999.5e3, "M"), (999.5, "k")):
        if abs(number) >= limit:
            scaled = number / {"G": 1e9, "M": 1e6, "k": 1e3}[unit]
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            text = f"{scaled:.{digits}f}"
            return (text.rstrip("0").rstrip(".") if "." in text else text) + unit
    return f"{number:.0f}"


def number(value: float | None) -> str:
    """Return a score or loss in three significant digits, "-" for None.

    >>> number(1.2345), number(0.01234), number(341.2), number(12345.0), number(None)
    ('1.23', '0.0123', '341', '12345', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    if abs(value) < 1e-6:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def scored(score: float | None, stderr: float | None, sign: str = "+-") -> str:
    """Return a score with its standard error.

    >>> scored(1.234, 0.0412), scored(1.234, None), scored(None, None)
    ('1.23 +- 0.041', '1.23', '-')
    """
    if score is None or stderr is None:
        return number(score)
    return f"{number(score)} {sign} {stderr:.2g}"


def size(resolution: tuple[int, int], times: str = "x") -> str:
    """Return a resolution as height x width.

    >>> size((16, 32))
    '16x32'
    """
    return f"{resolution[0]}{times}{resolution[1]}"


def printable(text: str) -> str:
    """Return ``text`` on one line without control characters.

    >>> printable("a\\x1b[31m\\nb")
    'a [31m b'
    """
    return "".join(c if c.isprintable() else " " for c in text)


def plural(n: int, word: str) -> str:
    """Return a count and its noun.

    >>> plural(1, "layer"), plural(3, "layer")
    ('1 layer', '3 layers')
    """
    return f"{n:,} {word}" + ("" if n == 1 else "s")
