"""The page's charts, each one from a run's record to an SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from itertools import pairwise
from pathlib import Path

from growgan.plain import parse
from growgan.report.chart import Axis, Mark, Point, Series, line_chart, time_axis
from growgan.report.pictures import evenly
from growgan.report.run import CandidateRecord, RunRecord, StatPoint
from growgan.report.text import clock, count, number, scored, size

TimedPoint = tuple[float, StatPoint]

MOST_POINTS = 500
MOST_TERMS = 6
LOSSES = (
    ("loss_generator", "G", "g"),
    ("loss_discriminator", "D", "d"),
)


def figure(title: str, svg: str, series: Sequence[Series] = (), note: str = "") -> str:
    """Return one chart with its heading, legend and note."""
    legend = "".join(
        f'<span class="key {s.css}"><i></i>{escape(s.label)}</span>'
        for s in series
        if s.points and s.label
    )
    legend = f'<p class="legend">{legend}</p>'
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<figure><figcaption><h3>{escape(title)}</h3>{legend}</figcaption>{svg}{note}</figure>"


def score_figure(run: RunRecord) -> str:
    """Score over time: every candidate a dot, the best lineage a line with standard errors."""
    line = [c for c in run.best_lineage if c.score is not None]
    ids = {c.id for c in line}
    others = [c for c in run.candidates if c.score is not None and c.id not in ids]
    series = (
        Series("other candidates", "faint", marks=tuple(_mark(c) for c in others)),
        Series(
            "best lineage",
            "best",
            (tuple((c.elapsed, c.score or 0.0) for c in line),),
            tuple(_mark(c, error=True) for c in line),
        ),
    )
    scores = [c.score for c in (*line, *others) if c.score is not None]
    wide = bool(scores) and min(scores) > 0 and max(scores) > 8 * min(scores)
    y = Axis("score, lower is better", _tick, "log" if wide else "linear", not wide)
    words = "No score yet."
    if line:
        words = f"Along the best lineage from {number(line[0].score)} to {number(line[-1].score)}."
    svg = line_chart("score", "Score over time", words, series, time_axis(run.elapsed), y)
    return figure("Score", svg, series)


def resolution_figure(run: RunRecord) -> str:
    """Image height over time."""
    values = {c.resolution[0]: c.resolution for c in run.candidates}
    series = _lineage_series(run, lambda c: float(c.resolution[0]), "best lineage", "best")
    square = all(h == w for h, w in values.values())
    label = "resolution (pixels a side)" if square else "image height (pixels)"
    y = Axis(label, lambda v: f"{v:.0f}", "log2")
    words = "The resolution of the best lineage over time."
    if run.best_lineage:
        first, last = run.best_lineage[0].resolution, run.best_lineage[-1].resolution
        words = f"The best lineage went from {size(first)} to {size(last)} pixels."
    svg = line_chart("res", "Resolution over time", words, series, time_axis(run.elapsed), y)
    return figure("Resolution", svg, series)


def depth_figure(run: RunRecord) -> str:
    """Layers of G and of D over time."""
    y = Axis("layers", lambda v: f"{v:g}", from_zero=True)
    return _players_figure(
        run,
        ("depth", "Depth of G and D"),
        y,
        lambda c: float(c.generator_layers),
        lambda c: float(c.discriminator_layers),
    )


def parameters_figure(run: RunRecord) -> str:
    """Parameters of G and of D over time."""
    y = Axis("parameters", count, from_zero=True)
    return _players_figure(
        run,
        ("parameters", "Size of G and D"),
        y,
        lambda c: float(c.generator_parameters),
        lambda c: float(c.discriminator_parameters),
    )


def _players_figure(
    run: RunRecord,
    names: tuple[str, str],
    y: Axis,
    g: Callable[[CandidateRecord], float],
    d: Callable[[CandidateRecord], float],
) -> str:
    name, title = names
    g_series = _lineage_series(run, g, "G, the generator", "g", "G of other candidates")
    d_series = _lineage_series(run, d, "D, the discriminator", "d", "D of other candidates")
    series = (g_series[0], d_series[0], g_series[1], d_series[1])
    words = "No candidate yet."
    if run.best_lineage:
        a, b = run.best_lineage[0], run.best_lineage[-1]
        words = (
            f"{y.label.capitalize()} along the best lineage: G from {count(g(a))} to"
            f" {count(g(b))}, D from {count(d(a))} to {count(d(b))}."
        )
    svg = line_chart(name, title, words, series, time_axis(run.elapsed), y)
    return figure(title, svg, series)


def _lineage_series(
    run: RunRecord,
    value: Callable[[CandidateRecord], float],
    label: str,
    css: str,
    others: str = "other candidates",
) -> tuple[Series, Series]:
    """Return the faint slices of all other candidates, and the best lineage as a step line."""
    line = [p for c in run.best_lineage for p in _slice(c, value(c))]
    steps: list[Point] = []
    for t, v in line:
        # Hold the value until the next slice begins, then step.
        steps += [(t, steps[-1][1]), (t, v)] if steps and steps[-1][1] != v else [(t, v)]
    ids = {c.id for c in run.best_lineage}
    rest = tuple(_slice(c, value(c)) for c in run.candidates if c.id not in ids)
    return Series(others, f"{css} faint", rest), Series(label, css, (tuple(steps),))


def _slice(c: CandidateRecord, value: float) -> tuple[Point, Point]:
    return (max(0.0, c.elapsed - c.seconds), value), (c.elapsed, value)


def _mark(c: CandidateRecord, *, error: bool = False) -> Mark:
    words = f"{c.id} · {size(c.resolution, '×')} · score {scored(c.score, c.score_stderr, '±')}"
    title = f"{words} · at {clock(c.elapsed)}\n{c.origin}"
    return Mark((c.elapsed, c.score or 0.0), title, c.score_stderr if error else None)


def training_figures(run: RunRecord) -> list[str]:
    """Losses, speed and every further term of the objective along the best lineage."""
    points = evenly(_own_time(run), MOST_POINTS)
    if not points:
        return []
    y = Axis("", _tick)
    losses = [(label, css, _curve(points, key)) for key, label, css in LOSSES]
    note = "Thin: as logged; thick: running mean. The time of other candidates is cut out."
    figures = [_training_figure("loss", "Losses", losses, points, replace(y, label="loss"), note)]
    speed = [("images a second", "best", [(t, p.images_per_second) for t, p in points])]
    y_speed = Axis("images a second", count, from_zero=True)
    figures.append(_training_figure("speed", "Training speed", speed, points, y_speed))
    known = {key for key, *_ in LOSSES}
    terms = sorted({key for _, p in points for key in p.terms} - known)[:MOST_TERMS]
    for index, key in enumerate(terms):
        curve = [(key, "best", _curve(points, key))]
        figures.append(_training_figure(f"term{index}", key.replace("_", " "), curve, points, y))
    return figures


def health_figures(run: RunRecord) -> list[str]:
    """What the doctor watched along the best lineage: how varied fakes are, and what D knows."""
    share = Axis("share", lambda v: f"{v:.0%}", from_zero=True)
    shown: tuple[tuple[str, Axis, Sequence[tuple[str, str, str]]], ...] = (
        ("How varied the fakes are, beside the reals", share, (("diversity", "", "best"),)),
        (
            "Reals that D puts above fakes",
            share,
            (("wins_seen", "seen in training", "d"), ("wins_unseen", "held out", "g")),
        ),
        ("Fakes that are copies of training images", share, (("copies", "", "best"),)),
    )
    figures = []
    for index, (title, y, curves) in enumerate(shown):
        series = [
            Series(label, css, (tuple(_vitals(run, key)),))
            for key, label, css in curves
            if _vitals(run, key)
        ]
        if series:
            x, words = time_axis(run.elapsed), f"{title}, along the best lineage."
            svg = line_chart(f"vital{index}", title, words, series, x, y)
            figures.append(figure(title, svg, series if len(series) > 1 else ()))
    return figures + [
        _spectra(run, player, css)
        for player, css in (("generator", "g"), ("discriminator", "d"))
        if any(c.spectra.get(player) for c in run.best_lineage)
    ]


def _spectra(run: RunRecord, player: str, css: str) -> str:
    """Return the chart of the singular values of a player's weights along the best lineage."""
    curves: dict[tuple[str, int], list[Point]] = {}
    marks = {}
    for c in run.best_lineage:
        for name, values in c.spectra.get(player, {}).items():
            for rank, value in enumerate(values):
                curves.setdefault((name, rank), []).append((c.elapsed, value))
            if values:
                words = f"{name}: {', '.join(map(number, values))}"
                marks[name] = Mark((c.elapsed, values[0]), words)
    lines = [[tuple(v) for (_, rank), v in curves.items() if bool(rank) == k] for k in (0, 1)]
    series = (
        Series("second and third", f"{css} faint", tuple(lines[1])),
        Series("largest", css, tuple(lines[0]), tuple(marks.values())),
    )
    title = f"Singular values of each of {player[0].upper()}'s weights"
    words = f"{title}, the three largest, along the best lineage."
    x, y = time_axis(run.elapsed), Axis("", _tick, from_zero=True)
    svg = line_chart(f"spectra-{css}", title, words, series, x, y)
    return figure(title, svg, series, "One that runs away foretells a collapse. Dots name weights.")


