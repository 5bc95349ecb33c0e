"""Writes the report of a run: one self-contained HTML page below 5 MB, without scripts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from growgan.errors import UserError
from growgan.files import atomic_write
from growgan.report.figures import (
    depth_figure,
    health_figures,
    parameters_figure,
    resolution_figure,
    score_figure,
    training_figures,
    truncation_figures,
)
from growgan.report.formatting import (
    format_clock,
    format_count,
    format_duration,
    format_number,
    format_resolution,
    format_score,
    phase_label,
    pluralize,
)
from growgan.report.growth_tree import build_growth_tree
from growgan.report.growth_tree_svg import tree_svg
from growgan.report.html_tables import (
    per_class_tables,
    read_caption,
    scrollable_section,
    task_metrics_section,
)
from growgan.report.inline_images import (
    evenly_spaced,
    file_img_tag,
    samples_img_tag,
    shrink_images_to_fit,
)
from growgan.report.run_record import CandidateRecord, RunRecord, read_run
from growgan.report.stylesheet import PAGE_CSS

MAX_LINEAGE_IMAGES = 12
MAX_PAGE_BYTES = 5_000_000
CHANNEL_ADJECTIVES = {1: "grayscale", 3: "RGB", 4: "RGBA"}
# (name of the file in the gallery, title, caption)
GALLERY_IMAGES = (
    (
        "interpolation",
        "Interpolation between samples",
        "Each row interpolates between the latents of two samples.",
    ),
    (
        "nearest",
        "Samples and their nearest training images",
        "Above: samples, not hand-picked. Below: the nearest training image of each, by features"
        " learned from the data.",
    ),
    ("task", "Results on held-out images", "No image in this sheet was used for training."),
    ("classes", "Samples of each class", "One row per class, with the same latents in each row."),
    (
        "codes",
        "Continuous codes",
        "Each row varies one code from -2 to 2 for a fixed latent; three rows per code.",
    ),
    (
        "class_interpolation",
        "Interpolation between classes",
        "Each row interpolates between labels for a fixed latent.",
    ),
)
# (CSS class, label)
TREE_LEGEND = (
    ("best", "best lineage"),
    ("alive", "alive"),
    ("pruned", "pruned"),
    ("failed", "failed"),
)


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run directory, atomically; return its path.

    Raises:
        UserError: ``run_dir`` is not a run directory or cannot be written.
    """
    run = read_run(run_dir)
    path = run.path / "report.html"
    try:
        with atomic_write(path) as part:
            part.write_text(shrink_images_to_fit(page_html(run), MAX_PAGE_BYTES), "utf-8")
    except OSError as error:
        raise UserError(f"report '{path}' cannot be written: {error.strerror or error}") from error
    return path


def page_html(run: RunRecord) -> str:
    """Return the page as HTML text."""
    title = escape(run.data_name or run.path.name)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}: a growgan run</title><style>{PAGE_CSS}</style></head><body>",
            _header(run, title),
            "<main>",
            _overview_section(run),
            _lineage_section(run),
            _growth_tree_section(run),
            _charts_section("Score and resolution", [score_figure(run), resolution_figure(run)]),
            _charts_section("How G and D grew", [depth_figure(run), parameters_figure(run)]),
            _charts_section("Training", training_figures(run)),
            _gallery_section(run),
            _health_section(run),
            _cost_section(run),
            _selections_section(run),
            _candidates_section(run),
            _settings_section(run),
            "</main>",
            _footer(run),
            "</body></html>\n",
        ]
    )


def _header(run: RunRecord, title: str) -> str:
    color = CHANNEL_ADJECTIVES.get(run.data_channels, f"{run.data_channels}-channel")
    lead = f"A GAN grown on {run.num_training_images:,} {color} images by the {run.policy} policy"
    lead += f", starting from {run.preset}" if run.preset else ""
    lead += f", in {format_duration(run.elapsed)}{budget_text(run)}."
    banner = ""
    if not run.finished:
        banner = (
            '<p class="banner">This run has not finished: it is still training, or it was stopped'
            " and can be resumed. The page shows its current state.</p>"
        )
    return f'<header><h1>{title}</h1><p class="lead">{escape(lead)}</p>{banner}</header>'


