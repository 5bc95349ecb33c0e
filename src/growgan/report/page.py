"""One self-contained page that tells a run: no script, no network, under 5 MB."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from growgan.errors import UserError
from growgan.report.branches import branches
from growgan.report.figures import (
    depth_figure,
    health_figures,
    parameters_figure,
    resolution_figure,
    score_figure,
    training_figures,
    truncation_figures,
)
from growgan.report.files import replacing
from growgan.report.pictures import evenly, fitted, img, picture
from growgan.report.run import CandidateRecord, RunRecord, read_run
from growgan.report.style import STYLE
from growgan.report.tables import box, class_by_class, said_of, task_figures
from growgan.report.text import (
    clock,
    count,
    duration,
    number,
    plural,
    purpose,
    scored,
    size,
)
from growgan.report.tree import tree_svg

STAGES = 12
LARGEST = 5_000_000  # bytes
KINDS = {1: "grayscale", 3: "RGB", 4: "RGBA"}
LOOKS = (
    ("walk", "From one sample to the next", "Each row a way between two latents."),
    (
        "neighbours",
        "Samples and their nearest training images",
        "Above: samples, not picked; below: the nearest image, by features learnt from the data.",
    ),
    ("task", "What the task makes of new images", "None of these was trained on."),
    ("classes", "Each class", "A row a class, the same latents in each."),
    ("codes", "Each continuous code", "From -2 to 2; three rows a code, each of one latent."),
    ("morph", "From one class to the next", "Each row one latent, its label a mixture on the way."),
)
TREE_KEYS = (
    ("best", "way to the best"),
    ("lives", "alive"),
    ("lost", "pruned"),
    ("failed", "failed"),
)


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run directory, atomically; return its path.

    Raises:
        UserError: ``run_dir`` is no run directory or cannot be written.
    """
    run = read_run(run_dir)
    path = run.path / "report.html"
    try:
        with replacing(path) as part:
            part.write_text(fitted(page(run), LARGEST), "utf-8")
    except OSError as error:
        raise UserError(f"report '{path}' cannot be written: {error.strerror or error}") from error
    return path


def page(run: RunRecord) -> str:
    """Return the whole page as HTML text."""
    title = escape(run.data_name or run.path.name)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}: a growgan run</title><style>{STYLE}</style></head><body>",
            _header(run, title),
            "<main>",
            _hero(run),
            _stages(run),
            _tree(run),
            _charts("Score and resolution", [score_figure(run), resolution_figure(run)]),
            _charts("How G and D grew", [depth_figure(run), parameters_figure(run)]),
            _charts("Training", training_figures(run)),
            _looks(run),
            _health(run),
            _cost(run),
            _decisions(run),
            _candidates(run),
            _settings(run),
            "</main>",
            _footer(run),
            "</body></html>\n",
        ]
    )


def _header(run: RunRecord, title: str) -> str:
    kind = KINDS.get(run.data_channels, f"{run.data_channels}-channel")
    words = f"A GAN grown on {run.data_count:,} {kind} images by the {run.policy} policy"
    words += f", starting from {run.preset}" if run.preset else ""
    words += f", in {duration(run.elapsed)}{_budget(run)}."
    banner = ""
    if not run.finished:
        banner = (
            '<p class="banner">This run has not ended: it is still going on, or it was stopped and'
            " can be resumed. The page shows it as it stands.</p>"
        )
    return f'<header><h1>{title}</h1><p class="lead">{escape(words)}</p>{banner}</header>'


def _budget(run: RunRecord) -> str:
    if run.budget_seconds:
        return f" of a budget of {duration(run.budget_seconds)}"
    return f" on a budget of {run.budget_images:,} images" if run.budget_images else ""


def _hero(run: RunRecord) -> str:
    if not run.best_lineage:
        return '<p class="none">No candidate has been trained yet.</p>'
    best = run.best_lineage[-1]
    sheet = img(best, None, 640, f"Samples of the best candidate, {best.id}")
    tiles = [
        ("score", number(best.score), _score_note(best), "main"),
        ("resolution", size(best.resolution, " × "), _goal(run, best), ""),
        ("cost", duration(run.elapsed), f"{count(images_trained(run))} images in all", ""),
        ("generator G", count(best.generator_parameters), _layers(best.generator_layers), ""),
        (
            "discriminator D",
            count(best.discriminator_parameters),
            _layers(best.discriminator_layers),
            "",
        ),
        ("best candidate", best.id, f"{count(best.images)} images seen", ""),
        ("candidates tried", f"{len(run.candidates)}", _fates(run), ""),
    ]
    cells = "".join(
        f'<div class="{css}"><dt>{name}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd>'
        "</div>"
        for name, value, note, css in tiles
    )
    story = "".join(f"<li>{escape(line)}</li>" for line in tell(run))
    return (
        f'<div class="hero"><figure style="margin:0">{sheet}<figcaption class="note">'
        f"Samples of the best candidate, not picked by hand.</figcaption></figure>"
        f'<div><dl class="tiles">{cells}</dl><ul class="story">{story}</ul></div></div>'
    )


