"""The charts of a report: each function draws one or more of them from a run's record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from itertools import pairwise
from pathlib import Path

from growgan.jsonl import parse_json
from growgan.report.chart import (
    ChartAxis,
    ChartMarker,
    ChartSeries,
    Point,
    line_chart_svg,
    time_axis,
)
from growgan.report.formatting import (
    format_clock,
    format_count,
    format_number,
    format_resolution,
    format_score,
)
from growgan.report.inline_images import evenly_spaced
from growgan.report.run_record import CandidateRecord, RunRecord, StatPoint

TimedStat = tuple[float, StatPoint]

MAX_POINTS_PER_CURVE = 500
MAX_TERM_FIGURES = 6
LOSS_CURVES = (("loss_generator", "G", "g"), ("loss_discriminator", "D", "d"))
# (title, curves), a curve being (health metric, label, CSS class)
HEALTH_FIGURES: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("Diversity of fakes relative to reals", (("diversity_ratio", "", "best"),)),
    (
        "Reals that D scores above fakes",
        (("train_win_rate", "training images", "d"), ("held_out_win_rate", "held-out images", "g")),
    ),
    ("Fakes that copy training images", (("copy_fraction", "", "best"),)),
)


def figure_html(title: str, svg: str, series: Sequence[ChartSeries] = (), note: str = "") -> str:
    """Return a chart as HTML, with its heading, legend and note."""
    legend = "".join(
        f'<span class="key {s.css_class}"><i></i>{escape(s.label)}</span>'
        for s in series
        if s.points and s.label
    )
    legend = f'<p class="legend">{legend}</p>'
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<figure><figcaption><h3>{escape(title)}</h3>{legend}</figcaption>{svg}{note}</figure>"


def score_figure(run: RunRecord) -> str:
    """Score over time: a dot per candidate, and the best lineage as a line with standard errors."""
    lineage = [c for c in run.best_lineage if c.score is not None]
    lineage_ids = {c.id for c in lineage}
    others = [c for c in run.candidates if c.score is not None and c.id not in lineage_ids]
    series = (
        ChartSeries(
            "other candidates", "other", markers=tuple(_candidate_marker(c) for c in others)
        ),
        ChartSeries(
            "best lineage",
            "best",
            (tuple((c.elapsed, c.score or 0.0) for c in lineage),),
            tuple(_candidate_marker(c, with_stderr=True) for c in lineage),
        ),
    )
    scores = [c.score for c in (*lineage, *others) if c.score is not None]
    use_log = bool(scores) and min(scores) > 0 and max(scores) > 8 * min(scores)
    y_axis = ChartAxis(
        "score (lower is better)", _format_tick, "log" if use_log else "linear", not use_log
    )
    description = "No score yet."
    if lineage:
        first, last = format_number(lineage[0].score), format_number(lineage[-1].score)
        description = f"Along the best lineage, the score goes from {first} to {last}."
    svg = line_chart_svg(
        "score", "Score over time", description, series, time_axis(run.elapsed), y_axis
    )
    return figure_html("Score", svg, series)


def resolution_figure(run: RunRecord) -> str:
    """Image height over time."""
    resolutions = {c.resolution for c in run.candidates}
    series = _lineage_series(run, lambda c: float(c.resolution[0]), "best lineage", "best")
    is_square = all(height == width for height, width in resolutions)
    label = "resolution (pixels per side)" if is_square else "image height (pixels)"
    y_axis = ChartAxis(label, lambda v: f"{v:.0f}", "log2")
    description = "The resolution of the best lineage over time."
    if run.best_lineage:
        first, last = (format_resolution(run.best_lineage[k].resolution) for k in (0, -1))
        description = f"The best lineage goes from {first} to {last} pixels."
    svg = line_chart_svg(
        "resolution", "Resolution over time", description, series, time_axis(run.elapsed), y_axis
    )
    return figure_html("Resolution", svg, series)


def depth_figure(run: RunRecord) -> str:
    """Number of layers of G and D over time."""
    return _networks_figure(
        run,
        element_id="depth",
        title="Depth of G and D",
        y_axis=ChartAxis("layers", lambda v: f"{v:g}", include_zero=True),
        generator_value=lambda c: float(c.generator_layers),
        discriminator_value=lambda c: float(c.discriminator_layers),
    )


def parameters_figure(run: RunRecord) -> str:
    """Number of parameters of G and D over time."""
    return _networks_figure(
        run,
        element_id="parameters",
        title="Size of G and D",
        y_axis=ChartAxis("parameters", format_count, include_zero=True),
        generator_value=lambda c: float(c.generator_parameters),
        discriminator_value=lambda c: float(c.discriminator_parameters),
    )


def _networks_figure(
    run: RunRecord,
    *,
    element_id: str,
    title: str,
    y_axis: ChartAxis,
    generator_value: Callable[[CandidateRecord], float],
    discriminator_value: Callable[[CandidateRecord], float],
) -> str:
    """Return a chart of one value of G and D over time."""
    g_others, g_lineage = _lineage_series(
        run, generator_value, "G, the generator", "g", "G of other candidates"
    )
    d_others, d_lineage = _lineage_series(
        run, discriminator_value, "D, the discriminator", "d", "D of other candidates"
    )
    series = (g_others, d_others, g_lineage, d_lineage)
    description = "No candidate yet."
    if run.best_lineage:
        first, last = run.best_lineage[0], run.best_lineage[-1]
        description = (
            f"{y_axis.label.capitalize()} along the best lineage:"
            f" G from {format_count(generator_value(first))}"
            f" to {format_count(generator_value(last))},"
            f" D from {format_count(discriminator_value(first))}"
            f" to {format_count(discriminator_value(last))}."
        )
    svg = line_chart_svg(element_id, title, description, series, time_axis(run.elapsed), y_axis)
    return figure_html(title, svg, series)


def _lineage_series(
    run: RunRecord,
    value_of: Callable[[CandidateRecord], float],
    label: str,
    css_class: str,
    others_label: str = "other candidates",
) -> tuple[ChartSeries, ChartSeries]:
    """Return the segments of all other candidates, and the best lineage as a step line."""
    steps: list[Point] = []
    for candidate in run.best_lineage:
        for time, value in _segment_line(candidate, value_of(candidate)):
            # Hold the previous value until the next segment begins.
            steps += [(time, steps[-1][1])] if steps and steps[-1][1] != value else []
            steps.append((time, value))
    lineage_ids = {c.id for c in run.best_lineage}
    others = tuple(_segment_line(c, value_of(c)) for c in run.candidates if c.id not in lineage_ids)
    return (
        ChartSeries(others_label, f"{css_class} other", others),
        ChartSeries(label, css_class, (tuple(steps),)),
    )


def _segment_line(candidate: CandidateRecord, value: float) -> tuple[Point, Point]:
    return (max(0.0, candidate.elapsed - candidate.seconds), value), (candidate.elapsed, value)


def _candidate_marker(candidate: CandidateRecord, *, with_stderr: bool = False) -> ChartMarker:
    parts = [
        candidate.id,
        format_resolution(candidate.resolution, "×"),
        f"score {format_score(candidate.score, candidate.score_stderr, '±')}",
        f"at {format_clock(candidate.elapsed)}",
    ]
    return ChartMarker(
        point=(candidate.elapsed, candidate.score or 0.0),
        tooltip=f"{' · '.join(parts)}\n{candidate.growth_label}",
        stderr=candidate.score_stderr if with_stderr else None,
    )


def training_figures(run: RunRecord) -> list[str]:
    """Losses, training speed and all other logged scalars along the best lineage."""
    points = evenly_spaced(_lineage_timeline(run), MAX_POINTS_PER_CURVE)
    if not points:
        return []
    losses = [(label, css, _scalar_points(points, name)) for name, label, css in LOSS_CURVES]
    speed = [("", "best", [(time, p.images_per_second) for time, p in points])]
    figures = [
        _training_figure(
            "loss",
            "Losses",
            losses,
            points,
            ChartAxis("loss", _format_tick),
            note="Thin: logged values; thick: running mean. Time spent on other candidates is left"
            " out.",
        ),
        _training_figure(
            "speed",
            "Training speed",
            speed,
            points,
            ChartAxis("images per second", format_count, include_zero=True),
        ),
    ]
    loss_names = {name for name, *_ in LOSS_CURVES}
    other_names = sorted({name for _, p in points for name in p.scalars} - loss_names)
    for index, name in enumerate(other_names[:MAX_TERM_FIGURES]):
        curves = [("", "best", _scalar_points(points, name))]
        title = name.replace("_", " ")
        figures.append(
            _training_figure(f"term{index}", title, curves, points, ChartAxis("", _format_tick))
        )
    return figures


def health_figures(run: RunRecord) -> list[str]:
    """Measurements of the health checks along the best lineage: diversity, overfitting, copies."""
    y_axis = ChartAxis("percent", lambda v: f"{v:.0%}", include_zero=True)
    figures = []
    for index, (title, curves) in enumerate(HEALTH_FIGURES):
        series = [
            ChartSeries(label, css, (tuple(points),))
            for name, label, css in curves
            if (points := _health_points(run, name))
        ]
        if series:
            svg = line_chart_svg(
                f"health{index}",
                title,
                f"{title}, along the best lineage.",
                series,
                time_axis(run.elapsed),
                y_axis,
            )
            figures.append(figure_html(title, svg, series if len(series) > 1 else ()))
    return figures + [
        _singular_value_figure(run, network, css)
        for network, css in (("generator", "g"), ("discriminator", "d"))
        if any(c.singular_values.get(network) for c in run.best_lineage)
    ]


def _singular_value_figure(run: RunRecord, network: str, css_class: str) -> str:
    """Return a chart of the largest singular values of a network's weights (best lineage)."""
    curves: dict[tuple[str, int], list[Point]] = {}
    markers = {}  # one per layer, at the last candidate
    for candidate in run.best_lineage:
        for layer, values in candidate.singular_values.get(network, {}).items():
            for rank, value in enumerate(values):
                curves.setdefault((layer, rank), []).append((candidate.elapsed, value))
            if values:
                tooltip = f"{layer}: {', '.join(map(format_number, values))}"
                markers[layer] = ChartMarker((candidate.elapsed, values[0]), tooltip)
    largest = tuple(tuple(points) for (_, rank), points in curves.items() if rank == 0)
    smaller = tuple(tuple(points) for (_, rank), points in curves.items() if rank > 0)
    series = (
        ChartSeries("second and third", f"{css_class} other", smaller),
        ChartSeries("largest", css_class, largest, tuple(markers.values())),
    )
    title = f"Singular values of the weights of {network[0].upper()}"
    svg = line_chart_svg(
        f"singular-values-{css_class}",
        title,
        f"The three largest singular values of each weight of the {network}, best lineage.",
        series,
        time_axis(run.elapsed),
        ChartAxis("", _format_tick, include_zero=True),
    )
    note = (
        "A singular value that keeps rising can precede a collapse. Hover over a dot for its layer."
    )
    return figure_html(title, svg, series, note)


