"""``growgan report``: write the report of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from growgan.cli.options import RunArgument


def report(
    run: RunArgument,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images that RUN was trained on. Adds their nearest samples and a truncation"
            " sweep to the report."
        ),
    ] = None,
) -> None:
    """Write RUN/report.html, one self-contained page, and print its path.

    Examples:
        growgan report runs/photos
        growgan report runs/photos --data photos/
    """
    from growgan.artifacts.gallery import write_gallery
    from growgan.report.page import write_report
    from growgan.report.run_record import read_run
    from growgan.run.run import Run

    best_id = read_run(run).best_id
    if (run / "candidates" / str(best_id) / "weights.safetensors").is_file():
        opened = Run.open(run)
        write_gallery(opened, opened.best.load_data(data) if data else None)
    typer.echo(str(write_report(run)))