def budget_text(run: RunRecord) -> str:
    """Return the budget as an addition to the elapsed time, like " of a budget of 10 min"."""
    if run.budget_seconds:
        return f" of a budget of {format_duration(run.budget_seconds)}"
    return f" on a budget of {run.budget_images:,} images" if run.budget_images else ""


def _overview_section(run: RunRecord) -> str:
    if not run.best_lineage:
        return '<p class="none">No candidate has been trained yet.</p>'
    best = run.best_lineage[-1]
    samples = samples_img_tag(best, None, 640, f"Samples of the best candidate, {best.id}")
    num_images = format_count(total_images_trained(run))
    tiles = [
        ("score", format_number(best.score), _score_note(best), "main"),
        ("resolution", format_resolution(best.resolution, " × "), _resolution_note(run, best), ""),
        ("cost", format_duration(run.elapsed), f"{num_images} training images in total", ""),
        (
            "generator G",
            format_count(best.generator_parameters),
            _layers_note(best.generator_layers),
            "",
        ),
        (
            "discriminator D",
            format_count(best.discriminator_parameters),
            _layers_note(best.discriminator_layers),
            "",
        ),
        ("best candidate", best.id, f"{format_count(best.images_seen)} training images", ""),
        ("candidates", f"{len(run.candidates)}", _outcome_counts(run), ""),
    ]
    cells = "".join(
        f'<div class="{css}"><dt>{name}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd>'
        "</div>"
        for name, value, note, css in tiles
    )
    summary = "".join(f"<li>{escape(sentence)}</li>" for sentence in summary_sentences(run))
    return (
        f'<div class="overview"><figure style="margin:0">{samples}<figcaption class="note">'
        f"Samples of the best candidate, not hand-picked.</figcaption></figure>"
        f'<div><dl class="tiles">{cells}</dl><ul class="summary">{summary}</ul></div></div>'
    )


def _score_note(best: CandidateRecord) -> str:
    stderr = "" if best.score_stderr is None else f"± {best.score_stderr:.2g}, "
    return f"{stderr}distance of the samples from the training images; lower is better"


def _resolution_note(run: RunRecord, best: CandidateRecord) -> str:
    if best.resolution == run.resolution:
        return "pixels, the target resolution"
    return f"pixels; the target is {format_resolution(run.resolution, ' × ')}"


def _layers_note(num_layers: int) -> str:
    return f"parameters in {pluralize(num_layers, 'layer')}"


def _outcome_counts(run: RunRecord) -> str:
    best_lineage_ids = {c.id for c in run.best_lineage}
    others = Counter(c.status for c in run.candidates if c.id not in best_lineage_ids)
    parts = [f"{len(best_lineage_ids)} on the best lineage", f"{others['pruned']} pruned"]
    return ", ".join(parts + ([f"{others['failed']} failed"] if others["failed"] else []))


def total_images_trained(run: RunRecord) -> int:
    """Return how many images all candidates trained on, each segment counted once."""
    total = 0
    for c in run.candidates:
        parent = run.candidates_by_id.get(c.parent_id or "")
        total += max(0, c.images_seen - (parent.images_seen if parent else 0))
    return total


def summary_sentences(run: RunRecord) -> list[str]:
    """Return a summary of a run with at least one candidate, in a few sentences."""
    lineage = run.best_lineage
    first, best = lineage[0], lineage[-1]
    # The first candidate at the final resolution.
    reached = next(c for c in lineage if c.resolution == best.resolution)
    sentence = (
        f"The run started at {format_resolution(first.resolution, ' × ')} with"
        f" {pluralize(first.generator_layers, 'layer')} in G and {first.discriminator_layers} in D"
    )
    if reached is not first:
        reached_at = format_clock(max(0.0, reached.elapsed - reached.seconds))
        sentence += f" and reached {format_resolution(reached.resolution, ' × ')} at {reached_at}"
    sentences = [sentence + "."]
    depths = [(c.generator_layers, c.discriminator_layers) for c in (first, best)]
    if depths[0] != depths[1]:
        (first_g, first_d), (best_g, best_d) = depths
        sentences.append(
            f"G grew from {pluralize(first_g, 'layer')} to {best_g}, D from {first_d} to {best_d}."
        )
    scores = [c.score for c in lineage if c.score is not None]
    if len(scores) > 1:
        sentences.append(
            f"The score went from {format_number(scores[0])} to {format_number(scores[-1])}."
        )
    total_seconds = sum(c.seconds for c in run.candidates)
    if len(run.candidates) > len(lineage) and total_seconds > 0:
        fraction = sum(c.seconds for c in lineage) / total_seconds
        sentences.append(
            f"{fraction:.0%} of the time spent on candidates went into the best lineage, the rest"
            " into candidates that did not lead to it."
        )
    if run.num_resumes:
        sentences.append(f"It was interrupted and resumed {pluralize(run.num_resumes, 'time')}.")
    return sentences


