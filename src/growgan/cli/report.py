"""``growgan report``: a run's page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory")],
) -> None:
    """Write RUN/report.html, one self-contained page, and print its path."""
    from growgan.report.page import write_report

    typer.echo(str(write_report(run)))