def _score_note(best: CandidateRecord) -> str:
    error = "" if best.score_stderr is None else f"± {best.score_stderr:.2g}, "
    return f"{error}how far samples are from the training images: lower is better"


def _goal(run: RunRecord, best: CandidateRecord) -> str:
    if best.resolution == run.resolution:
        return "pixels, as asked"
    return f"pixels, {size(run.resolution, ' × ')} asked"


def _layers(layers: int) -> str:
    return f"parameters in {plural(layers, 'layer')}"


def _fates(run: RunRecord) -> str:
    fates = Counter(c.status for c in run.candidates)
    off = {c.id for c in run.best_lineage}
    pruned = sum(c.status == "pruned" and c.id not in off for c in run.candidates)
    words = [f"{len(off)} lead to the best", f"{pruned} pruned"]
    return ", ".join(words + ([f"{fates['failed']} failed"] if fates["failed"] else []))


def images_trained(run: RunRecord) -> int:
    """Return the images seen by all candidates together, each slice counted once."""
    total = 0
    for c in run.candidates:
        parent = run.by_id.get(c.parent or "")
        total += max(0, c.images - (parent.images if parent else 0))
    return total


def tell(run: RunRecord) -> list[str]:
    """Return the run in a few sentences."""
    line = run.best_lineage
    first, best = line[0], line[-1]
    top = next(c for c in line if c.resolution == best.resolution)
    start = (
        f"It began at {size(first.resolution, ' × ')} with"
        f" {plural(first.generator_layers, 'layer')} in G and {first.discriminator_layers} in D"
    )
    if top is not first:
        reached = clock(max(0.0, top.elapsed - top.seconds))
        start += f" and reached {size(top.resolution, ' × ')} at {reached}"
    lines = [start + "."]
    depths = [(c.generator_layers, c.discriminator_layers) for c in (first, best)]
    if depths[0] != depths[1]:
        (g, d), (deeper_g, deeper_d) = depths
        lines.append(f"G went from {plural(g, 'layer')} to {deeper_g}, D from {d} to {deeper_d}.")
    scores = [c.score for c in line if c.score is not None]
    if len(scores) > 1:
        lines.append(f"The score went from {number(scores[0])} to {number(scores[-1])}.")
    total = sum(c.seconds for c in run.candidates)
    if len(run.candidates) > len(line) and total > 0:
        share = sum(c.seconds for c in line) / total
        lines.append(
            f"{share:.0%} of the time spent on candidates went into the lineage of the best one,"
            " the rest into candidates that did not lead to it."
        )
    if run.resumed:
        lines.append(f"It was stopped and resumed {plural(run.resumed, 'time')}.")
    return lines


def _stages(run: RunRecord) -> str:
    shown = evenly(run.best_lineage, STAGES)
    if not shown:
        return ""
    figures = []
    for c in shown:
        alt = f"Samples of candidate {c.id} at {size(c.resolution)} pixels"
        last = ' class="last"' if c is shown[-1] else ""
        figures.append(
            f"<figure{last}>{img(c, 4, 192, alt)}<figcaption><b>{size(c.resolution, ' × ')}</b>"
            f" at {clock(c.elapsed)}<br>score {number(c.score)}<br>{escape(c.id)},"
            f" {count(c.images)} images</figcaption></figure>"
        )
    return (
        "<section><h2>From the first stage to the last</h2>"
        '<p class="lead">The best lineage on the same 16 latents, each at its own resolution.'
        f'</p><div class="stages">{"".join(figures)}</div></section>'
    )


def _tree(run: RunRecord) -> str:
    keys = "".join(f'<span class="key {css}"><i></i>{text}</span>' for css, text in TREE_KEYS)
    return (
        '<section><h2>Growth tree</h2><p class="lead">One card a pair of networks, each grown from'
        " the one above; slices that only train on are counted on the card.</p>"
        f'<p class="legend">{keys}</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="growth tree, scrollable">'
        f"{tree_svg(branches(run))}</div></section>"
    )


def _charts(title: str, figures: Sequence[str]) -> str:
    if not figures:
        return ""
    return f'<section><h2>{title}</h2><div class="charts">{"".join(figures)}</div></section>'