def _lineage_section(run: RunRecord) -> str:
    candidates = evenly_spaced(run.best_lineage, MAX_LINEAGE_IMAGES)
    if not candidates:
        return ""
    figures = []
    for c in candidates:
        alt_text = f"Samples of candidate {c.id} at {format_resolution(c.resolution)} pixels"
        css = ' class="last"' if c is candidates[-1] else ""
        figures.append(
            f"<figure{css}>{samples_img_tag(c, 4, 192, alt_text)}<figcaption>"
            f"<b>{format_resolution(c.resolution, ' × ')}</b> at {format_clock(c.elapsed)}"
            f"<br>score {format_number(c.score)}<br>{escape(c.id)},"
            f" {format_count(c.images_seen)} images</figcaption></figure>"
        )
    return (
        "<section><h2>Samples over time</h2>"
        '<p class="lead">Samples of the best lineage from the same 16 latents, each at its own'
        f' resolution.</p><div class="lineage">{"".join(figures)}</div></section>'
    )


def _growth_tree_section(run: RunRecord) -> str:
    legend = "".join(f'<span class="key {css}"><i></i>{label}</span>' for css, label in TREE_LEGEND)
    return (
        '<section><h2>Growth tree</h2><p class="lead">Each card is a pair of networks that grew'
        " from the pair above it. A number like 3 × counts the training segments of a pair.</p>"
        f'<p class="legend">{legend}</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="growth tree, scrollable">'
        f"{tree_svg(build_growth_tree(run))}</div></section>"
    )


def _charts_section(title: str, figures: Sequence[str]) -> str:
    if not figures:
        return ""
    return f'<section><h2>{title}</h2><div class="charts">{"".join(figures)}</div></section>'


def _gallery_section(run: RunRecord) -> str:
    """Return the sheets and tables of the run's gallery."""
    folder, figures = run.path / "gallery", []
    for name, title, caption in GALLERY_IMAGES:
        image = file_img_tag(folder / f"{name}.png", 1024, title)
        if image:
            note = f"{read_caption(folder / f'{name}.txt')} {caption}".strip()
            figures.append(
                f"<figure><figcaption><h3>{title}</h3></figcaption>{image}"
                f'<p class="note">{note}</p></figure>'
            )
    figures += truncation_figures(folder / "truncation.json")
    return (
        _charts_section("Gallery", figures)
        + per_class_tables(folder / "classes.json")
        + task_metrics_section(folder / "task.json")
    )


def _health_section(run: RunRecord) -> str:
    figures = health_figures(run)
    if not figures and not run.incidents:
        return ""
    lead = "Training problems and how they were handled:"
    if not run.incidents:
        lead = "The health checks found no problem."
    incidents = "".join(f"<li>{escape(incident)}</li>" for incident in run.incidents)
    incident_list = f'<ul class="summary">{incidents}</ul>' if incidents else ""
    return (
        f'<section><h2>Health checks</h2><p class="lead">{lead}</p>{incident_list}'
        f'<div class="charts">{"".join(figures)}</div></section>'
    )


