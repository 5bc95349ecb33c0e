"""``growgan finetune``: teach a trained generator class labels."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from growgan.cli.options import (
    ARCHITECTURE_PANEL,
    DATA_PANEL,
    BudgetOption,
    DataArgument,
    DeviceOption,
    ImagesOption,
    MaxBrokenOption,
    OverridesOption,
    RunArgument,
    RunOutOption,
    SeedOption,
)
from growgan.cli.run_command import (
    DEFAULT_MAX_BROKEN,
    drop_unset,
    load_before_start,
    next_run_dir,
    parse_budget,
    reload_args,
    run_with_resume_hint,
)
from growgan.errors import UserError

FinetuneMethodOption = Annotated[
    str,
    typer.Option(
        help="reprogram freezes G and trains a map of latents and labels before it; finetune"
        " trains all weights.",
        rich_help_panel=ARCHITECTURE_PANEL,
    ),
]
LabelFractionOption = Annotated[
    str,
    typer.Option(
        help="Fraction of each class's labeled images to use, like 1% or 0.01.",
        rich_help_panel=DATA_PANEL,
    ),
]
BalanceClassesOption = Annotated[
    bool,
    typer.Option(
        "--balance-classes",
        help="Repeat images of rare classes until all classes are equally frequent.",
        rich_help_panel=DATA_PANEL,
    ),
]


def finetune(
    run: RunArgument,
    data: DataArgument,
    label_fraction: LabelFractionOption = "100%",
    balance_classes: BalanceClassesOption = False,
    max_broken: MaxBrokenOption = DEFAULT_MAX_BROKEN,
    budget: BudgetOption = None,
    images: ImagesOption = None,
    seed: SeedOption = None,
    method: FinetuneMethodOption = "reprogram",
    overrides: OverridesOption = None,
    out: RunOutOption = None,
    device: DeviceOption = None,
) -> None:
    """Make the best generator of RUN class-conditional, as a new run.

    RUN must be unconditional, and DATA must have labels. Resume an interrupted run with: growgan
    grow DATA --out OUT --resume.

    Examples:
        growgan finetune runs/photos photos/ --out runs/labeled
        growgan finetune runs/photos photos/ --label-fraction 1% --budget 5m
        growgan finetune runs/photos photos/ --method finetune --balance-classes
    """
    from growgan.run.finetune import finetune as start_finetuning
    from growgan.run.run import Run

    fraction = _parse_fraction(label_fraction)
    pretrained = Run.open(run)
    limit = parse_budget(budget, images, resume=False)
    load_args = pretrained.best.load_args
    labeled_images = load_before_start(
        data,
        max_broken=max_broken,
        resolution=load_args["resolution"],
        channels=load_args["channels"],
        fit=load_args["fit"],
    )
    out = out or next_run_dir(f"{labeled_images.name}-conditional")
    start_run = partial(
        start_finetuning,
        pretrained,
        labeled_images,
        out=out,
        method=method,
        budget=limit,
        settings={
            **drop_unset(seed=seed, device=device),
            "labels": {"fraction": fraction, "balance": balance_classes},
        },
        overrides=overrides or (),
    )
    run_with_resume_hint(
        start_run, data=labeled_images, out=out, data_args=reload_args(data, max_broken)
    )


def _parse_fraction(text: str) -> float:
    """Return a fraction written as 1%, 0.01 or 1.

    Raises:
        UserError: The text is not a fraction above 0 and at most 1.
    """
    number, percent, rest = text.partition("%")
    try:
        fraction = float(number) / (100 if percent else 1)
    except ValueError:
        fraction = 0.0
    if rest or not 0 < fraction <= 1:
        raise UserError(
            f"--label-fraction must be above 0% and at most 100%, like 1% or 0.01, but got '{text}'"
        )
    return fraction
