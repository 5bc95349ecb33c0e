"""``growgan sample``: images from a run's generator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from growgan.errors import UserError


def sample(
    run: Annotated[Path, typer.Argument(help="run directory")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="number of images")] = 64,
    out: Annotated[
        str, typer.Option(help="FILE.png, FILE.npz, FILE.zip or FOLDER")
    ] = "samples.png",
    seed: Annotated[int, typer.Option(help="decides the latents")] = 0,
    truncation: Annotated[
        float | None, typer.Option(help="redraw latent values beyond this many deviations")
    ] = None,
    candidate: Annotated[str | None, typer.Option(help="id; default: the best")] = None,
) -> None:
    """Draw images from a run's best generator, or from another candidate's."""
    from growgan.growth import Run
    from growgan.report.sheet import write_images

    opened = Run.open(run)
    model = opened.candidate(candidate) if candidate else opened.best
    if seed < 0:
        raise UserError(f"--seed must be 0 or more, but got {seed}")
    images = model.sample(count, seed=seed, truncation=truncation)
    path = write_images(images.transpose(0, 3, 1, 2), None, out)
    typer.echo(str(path))
