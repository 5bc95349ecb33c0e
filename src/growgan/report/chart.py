"""Line charts as inline SVG, coloured by the page's style sheet, without any script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from growgan.report.text import clock

Point = tuple[float, float]
Event = tuple[float, str]
Scale = Literal["linear", "log", "log2", "time"]

WIDTH, HEIGHT = 520, 290
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 34, 48
TIME_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows in which unit, how it is scaled, and how a tick is written."""

    label: str
    text: Callable[[float], str]
    scale: Scale = "linear"
    from_zero: bool = False


@dataclass(frozen=True)
class Mark:
    """A point that can be hovered: where it is, what it says, its standard error in y or None."""

    point: Point
    title: str
    error: float | None = None


@dataclass(frozen=True)
class Series:
    """Lines and marks of one colour; ``css`` is a class of the style sheet ("g", "d", "best")."""

    label: str
    css: str
    lines: tuple[tuple[Point, ...], ...] = ()
    marks: tuple[Mark, ...] = ()

    @property
    def points(self) -> list[Point]:
        """All points of the lines and marks."""
        return [p for line in self.lines for p in line] + [m.point for m in self.marks]


@dataclass(frozen=True)
class Range:
    """Maps values of one axis to user units of the drawing."""

    low: float
    high: float
    start: float
    end: float
    scale: Scale

    def __call__(self, value: float) -> float:
        """Return the place of ``value``."""
        a, b, v = (self._bend(x) for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * ((v - a) / (b - a) if b > a else 0.5)

    def _bend(self, value: float) -> float:
        if self.scale in ("log", "log2"):
            return math.log(max(value, self.low * 1e-3, 1e-300))
        return value


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most ``most`` + 1 multiples of 1, 2 or 5 x 10^k between ``low`` and ``high``.

    >>> nice_ticks(0, 10, 5), nice_ticks(0.13, 0.42, 4)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [0.2, 0.3, 0.4])
    """
    raw = (high - low) / most
    if raw <= 0:  # no span that a float could tell
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)) + 1)
    return [round(k * step, digits) for k in range(first, last + 1)]


def ticks(low: float, high: float, scale: Scale) -> list[float]:
    """Return tick values between ``low`` and ``high``.

    >>> ticks(4, 32, "log2"), ticks(0, 100, "time")
    ([4.0, 8.0, 16.0, 32.0], [0.0, 20.0, 40.0, 60.0, 80.0, 100.0])
    >>> ticks(1, 50, "log")
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
    """
    if scale == "log2":
        powers = range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1)
        return [2.0**k for k in powers]
    if scale == "log":
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        wide = math.log10(high / low) > 3
        found = [m * 10.0**k for k in decades for m in ((1,) if wide else (1, 2, 5))]
        inside = [v for v in found if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        return inside if len(inside) > 1 else nice_ticks(low, high)
    if scale == "time":
        step = next((s for s in TIME_STEPS if (high - low) / s <= 6), 0)
        if step > 0 and high - low > 1:
            first, last = math.ceil(low / step), math.floor(high / step)
            return [float(k * step) for k in range(first, last + 1)]
    return nice_ticks(low, high)


def time_axis(seconds: float) -> Axis:
    """Return the axis for the run's clock, in units that suit a run of that length."""
    if seconds < 7200:
        return Axis("run time (min:s)", clock, "time", from_zero=True)
    return Axis("run time (h:min)", lambda s: clock(s / 60), "time", from_zero=True)


def line_chart(
    name: str,
    title: str,
    description: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    events: Sequence[Event] = (),
) -> str:
    """Return one ``<svg>``.

    Args:
        name: unique on the page, for the ids.
        title: what a screen reader says first.
        description: the chart in a sentence, for those who cannot see it.
        series: drawn in this order, the last one on top.
        x: horizontal axis.
        y: vertical axis; lines that leave its range are cut at the frame.
        events: moments on the horizontal axis, each marked by a dotted line and its word.

    Returns:
        SVG text, or a paragraph that says so where there is nothing to draw.
    """
    points = [p for s in series for p in s.points]
    if not points:
        return '<p class="none">Nothing recorded yet.</p>'
    xs = _range([p[0] for p in points], x, LEFT, WIDTH - RIGHT, tight=True)
    ys = _range([p[1] for p in points], y, HEIGHT - BOTTOM, TOP, tight=False)
    return "".join(
        [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
            f' aria-labelledby="{name}-t {name}-d">',
            f'<title id="{name}-t">{escape(title)}</title>',
            f'<desc id="{name}-d">{escape(description)}</desc>',
            f'<clipPath id="{name}-c"><rect x="{LEFT - 6}" y="{TOP - 6}"'
            f' width="{WIDTH - LEFT - RIGHT + 12}" height="{HEIGHT - TOP - BOTTOM + 12}"/>'
            "</clipPath>",
            _axes(xs, ys, x, y),
            *_events([(xs(at), word) for at, word in events]),
            f'<g clip-path="url(#{name}-c)">',
            *(_draw(s, xs, ys) for s in series),
            "</g></svg>",
        ]
    )


