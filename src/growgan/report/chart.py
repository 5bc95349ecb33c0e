"""Line charts as inline SVG without scripts.

They are not drawn with matplotlib, because its SVG has fixed colors and text sizes and no hover
texts; here the page's style sheet sets both, for light and dark mode and for phones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from growgan.report.formatting import format_clock

Point = tuple[float, float]
EventMarker = tuple[float, str]
AxisScale = Literal["linear", "log", "log2", "time"]

CHART_WIDTH, CHART_HEIGHT = 520, 290
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 58, 24, 34, 48
# fmt: off
TIME_TICK_STEPS_SECONDS = (
    1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400,
)
# fmt: on
MAX_TIME_INTERVALS = 6


@dataclass(frozen=True)
class ChartAxis:
    """An axis: its label with the unit, the format of its ticks, and its scale."""

    label: str
    format_tick: Callable[[float], str]
    scale: AxisScale = "linear"
    include_zero: bool = False


@dataclass(frozen=True)
class ChartMarker:
    """A point with a hover text and, optionally, its standard error in y."""

    point: Point
    tooltip: str
    stderr: float | None = None


@dataclass(frozen=True)
class ChartSeries:
    """Lines and markers of one color, which ``css_class`` sets ("g", "d", "best")."""

    label: str
    css_class: str
    lines: tuple[tuple[Point, ...], ...] = ()
    markers: tuple[ChartMarker, ...] = ()

    @property
    def points(self) -> list[Point]:
        """All points of the lines and markers."""
        return [point for line in self.lines for point in line] + [m.point for m in self.markers]


@dataclass(frozen=True)
class AxisTransform:
    """Maps values of an axis to SVG user units."""

    low: float
    high: float
    pixel_start: float
    pixel_end: float
    scale: AxisScale

    def __call__(self, value: float) -> float:
        """Return the position of ``value``."""
        low, high, v = (self._to_linear(x) for x in (self.low, self.high, value))
        fraction = (v - low) / (high - low) if high > low else 0.5
        return self.pixel_start + (self.pixel_end - self.pixel_start) * fraction

    def _to_linear(self, value: float) -> float:
        if self.scale in ("log", "log2"):
            return math.log(max(value, self.low * 1e-3, 1e-300))
        return value


def nice_ticks(low: float, high: float, max_intervals: int = 6) -> list[float]:
    """Return at most ``max_intervals`` + 1 multiples of 1, 2 or 5 x 10^k from ``low`` to ``high``.

    >>> nice_ticks(0, 10, 5), nice_ticks(0.13, 0.42, 4)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [0.2, 0.3, 0.4])
    """
    min_step = (high - low) / max_intervals
    if min_step <= 0:  # the difference may be below the resolution of a float
        return [low]
    power = 10.0 ** math.floor(math.log10(min_step))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= min_step * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)) + 1)
    return [round(k * step, digits) for k in range(first, last + 1)]


def axis_ticks(low: float, high: float, scale: AxisScale) -> list[float]:
    """Return tick values between ``low`` and ``high``.

    >>> axis_ticks(4, 32, "log2"), axis_ticks(0, 100, "time")
    ([4.0, 8.0, 16.0, 32.0], [0.0, 20.0, 40.0, 60.0, 80.0, 100.0])
    >>> axis_ticks(1, 50, "log")
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
    """
    if scale == "log2":
        powers = range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1)
        return [2.0**k for k in powers]
    if scale == "log":
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        multiples = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
        values = [m * 10.0**k for k in decades for m in multiples]
        inside = [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        return inside if len(inside) > 1 else nice_ticks(low, high)
    if scale == "time":
        steps = (s for s in TIME_TICK_STEPS_SECONDS if (high - low) / s <= MAX_TIME_INTERVALS)
        step = next(steps, 0)
        if step > 0 and high - low > 1:
            first, last = math.ceil(low / step), math.floor(high / step)
            return [float(k * step) for k in range(first, last + 1)]
    return nice_ticks(low, high)


def time_axis(seconds: float) -> ChartAxis:
    """Return a time axis whose unit suits a run of ``seconds`` seconds."""
    if seconds < 7200:
        return ChartAxis("run time (min:s)", format_clock, "time", include_zero=True)
    # With minutes as seconds, min:s reads as h:min.
    return ChartAxis("run time (h:min)", lambda s: format_clock(s / 60), "time", include_zero=True)


def line_chart_svg(
    element_id: str,
    title: str,
    description: str,
    series: Sequence[ChartSeries],
    x_axis: ChartAxis,
    y_axis: ChartAxis,
    events: Sequence[EventMarker] = (),
) -> str:
    """Return a line chart as an ``<svg>`` element.

    Args:
        element_id: Prefix of the ids, unique on the page.
        title: Title for screen readers.
        description: The chart in a sentence, for screen readers.
        series: Drawn in this order, the last on top.
        x_axis: Horizontal axis.
        y_axis: Vertical axis. Lines that leave its range are clipped.
        events: Positions on the horizontal axis, each marked by a labeled dotted line.

    Returns:
        SVG text, or a paragraph that says that nothing was recorded.
    """
    points = [p for s in series for p in s.points]
    if not points:
        return '<p class="none">Nothing recorded yet.</p>'
    xs = _fit_axis(
        [p[0] for p in points], x_axis, MARGIN_LEFT, CHART_WIDTH - MARGIN_RIGHT, tight=True
    )
    ys = _fit_axis(
        [p[1] for p in points], y_axis, CHART_HEIGHT - MARGIN_BOTTOM, MARGIN_TOP, tight=False
    )
    plot_width = CHART_WIDTH - MARGIN_LEFT - MARGIN_RIGHT
    plot_height = CHART_HEIGHT - MARGIN_TOP - MARGIN_BOTTOM
    return "".join(
        [
            f'<svg class="chart" viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img"'
            f' aria-labelledby="{element_id}-t {element_id}-d">',
            f'<title id="{element_id}-t">{escape(title)}</title>',
            f'<desc id="{element_id}-d">{escape(description)}</desc>',
            f'<clipPath id="{element_id}-c"><rect x="{MARGIN_LEFT - 6}" y="{MARGIN_TOP - 6}"'
            f' width="{plot_width + 12}" height="{plot_height + 12}"/>'
            "</clipPath>",
            _axes_svg(xs, ys, x_axis, y_axis),
            *_events_svg([(xs(value), label) for value, label in events]),
            f'<g clip-path="url(#{element_id}-c)">',
            *(_series_svg(s, xs, ys) for s in series),
            "</g></svg>",
        ]
    )


def _fit_axis(
    values: Sequence[float], axis: ChartAxis, pixel_start: float, pixel_end: float, *, tight: bool
) -> AxisTransform:
    """Return the transform whose range shows ``values``, except rare outliers."""
    low, high = min(values), max(values)
    if not tight and axis.scale == "linear" and len(values) > 100:
        low, high = _range_without_outliers(sorted(values))
    if axis.include_zero:
        low = min(low, 0.0)
    if axis.scale in ("log", "log2"):
        low = max(low, 1e-12)
        low, high = (low / 1.5, high * 1.5) if high <= low else (low, high)
        if not tight:
            low, high = low / 1.08, high * 1.08
        return AxisTransform(low, high, pixel_start, pixel_end, axis.scale)
    if high <= low:
        low, high = (low, low + 1) if tight or axis.include_zero else (low - 0.5, high + 0.5)
    margin = 0.0 if tight else 0.06 * (high - low)
    return AxisTransform(
        low if axis.include_zero else low - margin,
        high + margin,
        pixel_start,
        pixel_end,
        axis.scale,
    )


def _range_without_outliers(sorted_values: Sequence[float]) -> tuple[float, float]:
    """Return the range of the values; that of the middle 98% if it is far narrower."""
    last = len(sorted_values) - 1
    low, high = sorted_values[0], sorted_values[-1]
    p1, p99 = sorted_values[round(0.01 * last)], sorted_values[round(0.99 * last)]
    if p99 <= p1 or high - low <= 2 * (p99 - p1):
        return low, high
    margin = 0.2 * (p99 - p1)
    return max(low, p1 - margin), min(high, p99 + margin)


def _axes_svg(
    x_transform: AxisTransform, y_transform: AxisTransform, x_axis: ChartAxis, y_axis: ChartAxis
) -> str:
    bottom, right = CHART_HEIGHT - MARGIN_BOTTOM, CHART_WIDTH - MARGIN_RIGHT
    parts = []
    for value in axis_ticks(y_transform.low, y_transform.high, y_transform.scale):
        y = y_transform(value)
        parts.append(
            f'<line class="rule" x1="{MARGIN_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{MARGIN_LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">'
            f"{escape(y_axis.format_tick(value))}</text>"
        )
    for value in axis_ticks(x_transform.low, x_transform.high, x_transform.scale):
        x = x_transform(value)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>'
            f'<text class="tick" x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">'
            f"{escape(x_axis.format_tick(value))}</text>"
        )
    parts.append(
        f'<line class="axis" x1="{MARGIN_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    )
    parts.append(f'<text class="label" x="0" y="16">{escape(y_axis.label)}</text>')
    parts.append(
        f'<text class="label" x="{right}" y="{CHART_HEIGHT - 6}" text-anchor="end">'
        f"{escape(x_axis.label)}</text>"
    )
    return "".join(parts)


def _events_svg(events: Sequence[EventMarker]) -> list[str]:
    """Return a dotted line for each event, labeled unless the label would touch the next line."""
    parts = []
    for index, (x, label) in enumerate(events):
        parts.append(
            f'<line class="event" x1="{x:.1f}" x2="{x:.1f}" y1="{MARGIN_TOP}"'
            f' y2="{CHART_HEIGHT - MARGIN_BOTTOM}"/>'
        )
        next_x = events[index + 1][0] if index + 1 < len(events) else CHART_WIDTH
        if next_x - x > 9 * len(label) + 6:
            parts.append(
                f'<text class="tick" x="{x + 4:.1f}" y="{MARGIN_TOP + 2}">{escape(label)}</text>'
            )
    return parts


def _series_svg(series: ChartSeries, x_transform: AxisTransform, y_transform: AxisTransform) -> str:
    parts = [f'<g class="series {series.css_class}">']
    paths = [
        "M" + "L".join(f"{x_transform(x):.1f} {y_transform(y):.1f}" for x, y in line)
        for line in series.lines
        if line
    ]
    if paths:
        parts.append(f'<path class="line" d="{"".join(paths)}"/>')
    for marker in series.markers:
        x, y = marker.point
        cx, cy = x_transform(x), y_transform(y)
        if marker.stderr:
            top, bottom = y_transform(y + marker.stderr), y_transform(y - marker.stderr)
            parts.append(f'<path class="error" d="M{cx:.1f} {top:.1f}V{bottom:.1f}"/>')
        tooltip = f"<title>{escape(marker.tooltip)}</title>"
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4">{tooltip}</circle>')
    return "".join(parts) + "</g>"
