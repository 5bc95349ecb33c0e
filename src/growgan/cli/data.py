"""``growgan data``: summarize a dataset and check its files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from growgan.cli.options import DATA_HELP, JsonOption
from growgan.cli.run_command import DEFAULT_MAX_BROKEN
from growgan.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from growgan.data.summary import DatasetSummary

MAX_TABLE_ROWS: Final = 20  # of each printed table; --json has all rows
CHANNEL_LABELS: Final = {1: "1 (gray)", 3: "3 (RGB)", 4: "4 (RGBA)"}


def data(
    source: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    as_json: JsonOption = False,
    resolution: Annotated[
        str | None,
        typer.Option(
            metavar="SIDE",
            help="Show how images are brought to this resolution in pixels: a side like 32, or HxW"
            " like 48x64.",
        ),
    ] = None,
    max_broken: Annotated[
        float,
        typer.Option(help="Fraction of unreadable image files, 0 to 1, above which it fails."),
    ] = DEFAULT_MAX_BROKEN,
) -> None:
    """Show counts, sizes, channels, classes, and unreadable and duplicate images of DATA.

    Examples:
        growgan data photos/
        growgan data photos/ --resolution 64
        growgan data photos/ --json
    """
    from growgan.data.prepare import parse_resolution
    from growgan.data.store import check_num_broken
    from growgan.data.summary import summarize

    if not 0 <= max_broken <= 1:
        raise UserError(f"--max-broken must be from 0 to 1, but got {max_broken}")
    summary = summarize(source, resolution=parse_resolution(resolution))
    if as_json:
        typer.echo(json.dumps(summary.to_json(), indent=2))
    else:
        from rich.console import Console

        print_summary(summary, Console())
    check_num_broken(summary.broken, summary.num_files, max_broken)


def print_summary(summary: DatasetSummary, console: Console) -> None:
    """Print a summary as tables."""
    sizes = [(f"{height} x {width}", n) for (height, width), n in summary.sizes.most_common()]
    channels = [(CHANNEL_LABELS[c], n) for c, n in sorted(summary.channels.items())]
    classes = list(summary.classes.items())
    if classes and summary.num_unlabeled:
        classes.append(("(no label)", summary.num_unlabeled))
    _print_overview(summary, console)
    _print_table(console, "Sizes (height x width)", ("Size", "Images"), sizes)
    _print_table(console, "Channels", ("Channels", "Images"), channels)
    _print_table(console, "Classes", ("Class", "Images"), classes)
    _print_table(console, "Broken", ("Image",), [(name,) for name in summary.broken])
    _print_table(console, "Duplicates", ("Image",), [(name,) for name in summary.duplicates])


def _print_overview(summary: DatasetSummary, console: Console) -> None:
    rows: list[tuple[str, str | int]] = [
        ("Source", summary.source),
        ("Images", summary.num_usable),
        ("Classes", len(summary.classes) or "none"),
        ("Broken", len(summary.broken)),
        ("Duplicates", len(summary.duplicates)),
    ]
    if summary.num_ignored:
        rows.append(("Other files", summary.num_ignored))
    rows.append(("Preprocessing", _preprocessing_text(summary)))
    _print_table(console, summary.name, ("", ""), rows, show_header=False)


def _preprocessing_text(summary: DatasetSummary) -> str:
    if summary.plan is None:
        return "sizes differ: choose one with --resolution" if summary.sizes else "no images"
    height, width = summary.plan.resolution
    if list(summary.sizes) == [summary.plan.resolution]:
        return f"unchanged: {height} x {width}, {CHANNEL_LABELS[summary.plan.channels]}"
    enlarged = f", {summary.num_enlarged:,} enlarged" if summary.num_enlarged else ""
    channels = CHANNEL_LABELS[summary.plan.channels]
    return f"{height} x {width}, {channels}, {summary.plan.fit}{enlarged}"


def _print_table(
    console: Console,
    title: str,
    columns: tuple[str, ...],
    rows: Iterable[tuple[str | int, ...]],
    show_header: bool = True,
) -> None:
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    if not rows:
        return
    table = Table(show_header=show_header)
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if index and show_header else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows[:MAX_TABLE_ROWS]:
        cells = [f"{c:,}" if isinstance(c, int) else _escape_control_characters(c) for c in row]
        table.add_row(*map(Text, cells))
    if len(rows) > MAX_TABLE_ROWS:
        table.caption = Text(f"and {len(rows) - MAX_TABLE_ROWS:,} more (--json lists all)")
    console.print(Text(_escape_control_characters(title), "bold"))
    console.print(table)


def _escape_control_characters(text: str) -> str:
    """Return ``text`` with control characters spelled out, an escape as "\\x1b"."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
