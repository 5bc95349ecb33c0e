"""``growgan data``: say what is in a folder, archive or named set of images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Final

import typer

from growgan.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from growgan.data.summary import Summary

ROWS: Final = 20  # of each table; --json has them all
KINDS: Final = {1: "1 (gray)", 3: "3 (RGB)", 4: "4 (RGBA)"}


def data(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Folder, zip, .npz, IDX file, or fashion-mnist, digits, glyphs, hub:NAME.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every file.")] = False,
    resolution: Annotated[
        str | None,
        typer.Option(metavar="SIDE", help="Say what becomes of them at 32, or 48x64 (HxW)."),
    ] = None,
    max_broken: Annotated[
        float, typer.Option(help="Share of broken images above which it fails.")
    ] = 0.05,
) -> None:
    """Show counts, sizes, channels, classes, broken and duplicate images of DATA."""
    from growgan.data.prepare import parse_resolution
    from growgan.data.store import check_broken
    from growgan.data.summary import summarise

    if not 0 <= max_broken <= 1:
        raise UserError(f"--max-broken must be a share from 0 to 1, but got {max_broken}")
    summary = summarise(source, resolution=parse_resolution(resolution))
    if as_json:
        typer.echo(json.dumps(summary.to_json(), indent=2))
    else:
        from rich.console import Console

        show(summary, Console())
    check_broken(summary.broken, summary.files, max_broken)


def show(summary: Summary, console: Console) -> None:
    """Print a summary as tables."""
    sizes = [(f"{height} x {width}", n) for (height, width), n in summary.sizes.most_common()]
    channels = [(KINDS[kind], n) for kind, n in sorted(summary.channels.items())]
    classes = list(summary.classes.items())
    if classes and summary.unlabelled:
        classes.append(("(no label)", summary.unlabelled))
    _overview(summary, console)
    _table(console, "Sizes (height x width)", ("Size", "Images"), sizes)
    _table(console, "Channels", ("Channels", "Images"), channels)
    _table(console, "Classes", ("Class", "Images"), classes)
    _table(console, "Broken", ("Image",), [(name,) for name in summary.broken])
    _table(console, "Duplicates", ("Image",), [(name,) for name in summary.duplicates])


def _overview(summary: Summary, console: Console) -> None:
    rows: list[tuple[str, str | int]] = [
        ("Source", summary.source),
        ("Images", summary.count),
        ("Classes", len(summary.classes) or "none"),
        ("Broken", len(summary.broken)),
        ("Duplicates", len(summary.duplicates)),
    ]
    if summary.ignored:
        rows.append(("Other files", summary.ignored))
    rows.append(("Prepared", _prepared(summary)))
    _table(console, summary.name, ("", ""), rows, header=False)


def _prepared(summary: Summary) -> str:
    if summary.plan is None:
        return "sizes differ: choose one with --resolution" if summary.sizes else "nothing to use"
    height, width = summary.plan.resolution
    if list(summary.sizes) == [summary.plan.resolution]:
        return f"as they are: {height} x {width}, {KINDS[summary.plan.channels]}"
    grown = f", {summary.enlarged:,} enlarged" if summary.enlarged else ""
    return f"{height} x {width}, {KINDS[summary.plan.channels]}, {summary.plan.fit}{grown}"


def _table(
    console: Console,
    title: str,
    columns: tuple[str, ...],
    rows: Iterable[tuple[str | int, ...]],
    header: bool = True,
) -> None:
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    if not rows:
        return
    table = Table(show_header=header)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number and header else "left", overflow="fold")
    for row in rows[:ROWS]:
        table.add_row(*(Text(f"{c:,}" if isinstance(c, int) else _written_out(c)) for c in row))
    if len(rows) > ROWS:
        table.caption = Text(f"and {len(rows) - ROWS:,} more (--json lists all)")
    console.print(Text(_written_out(title), "bold"))
    console.print(table)


def _written_out(name: str) -> str:
    """Return a name with what could steer a terminal written out: an escape as "\\x1b"."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
