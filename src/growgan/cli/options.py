"""Arguments and options that several verbs share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Headings under which ``--help`` groups the options of a verb.
DATA_PANEL = "Data"
BUDGET_PANEL = "Budget"
ARCHITECTURE_PANEL = "Architecture"
OUTPUT_PANEL = "Output"
CLUSTER_PANEL = "Device and cluster"

DATA_HELP = (
    "Images to train on: a folder, a zip, .npz or IDX file, hub:NAME, or the name of a built-in"
    " dataset such as fashion-mnist."
)

DataArgument = Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
CandidateOption = Annotated[
    str | None, typer.Option(help="ID of the candidate to use.", show_default="the best")
]
ResolutionOption = Annotated[
    str | None,
    typer.Option(
        help="Resolution of the generated images in pixels: a side like 32, or HxW like 48x64.",
        show_default="that of the images, if they all have one size",
        rich_help_panel=DATA_PANEL,
    ),
]
MaxBrokenOption = Annotated[
    float,
    typer.Option(
        help="Fraction of unreadable image files, 0 to 1, above which loading fails.",
        rich_help_panel=DATA_PANEL,
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="Wall-clock time for the whole run, scoring included: 90s, 10m, 2h.",
        show_default="10m",
        rich_help_panel=BUDGET_PANEL,
    ),
]
ImagesOption = Annotated[
    str | None,
    typer.Option(
        help="Budget in training images instead of time, like 500k. Such runs can be repeated"
        " exactly.",
        rich_help_panel=BUDGET_PANEL,
    ),
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override any setting; can be repeated. See: growgan list settings.",
        rich_help_panel=ARCHITECTURE_PANEL,
    ),
]
RunOutOption = Annotated[
    Path | None,
    typer.Option(
        help="Run directory to write.",
        show_default="a new one in runs/",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Resume the run in --out.", rich_help_panel=OUTPUT_PANEL),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print network sizes, speed and memory at each resolution, and write nothing.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(help="Random seed.", show_default="0", rich_help_panel=BUDGET_PANEL),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="Device to train on: auto, cpu, cuda or mps.",
        show_default="auto",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
ExecutorOption = Annotated[
    str,
    typer.Option(
        help="Where candidates are trained: serial (in this process) or ray (on Ray workers).",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        help="Address of the Ray cluster; auto finds the one this machine belongs to.",
        show_default="a new cluster on this machine",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
CpusPerWorkerOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="CPU cores of each Ray worker.",
        show_default="the share of its GPUs, or 1 without GPUs",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
GpusPerWorkerOption = Annotated[
    float,
    typer.Option(
        min=0,
        help="GPUs of each Ray worker; 0.5 lets two workers share one.",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
