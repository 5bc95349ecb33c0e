"""HTML tables and captions of a report, from the files of a run's gallery."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from growgan.jsonl import parse_json
from growgan.report.formatting import format_number

MAX_CAPTION_CHARS = 1000  # longer captions are cut


def scrollable_section(title: str, content: str) -> str:
    """Return a section with scrollable content. Both arguments are HTML."""
    return (
        f'<section><h2>{title}</h2><div class="scroll boxed" tabindex="0" role="region"'
        f' aria-label="{title}, scrollable">{content}</div></section>'
    )


def metric_table(name_header: str, value_header: str, values: Mapping[str, float]) -> str:
    """Return a table of values by name, "" if there are none. The headers are HTML."""
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{format_number(value)}</td></tr>'
        for name, value in values.items()
    )
    head = f'<tr><th>{name_header}</th><th class="n">{value_header}</th></tr>'
    return f"<table><thead>{head}</thead>{rows}</table>" if rows else ""


def per_class_tables(path: Path) -> str:
    """Return tables of the Fréchet distance of each class and of D's scores of labels."""
    try:
        content = parse_json(path.read_bytes())
        distances, scores = (
            {str(name): float(value) for name, value in content[key].items()}
            for key in ("frechet_distances", "label_sensitivity")
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return ""
    tables = (
        (
            "Fréchet distance of each class",
            metric_table("class", "Fréchet distance (lower is better)", distances),
        ),
        (
            "Scores of right and wrong labels",
            metric_table("images and labels", "mean score of D", scores),
        ),
    )
    return "".join(scrollable_section(title, table) for title, table in tables if table)


def task_metrics_section(path: Path) -> str:
    """Return a table of a task's metrics, "" if the run trained no task."""
    try:
        metrics = {str(name): float(v) for name, v in parse_json(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return ""
    if not metrics:
        return ""
    title = "Task metrics on held-out images"
    return scrollable_section(title, metric_table("metric", "value", metrics))


def read_caption(path: Path) -> str:
    """Return the text of a caption file as HTML, "" if it cannot be read."""
    try:
        return escape(path.read_text("utf-8")[:MAX_CAPTION_CHARS])
    except (OSError, ValueError):
        return ""
