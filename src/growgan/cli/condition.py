"""``growgan condition``: a trained generator learns labels, of which few are enough."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from growgan.cli.grow import (
    Broken,
    Count,
    Data,
    Device,
    Out,
    Seed,
    Set,
    Wall,
    carry_out,
    free_folder,
    limit_of,
    loaded,
    loading,
    options_given,
)
from growgan.errors import UserError

Way = Annotated[
    str, typer.Option(help="reprogram (G stays as it is) or fine-tune (all is trained)")
]
Labels = Annotated[str, typer.Option(help="share of each class's labels that are used, like 1%")]
Balance = Annotated[bool, typer.Option("--balance", help="repeat the images of rarer classes")]


def condition(
    run: Annotated[Path, typer.Argument(help="run directory, of a generator without labels")],
    data: Data,
    out: Out = None,
    way: Way = "reprogram",
    labels: Labels = "100%",
    balance: Balance = False,
    budget: Wall = None,
    images: Count = None,
    seed: Seed = None,
    device: Device = None,
    set_: Set = None,
    max_broken: Broken = 0.05,
) -> None:
    """Teach the best generator of RUN the labels of DATA, as a new run.

    The new run goes on, where it was interrupted, by growgan grow DATA --out OUT --resume.
    """
    from growgan.growth import Run
    from growgan.growth.condition import condition as teach

    share = _share(labels)
    opened = Run.open(run)
    limit = limit_of(budget, images, resume=False)
    found = loaded(data, max_broken, **opened.best.form)
    place = out or free_folder(f"{found.name}-conditional")
    values = options_given(seed=seed, device=device)
    values["labels"] = {"share": share, "balance": balance}
    told: dict[str, Any] = {"settings": values, "overrides": set_ or (), "budget": limit}
    carry_out(partial(teach, opened), found, place, loading(data, max_broken), way=way, **told)


def _share(text: str) -> float:
    """Return a share that is written as 1%, 0.01 or 1."""
    number, percent, rest = text.partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if rest or not 0 < share <= 1:
        raise UserError(f"--labels takes a share like 1% or 0.01, but got '{text}'")
    return share
