"""``growgan sample``: images from a run's generator."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from growgan.errors import UserError

if TYPE_CHECKING:
    from growgan.growth.model import Images, Model

Out = Annotated[str, typer.Option(help="FILE.png, FILE.npz, FILE.zip or FOLDER")]
Truncation = Annotated[
    float | None,
    typer.Option(help="redraw latents beyond; with a mapping network, distance of styles kept"),
]
Labels = Annotated[str | None, typer.Option(help="like 0,3: they take turns; default: all classes")]
Walk = Annotated[
    str | None, typer.Option(help="picks like 3,17,5: images on the way from each to the next")
]
Combine = Annotated[
    str | None, typer.Option(help="sums of mean latents of picks, like 1,2,3-4,5,6+7,8,9")
]
Morph = Annotated[
    str | None, typer.Option(help="labels like 0,3,5: eight latents on the way between classes")
]
Mix = Annotated[
    str | None, typer.Option(help="picks like 0,1,2:3,4: coarse styles of these, fine of those")
]


def sample(
    run: Annotated[str, typer.Argument(help="run directory, export, or hub:USER/NAME")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="number of images")] = 64,
    out: Out = "samples.png",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="decides the latents")] = 0,
    truncation: Truncation = None,
    candidate: Annotated[str | None, typer.Option(help="id; default: the best")] = None,
    labels: Labels = None,
    walk: Walk = None,
    steps: Annotated[int, typer.Option(min=1, help="images from one pick of a walk on")] = 8,
    combine: Combine = None,
    mix: Mix = None,
    morph: Morph = None,
) -> None:
    """Draw images from a run's best generator, or from another candidate's.

    Picks are numbers of images that the same -n and --seed draw, counted from 0, row by row.
    """
    from growgan.growth.load import load
    from growgan.growth.model import Model
    from growgan.growth.pool import Pool
    from growgan.report.sheet import write_images

    model = load(run, candidate)
    looks = walk or combine or mix or morph
    if isinstance(model, Pool) and looks:
        raise UserError("--walk, --combine, --mix and --morph are of one run, not of a pool")
    if sum(value is not None for value in (truncation, walk, combine, mix, morph)) > 1:
        raise UserError("--truncation, --walk, --combine, --mix and --morph exclude each other")
    columns, wanted = None, None
    if isinstance(model, Model) and morph:
        wanted = _picks("morph", morph)
        columns = (len(wanted) - 1) * steps + 1
        images = model.morph(wanted, steps, seed=seed)
    elif isinstance(model, Model) and looks:
        images, columns = _looked_into(model, count, seed, walk, steps, combine, mix)
    else:
        wanted = None if labels is None else _picks("labels", labels)
        images = model.sample(count, seed=seed, truncation=truncation, labels=wanted)
    given = None if columns else model.labels(count, wanted)
    path = write_images(images.transpose(0, 3, 1, 2), given, out, columns)
    typer.echo(str(path))


def _looked_into(
    model: Model,
    count: int,
    seed: int,
    walk: str | None,
    steps: int,
    combine: str | None,
    mix: str | None,
) -> tuple[Images, int]:
    """Return what was asked for, and how many images make up a row of a sheet."""
    if walk:
        return model.walk(_picks("walk", walk), steps, count=count, seed=seed), steps
    if combine:
        if not re.fullmatch(r"[+-]?[\d,]+([+-][\d,]+)*", combine):
            raise UserError(f"--combine takes sets of picks like 0,1+2,3-4,5, but got '{combine}'")
        signed = re.findall(r"([+-]?)([^+-]+)", combine)
        sets: dict[str, list[list[int]]] = {"": [], "-": []}
        for sign, picks in signed:
            sets[sign.strip("+")].append(_picks("combine", picks))
        return model.combine(sets[""], sets["-"], count=count, seed=seed), 3
    rows, colon, columns = (mix or "").partition(":")
    if not colon:
        raise UserError(f"--mix takes rows and columns like 0,1:2,3, but got '{mix}'")
    fine = _picks("mix", columns)
    return model.mix(_picks("mix", rows), fine, count=count, seed=seed), len(fine)


def _picks(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--{option} takes numbers like 3,17,5, but got '{text}'") from None
