"""What a page shows in words and tables: boxes, and what files in a run's gallery say."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from growgan.plain import parse
from growgan.report.text import number

LONGEST = 1000  # characters of what is said of a picture


def box(title: str, content: str) -> str:
    """Return a section with a title, whose content may be scrolled; both are HTML."""
    return (
        f'<section><h2>{title}</h2><div class="scroll boxed" tabindex="0" role="region"'
        f' aria-label="{title}, scrollable">{content}</div></section>'
    )


def table(what: str, title: str, values: Mapping[str, float]) -> str:
    """Return a table of figures by name, "" where there are none; ``what`` the names are of, and
    the title of the figures, are HTML.
    """
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{number(value)}</td></tr>'
        for name, value in values.items()
    )
    head = f'<tr><th>{what}</th><th class="n">{title}</th></tr>'
    return f"<table><thead>{head}</thead>{rows}</table>" if rows else ""


def class_by_class(path: Path) -> str:
    """Show how near each class is, and what D makes of right and of wrong labels."""
    try:
        found = parse(path.read_bytes())
        distances = {str(name): float(value) for name, value in found["distances"].items()}
        scores = {str(name): float(value) for name, value in found["pairings"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return ""
    named = (
        ("Class by class", table("class", "Fréchet distance", distances)),
        ("Right and wrong labels", table("pair", "mean score of D", scores)),
    )
    return "".join(box(title, made) for title, made in named if made)


def task_figures(path: Path) -> str:
    """Show the figures of a task, if the run was of one."""
    try:
        found = {str(name): float(value) for name, value in parse(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return ""
    return box("The task, on new images", table("figure", "value", found)) if found else ""


def said_of(path: Path) -> str:
    """Return what a file says of a picture, as HTML; "" where there is none."""
    try:
        return escape(path.read_text("utf-8")[:LONGEST])
    except (OSError, ValueError):
        return ""