def truncation_figures(path: Path) -> list[str]:
    """Precision against recall over truncation, if ``path`` holds such a curve."""
    try:
        curve = parse(path.read_bytes())
        points = [(float(p["recall"]), float(p["precision"]), p["truncation"]) for p in curve]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    title = "Fidelity against variety"
    marks = tuple(
        Mark((recall, precision), f"truncation {'none' if cut is None else f'{cut:g}'}")
        for recall, precision, cut in points
    )
    line = tuple((recall, precision) for recall, precision, _ in points)
    series = [Series("samples", "best", (line,), marks)]
    x, y = (Axis(name, lambda v: f"{v:.0%}", from_zero=True) for name in ("recall", "precision"))
    svg = line_chart("truncation", title, "Precision against recall.", series, x, y)
    note = "Each point is a truncation of the latents, the strongest one first from the left."
    return [figure(title, svg, (), note)]


def _vitals(run: RunRecord, key: str) -> list[Point]:
    return [(c.elapsed, c.vitals[key]) for c in run.best_lineage if key in c.vitals]


def _training_figure(
    name: str,
    title: str,
    curves: Sequence[tuple[str, str, list[Point]]],
    points: Sequence[TimedPoint],
    y: Axis,
    note: str = "",
) -> str:
    """Return one chart of curves, each thin as it was logged and thick as its running mean."""
    raw = [Series("", f"{css} raw", (tuple(curve),)) for _, css, curve in curves]
    means = [
        Series(label, css, (tuple(running_mean(curve, min(15, len(curve) // 8))),))
        for label, css, curve in curves
    ]
    x = time_axis(points[-1][0])
    x = replace(x, label=x.label.replace("run time", "training time of the best lineage"))
    events = [
        (b[0], size(b[1].resolution, "×"))
        for a, b in pairwise(points)
        if a[1].resolution != b[1].resolution
    ]
    words = f"{title} over the training time of the best lineage."
    svg = line_chart(name, title, words, [*raw, *means], x, y, events)
    return figure(title, svg, means if len(means) > 1 else (), note)


def _own_time(run: RunRecord) -> list[TimedPoint]:
    """Return the best lineage's points, each at the training time that the lineage then had."""
    before: dict[str, float] = {}
    own = 0.0
    for c in run.best_lineage:
        before[c.id] = own - (c.elapsed - c.seconds)
        own += c.seconds
    mine = (p for p in run.stats if p.candidate in before)
    return [(max(0.0, before[p.candidate] + p.elapsed), p) for p in mine]


def _curve(points: Sequence[TimedPoint], key: str) -> list[Point]:
    return [(t, p.terms[key]) for t, p in points if key in p.terms]


def running_mean(curve: Sequence[Point], width: int) -> list[Point]:
    """Return each point's mean with its neighbours, up to ``width`` in all, fewer at the ends.

    >>> running_mean([(0, 1), (1, 4), (2, 1), (3, 4)], width=3)
    [(0, 2.5), (1, 2.0), (2, 3.0), (3, 2.5)]
    """
    half = width // 2
    means = []
    for index, (t, _) in enumerate(curve):
        near = curve[max(0, index - half) : index + half + 1]
        means.append((t, sum(value for _, value in near) / len(near)))
    return means


def _tick(value: float) -> str:
    return f"{value:g}"