def truncation_figures(path: Path) -> list[str]:
    """Precision against recall at several truncations, if ``path`` holds such a curve."""
    try:
        curve = [
            (float(point["recall"]), float(point["precision"]), point["truncation"])
            for point in parse_json(path.read_bytes())
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    title = "Fidelity against diversity"
    markers = tuple(
        ChartMarker(
            (recall, precision),
            "no truncation" if truncation is None else f"truncation {truncation:g}",
        )
        for recall, precision, truncation in curve
    )
    line = tuple((recall, precision) for recall, precision, _ in curve)
    x_axis, y_axis = (
        ChartAxis(name, lambda v: f"{v:.0%}", include_zero=True) for name in ("recall", "precision")
    )
    svg = line_chart_svg(
        "truncation",
        title,
        "Precision against recall of samples at several truncations.",
        [ChartSeries("samples", "best", (line,), markers)],
        x_axis,
        y_axis,
    )
    note = "Each dot is a truncation of the latents, starting with the strongest."
    return [figure_html(title, svg, (), note)]


def _health_points(run: RunRecord, name: str) -> list[Point]:
    return [
        (c.elapsed, c.health_metrics[name]) for c in run.best_lineage if name in c.health_metrics
    ]


def _training_figure(
    element_id: str,
    title: str,
    curves: Sequence[tuple[str, str, list[Point]]],
    timeline: Sequence[TimedStat],
    y_axis: ChartAxis,
    *,
    note: str = "",
) -> str:
    """Return a chart of curves (label, CSS class, points) with their running means.

    Dotted lines mark changes of the resolution.
    """
    raw = [ChartSeries("", f"{css} raw", (tuple(points),)) for _, css, points in curves]
    means = [
        ChartSeries(label, css, (tuple(running_mean(points, min(15, len(points) // 8))),))
        for label, css, points in curves
    ]
    x_axis = time_axis(timeline[-1][0])
    label = x_axis.label.replace("run time", "training time of the best lineage")
    events = [
        (time, format_resolution(stat.resolution, "×"))
        for (_, previous), (time, stat) in pairwise(timeline)
        if previous.resolution != stat.resolution
    ]
    svg = line_chart_svg(
        element_id,
        title,
        f"{title} over the training time of the best lineage.",
        [*raw, *means],
        replace(x_axis, label=label),
        y_axis,
        events,
    )
    return figure_html(title, svg, means if len(means) > 1 else (), note)


def _lineage_timeline(run: RunRecord) -> list[TimedStat]:
    """Return the curve points of the best lineage, by its training time in seconds."""
    offsets: dict[str, float] = {}  # from the run's clock to the training time of the lineage
    trained_seconds = 0.0
    for c in run.best_lineage:
        offsets[c.id] = trained_seconds - (c.elapsed - c.seconds)
        trained_seconds += c.seconds
    return [
        (max(0.0, offsets[p.candidate_id] + p.elapsed), p)
        for p in run.stats
        if p.candidate_id in offsets
    ]


def _scalar_points(timeline: Sequence[TimedStat], name: str) -> list[Point]:
    return [(time, p.scalars[name]) for time, p in timeline if name in p.scalars]


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Return the mean over up to ``window`` points around each point, fewer at the ends.

    >>> running_mean([(0, 1), (1, 4), (2, 1), (3, 4)], window=3)
    [(0, 2.5), (1, 2.0), (2, 3.0), (3, 2.5)]
    """
    half = window // 2
    means = []
    for index, (x, _) in enumerate(points):
        neighbors = points[max(0, index - half) : index + half + 1]
        means.append((x, sum(y for _, y in neighbors) / len(neighbors)))
    return means


def _format_tick(value: float) -> str:
    return f"{value:g}"