def _cost_section(run: RunRecord) -> str:
    costs = {name: max(0.0, seconds) for name, seconds in run.seconds_by_phase.items()}
    total = sum(costs.values())
    if total <= 0:
        return ""
    bar, rows = [], []
    for index, (phase, seconds) in enumerate(costs.items()):
        css, label = "rest" if phase == "other" else f"c{index % 5}", phase_label(phase)
        bar.append(f'<span class="{css}" style="width:{100 * seconds / total:.2f}%"></span>')
        rows.append(
            f'<tr><td><i class="dot {css}"></i>{escape(label)}</td>'
            f'<td class="n">{format_duration(seconds)}</td>'
            f'<td class="n">{seconds / total:.1%}</td></tr>'
        )
    rows.append(
        f'<tr><th scope="row">total</th><td class="n">{format_duration(total)}</td>'
        '<td class="n">100.0%</td></tr>'
    )
    head = '<tr><th>phase</th><th class="n">time</th><th class="n">share of the run</th></tr>'
    lead = (
        f"{format_count(total_images_trained(run))} training images,"
        f" {pluralize(len(run.candidates), 'candidate')}, on {run.machine}."
    )
    return (
        f'<section><h2>Cost</h2><p class="lead">{escape(lead)}</p><div class="bar"'
        f' aria-hidden="true">{"".join(bar)}</div><table class="cost"><thead>{head}</thead>'
        f"{''.join(rows)}</table></section>"
    )


def _selections_section(run: RunRecord) -> str:
    rows = "".join(
        f'<tr><td class="n">{s.round}</td><td class="id">{escape(s.best_id or "-")}</td>'
        f"<td>{escape(', '.join(s.survivors))}</td><td>{escape(s.reason)}</td></tr>"
        for s in run.selections
    )
    if not rows:
        return ""
    head = '<th class="n">round</th><th>best candidate</th><th>survivors</th><th>reason</th>'
    return scrollable_section("Selections", f"<table><thead><tr>{head}</tr></thead>{rows}</table>")


def _candidates_section(run: RunRecord) -> str:
    if not run.candidates:
        return ""
    columns = (  # (header, whether it is aligned to the right)
        ("candidate", False),
        ("parent", False),
        ("growth", False),
        ("resolution", False),
        ("layers of G / D", True),
        ("training images", True),
        ("time", True),
        ("score (lower is better)", True),
        ("status", False),
    )
    head = "".join(f"<th{' class=n' if right else ''}>{name}</th>" for name, right in columns)
    best_lineage_ids = {c.id for c in run.best_lineage}
    rows = "".join(
        _candidate_row(c, on_best_lineage=c.id in best_lineage_ids) for c in run.candidates
    )
    return scrollable_section(
        "All candidates", f"<table><thead><tr>{head}</tr></thead>{rows}</table>"
    )


def _candidate_row(candidate: CandidateRecord, *, on_best_lineage: bool) -> str:
    status = css = candidate.status
    if on_best_lineage and candidate.status != "best":
        status, css = "best lineage", "alive"
    if candidate.error:
        status += f": {candidate.error}"
    score = format_score(candidate.score, candidate.score_stderr, "±")
    return (
        f'<tr class="{css}"><td class="id">{escape(candidate.id)}</td>'
        f'<td class="id">{escape(candidate.parent_id or "")}</td>'
        f'<td class="growth">{escape(candidate.growth_label)}</td>'
        f"<td>{format_resolution(candidate.resolution, '×')}</td>"
        f'<td class="n">{candidate.generator_layers} / {candidate.discriminator_layers}</td>'
        f'<td class="n">{format_count(candidate.images_seen)}</td>'
        f'<td class="n">{format_duration(candidate.seconds)}</td>'
        f'<td class="n">{score}</td><td class="status">{escape(status)}</td></tr>'
    )


def _settings_section(run: RunRecord) -> str:
    if not run.config_yaml:
        return ""
    return scrollable_section("Settings", f"<pre>{escape(run.config_yaml)}</pre>")


def _footer(run: RunRecord) -> str:
    started = time.strftime("%d %B %Y, %H:%M UTC", time.gmtime(run.started_at))
    parts = [f"growgan {run.version}", f"seed {run.seed}", f"started {started}"]
    if run.data_fingerprint:
        parts.append(f"data fingerprint {run.data_fingerprint[:16]}")
    return f"<footer>{escape(' · '.join(parts))}</footer>"
