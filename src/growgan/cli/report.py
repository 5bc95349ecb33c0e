"""``growgan report``: a run's page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory")],
    data: Annotated[
        str | None,
        typer.Option(help="what it was trained on: adds nearest images and a truncation curve"),
    ] = None,
) -> None:
    """Write RUN/report.html, one self-contained page, and print its path."""
    from growgan.growth import Run
    from growgan.growth.gallery import write_gallery
    from growgan.report.page import write_report
    from growgan.report.run import read_run

    known = read_run(run)
    if (run / "candidates" / str(known.best) / "weights.safetensors").is_file():
        opened = Run.open(run)
        write_gallery(opened, opened.best.load_data(data) if data else None)
    typer.echo(str(write_report(run)))
