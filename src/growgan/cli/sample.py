"""``growgan sample``: images from a run's generator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growgan.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from growgan.growth.model import Images, Model, Sheet
    from growgan.growth.pool import Pool

COLUMNS = 8  # of sheets that are compared

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
    str | None,
    typer.Option(help="labels like 0,3,5: eight latents, whatever -n, on the way between classes"),
]
Code = Annotated[
    int | None,
    typer.Option(
        help="continuous code of an infogan run: eight latents, whatever -n, from -2 to 2"
    ),
]
Nearest = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="what it was trained on: the nearest image below each"),
]
Curve = Annotated[
    str | None,
    typer.Option(
        metavar="DATA", help="a row of 8 a truncation; precision and recall of 2,000 are printed"
    ),
]
Mix = Annotated[
    str | None, typer.Option(help="picks like 0,1,2:3,4: coarse styles of these, fine of those")
]

Given = Annotated[
    str | None, typer.Option(help="folder or file of images to make images from: they take turns")
]
Caption = Annotated[
    list[str] | None, typer.Option(help="what to draw, of a text2image run; several take turns")
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
    steps: Annotated[int, typer.Option(min=1, help="images from a pick, label or end on")] = 8,
    combine: Combine = None,
    mix: Mix = None,
    morph: Morph = None,
    code: Code = None,
    nearest: Nearest = None,
    curve: Curve = None,
    given: Given = None,
    caption: Caption = None,
) -> None:
    """Draw images from a run's best generator, or from another candidate's.

    Picks are numbers of images that the same -n and --seed draw, counted from 0, row by row.
    """
    from growgan.growth.load import load
    from growgan.growth.model import Model
    from growgan.report.sheet import write_images

    model = load(run, candidate)
    ways = {"walk": walk, "combine": combine, "mix": mix, "morph": morph, "code": code}
    ways |= {"nearest": nearest, "curve": curve}
    _check_alone(model, ways, {"given": given, "caption": caption})
    wanted = None if labels is None else _picks("labels", labels)
    sheet: Sheet = {"count": count, "seed": seed, "truncation": truncation, "labels": wanted}
    _check_use(ways, sheet)
    columns = known = None
    way = next((name for name, value in ways.items() if value is not None), None)
    if isinstance(model, Model) and way:
        images, columns = _looked_into(model, way, ways[way], steps, sheet)
    else:
        images, known = _drawn(model, sheet, given, caption or [])
    path = write_images(images.transpose(0, 3, 1, 2), known, out, columns)
    typer.echo(str(path))


def _check_alone(model: Model | Pool, *options: Mapping[str, object]) -> None:
    """Refuse options that a pool has no use for, and two that exclude each other."""
    from growgan.growth.pool import Pool

    ways, told = (
        [f"--{name}" for name, value in each.items() if value is not None] for each in options
    )
    if isinstance(model, Pool) and (ways or told):
        raise UserError(f"{' and '.join(ways + told)} is of one run, not of a pool")
    if len(ways + told) > 1:
        raise UserError(f"{' and '.join(ways + told)} exclude each other")


def _check_use(ways: Mapping[str, object], sheet: Sheet) -> None:
    """Refuse what the way that was chosen decides by itself."""
    own = {"curve": ["truncation", "labels"], "morph": ["labels"], "code": ["labels"]}
    for way, names in own.items():
        for name in names:
            if ways[way] is not None and sheet.get(name) is not None:
                raise UserError(f"--{way} and --{name} exclude each other")


def _drawn(
    model: Model | Pool, sheet: Sheet, given: str | None, captions: list[str]
) -> tuple[Images, NDArray[np.int64] | None]:
    """Return the images asked for, and the label of each where there are any."""
    from growgan.growth.model import Model

    how: Any = dict(sheet)
    if isinstance(model, Model) and (given or captions):
        how["given"] = _given(model, given, captions, sheet["count"], sheet["seed"])
    asked = {name: how[name] for name in ("count", "labels", "given") if name in how}
    return model.sample(**how), model.labels(**asked)


def _given(model: Model, source: str | None, captions: list[str], count: int, seed: int) -> Images:
    """Return what images are to be made from, uint8 [K, H, W, G]."""
    if not source:
        from growgan.tasks.text2image import given_by

        return given_by(model, captions, count, seed)
    from growgan.data import load_images

    channels = model.network().spec.given
    if channels not in (1, 3, 4):
        raise UserError(
            f"run '{model.run_folder}' makes images from "
            + (f"{channels} channels, which no file holds" if channels else "latents alone")
        )
    found = load_images(source, **{**model.form, "channels": channels})
    return found.images.transpose(0, 2, 3, 1)


def _looked_into(
    model: Model, way: str, value: Any, steps: int, sheet: Sheet
) -> tuple[Images, int]:
    """Return what was asked for, and how many images make up a row of a sheet."""
    drawn: Any = {"seed": sheet["seed"], "truncation": sheet["truncation"]}
    if way == "walk":
        return model.walk(_picks(way, value), steps, **sheet), steps
    if way == "morph":
        labels = _picks(way, value)
        return model.morph(labels, steps, **drawn), (len(labels) - 1) * steps + 1
    if way == "code":
        return model.sweep(value, steps, **drawn), steps + 1
    if way in ("nearest", "curve"):
        return _compared(model, way, value, sheet)
    if way == "combine":
        if not re.fullmatch(r"[+-]?[\d,]+([+-][\d,]+)*", value):
            raise UserError(f"--combine takes sets of picks like 0,1+2,3-4,5, but got '{value}'")
        signed = re.findall(r"([+-]?)([^+-]+)", value)
        sets: dict[str, list[list[int]]] = {"": [], "-": []}
        for sign, picks in signed:
            sets[sign.strip("+")].append(_picks(way, picks))
        return model.combine(sets[""], sets["-"], **sheet), 3
    rows, colon, columns = value.partition(":")
    if not colon:
        raise UserError(f"--mix takes rows and columns like 0,1:2,3, but got '{value}'")
    fine = _picks(way, columns)
    return model.mix(_picks(way, rows), fine, **sheet), len(fine)


def _compared(model: Model, way: str, source: str, sheet: Sheet) -> tuple[Images, int]:
    """Return samples beside their nearest training images, or a row a truncation."""
    import numpy as np

    from growgan.growth import Run
    from growgan.growth.gallery import comparing, nearest_images, truncation_curve

    run, data = Run.open(model.run_folder), model.load_data(source)
    extractor = comparing(run, model, data)
    if way == "nearest":
        columns = min(sheet["count"], COLUMNS)
        space = ((0, -sheet["count"] % columns), (0, 0), (0, 0), (0, 0))
        sets = [np.pad(each, space) for each in nearest_images(model, data, extractor, **sheet)]
        pairs = np.stack([each.reshape(-1, columns, *each.shape[1:]) for each in sets], 1)
        return pairs.reshape(-1, *pairs.shape[3:]), columns
    typer.echo("truncation  precision  recall")
    rows = []
    for point in truncation_curve(model, data, extractor, sheet["seed"]):
        cut = point["truncation"]
        named = "none" if cut is None else f"{cut:g}"
        typer.echo(f"{named:>10}  {point['precision']:9.1%}  {point['recall']:6.1%}")
        rows.append(model.sample(COLUMNS, seed=sheet["seed"], truncation=cut))
    return np.concatenate(rows), COLUMNS


def _picks(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--{option} takes numbers like 3,17,5, but got '{text}'") from None
