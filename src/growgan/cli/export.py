"""``growgan export``: a run's generator for other programs, and for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from growgan.errors import UserError


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory")],
    to: Annotated[str, typer.Option(help="safetensors, onnx or torchscript")] = "safetensors",
    out: Annotated[Path | None, typer.Option(help="folder; default: RUN/export")] = None,
    candidate: Annotated[str | None, typer.Option(help="id; default: the best")] = None,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="upload to the hub, private at first")
    ] = None,
) -> None:
    """Write a generator with its spec and a model card into a folder, and print its path."""
    from growgan.growth.export import export as write
    from growgan.growth.export import own_card
    from growgan.growth.load import Exported, load
    from growgan.growth.pool import Pool
    from growgan.nets.pretrained import push as upload

    model = load(run, candidate)
    if isinstance(model, Pool):
        raise UserError(f"'{run}' pools several runs: export them one by one")
    if isinstance(model, Exported):
        raise UserError(f"'{run}' is an export, not a run")
    place = out or run / "export"
    if own_card(place):
        typer.echo(f"'{place}/README.md' was changed by hand, and stays as it is", err=True)
    folder = write(model, to, place)
    typer.echo(str(folder))
    if push:
        typer.echo(upload(folder, push))