def _range(values: Sequence[float], axis: Axis, start: float, end: float, *, tight: bool) -> Range:
    """Return the range that shows ``values``, rare outliers aside."""
    low, high = min(values), max(values)
    if not tight and axis.scale == "linear" and len(values) > 100:
        low, high = _without_spikes(sorted(values))
    if axis.from_zero:
        low = min(low, 0.0)
    if axis.scale in ("log", "log2"):
        low = max(low, 1e-12)
        low, high = (low / 1.5, high * 1.5) if high <= low else (low, high)
        if not tight:
            low, high = low / 1.08, high * 1.08
        return Range(low, high, start, end, axis.scale)
    if high <= low:
        low, high = (low, low + 1) if tight or axis.from_zero else (low - 0.5, high + 0.5)
    margin = 0.0 if tight else 0.06 * (high - low)
    return Range(low if axis.from_zero else low - margin, high + margin, start, end, axis.scale)


def _without_spikes(ordered: Sequence[float]) -> tuple[float, float]:
    """Return the range of values, or that of the middle 98 % if it is far narrower."""
    last = len(ordered) - 1
    a, b = ordered[round(0.01 * last)], ordered[round(0.99 * last)]
    whole = ordered[-1] - ordered[0]
    if b <= a or whole <= 2 * (b - a):
        return ordered[0], ordered[-1]
    return max(ordered[0], a - 0.2 * (b - a)), min(ordered[-1], b + 0.2 * (b - a))


def _axes(xs: Range, ys: Range, x: Axis, y: Axis) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in ticks(ys.low, ys.high, ys.scale):
        at = ys(value)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{at + 4.5:.1f}" text-anchor="end">'
            f"{escape(y.text(value))}</text>"
        )
    for value in ticks(xs.low, xs.high, xs.scale):
        at = xs(value)
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 5}"/>'
            f'<text class="tick" x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">'
            f"{escape(x.text(value))}</text>"
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="label" x="0" y="16">{escape(y.label)}</text>')
    parts.append(
        f'<text class="label" x="{right}" y="{HEIGHT - 6}" text-anchor="end">'
        f"{escape(x.label)}</text>"
    )
    return "".join(parts)


def _events(events: Sequence[Event]) -> list[str]:
    """Return a dotted line an event, with its word where that touches no later line."""
    parts = []
    for index, (at, word) in enumerate(events):
        parts.append(
            f'<line class="event" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
        room = (events[index + 1][0] if index + 1 < len(events) else WIDTH) - at
        if room > 9 * len(word) + 6:
            parts.append(f'<text class="tick" x="{at + 4:.1f}" y="{TOP + 2}">{escape(word)}</text>')
    return parts


def _draw(series: Series, xs: Range, ys: Range) -> str:
    parts = [f'<g class="series {series.css}">']
    paths = ["M" + "L".join(f"{xs(a):.1f} {ys(b):.1f}" for a, b in s) for s in series.lines if s]
    if paths:
        parts.append(f'<path class="line" d="{"".join(paths)}"/>')
    for mark in series.marks:
        a, b = xs(mark.point[0]), ys(mark.point[1])
        if mark.error:
            up, down = (ys(mark.point[1] + sign * mark.error) for sign in (1, -1))
            parts.append(f'<path class="error" d="M{a:.1f} {up:.1f}V{down:.1f}"/>')
        title = f"<title>{escape(mark.title)}</title>"
        parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4">{title}</circle>')
    return "".join(parts) + "</g>"