def _looks(run: RunRecord) -> str:
    """Show what ``growgan report`` found by looking into G."""
    folder, figures = run.path / "gallery", []
    for name, title, words in LOOKS:
        shown = picture(folder / f"{name}.png", 1024, title)
        if shown:
            note = f"{said_of(folder / f'{name}.txt')} {words}".strip()
            figures.append(
                f"<figure><figcaption><h3>{title}</h3></figcaption>{shown}"
                f'<p class="note">{note}</p></figure>'
            )
    figures += truncation_figures(folder / "truncation.json")
    looks = _charts("Looking into G", figures) + class_by_class(folder / "classes.json")
    return looks + task_figures(folder / "task.json")


def _health(run: RunRecord) -> str:
    figures, notes = health_figures(run), "".join(f"<li>{escape(n)}</li>" for n in run.notes)
    if not figures and not notes:
        return ""
    words = "What the doctor said:" if notes else "The doctor found nothing wrong."
    said = f'<p class="lead">{words}</p>' + (f'<ul class="story">{notes}</ul>' if notes else "")
    return f'<section><h2>Health</h2>{said}<div class="charts">{"".join(figures)}</div></section>'


def _cost(run: RunRecord) -> str:
    costs = {name: max(0.0, seconds) for name, seconds in run.cost.items()}
    total = sum(costs.values())
    if total <= 0:
        return ""
    bar, rows = [], []
    for index, (name, seconds) in enumerate(costs.items()):
        css, words = "rest" if name == "other" else f"c{index % 5}", purpose(name)
        bar.append(f'<span class="{css}" style="width:{100 * seconds / total:.2f}%"></span>')
        rows.append(
            f'<tr><td><i class="dot {css}"></i>{escape(words)}</td>'
            f'<td class="n">{duration(seconds)}</td><td class="n">{seconds / total:.1%}</td></tr>'
        )
    rows.append(
        f'<tr><th scope="row">all</th><td class="n">{duration(total)}</td>'
        '<td class="n">100.0%</td></tr>'
    )
    words = (
        f"{count(images_trained(run))} images trained on,"
        f" {plural(len(run.candidates), 'candidate')} tried; on {run.machine}."
    )
    return (
        f'<section><h2>Cost</h2><p class="lead">{escape(words)}</p><div class="bar"'
        f' aria-hidden="true">{"".join(bar)}</div><table class="cost">{"".join(rows)}</table>'
        "</section>"
    )


def _decisions(run: RunRecord) -> str:
    rows = "".join(
        f'<tr><td class="n">{s.round}</td><td class="id">{escape(s.best or "-")}</td>'
        f"<td>{escape(', '.join(s.alive))}</td><td>{escape(s.reason)}</td></tr>"
        for s in run.selects
    )
    if not rows:
        return ""
    head = '<th class="n">round</th><th>best</th><th>go on</th><th>why</th>'
    return box("Decisions", f"<table><thead><tr>{head}</tr></thead>{rows}</table>")


def _candidates(run: RunRecord) -> str:
    head = "".join(
        f'<th{" class=n" if right else ""}>{name}</th>'
        for name, right in (
            ("id", False), ("from", False), ("growth", False), ("resolution", False),
            ("layers G / D", True), ("images", True), ("cost", True), ("score", True),
            ("status", False),
        )
    )  # fmt: skip
    leading = {c.id for c in run.best_lineage}
    rows = "".join(_row(c, leads=c.id in leading) for c in run.candidates)
    if not rows:
        return ""
    return box("All candidates", f"<table><thead><tr>{head}</tr></thead>{rows}</table>")


def _row(c: CandidateRecord, *, leads: bool) -> str:
    status = "leads to the best" if leads and c.status != "best" else c.status
    status += f": {c.error}" if c.error else ""
    css = "alive" if leads and c.status == "pruned" else c.status
    return (
        f'<tr class="{css}"><td class="id">{escape(c.id)}</td>'
        f'<td class="id">{escape(c.parent or "")}</td><td class="growth">{escape(c.origin)}</td>'
        f"<td>{size(c.resolution, '×')}</td>"
        f'<td class="n">{c.generator_layers} / {c.discriminator_layers}</td>'
        f'<td class="n">{count(c.images)}</td><td class="n">{duration(c.seconds)}</td>'
        f'<td class="n">{scored(c.score, c.score_stderr, "±")}</td>'
        f'<td class="status">{escape(status)}</td></tr>'
    )


def _settings(run: RunRecord) -> str:
    return box("Settings", f"<pre>{escape(run.config)}</pre>") if run.config else ""


def _footer(run: RunRecord) -> str:
    begun = time.strftime("%d %B %Y, %H:%M UTC", time.gmtime(run.started))
    words = [f"growgan {run.version}", f"seed {run.seed}", f"begun {begun}"]
    if run.data_fingerprint:
        words.append(f"data fingerprint {run.data_fingerprint[:16]}")
    return f"<footer>{escape(' · '.join(words))}</footer>"
