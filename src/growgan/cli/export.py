"""``growgan export``: write a generator for other programs, and upload it to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from growgan.cli.options import CandidateOption, RunArgument
from growgan.errors import UserError


def export(
    run: RunArgument,
    export_format: Annotated[
        str,
        typer.Option("--to", metavar="FORMAT", help="Format: safetensors, onnx or torchscript."),
    ] = "safetensors",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write.", show_default="RUN/export")
    ] = None,
    candidate: CandidateOption = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME",
            help="Upload the folder to this repository of the Hugging Face Hub. A new repository is"
            " private.",
        ),
    ] = None,
) -> None:
    """Write a generator with its spec and a model card into a folder, and print its path.

    Examples:
        growgan export runs/photos
        growgan export runs/photos --to onnx --out photos-onnx
        growgan export runs/photos --push user/photos
    """
    from growgan.artifacts.export import card_was_edited
    from growgan.artifacts.export import export as export_generator
    from growgan.artifacts.load import ExportedGenerator, load
    from growgan.artifacts.per_class_ensemble import PerClassEnsemble
    from growgan.nets.hub import upload_to_hub

    generator = load(run, candidate)
    if isinstance(generator, PerClassEnsemble):
        raise UserError(f"'{run}' is an ensemble of several runs: export each run by itself")
    if isinstance(generator, ExportedGenerator):
        raise UserError(f"'{run}' is already an export; give the run directory")
    folder = out or run / "export"
    if card_was_edited(folder):
        typer.echo(f"'{folder}/README.md' was edited by hand and is left unchanged", err=True)
    folder = export_generator(generator, export_format, folder)
    typer.echo(str(folder))
    if push:
        typer.echo(upload_to_hub(folder, push))
