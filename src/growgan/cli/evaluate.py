"""``growgan evaluate``: figures of one set of images against another, each with its protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growgan.errors import UserError
from growgan.plain import parse

if TYPE_CHECKING:
    from growgan.data import ImageSet
    from growgan.metrics.evaluate import Evaluation
    from growgan.metrics.watch import Watch

Fake = Annotated[str | None, typer.Argument(metavar="FAKE", help="run directory, or DATA")]
Real = Annotated[str | None, typer.Argument(metavar="REAL", help="run directory, or DATA")]
Metrics = Annotated[
    str, typer.Option(help="names, comma-separated, or all; see: growgan list metrics")
]
Features = Annotated[str, typer.Option(help="domain, pixels, inception, dinov2, clip, or FILE.pt")]
Resize = Annotated[
    str, typer.Option(help="to inception's input: clean, legacy-pytorch, legacy-tensorflow")
]
Count = Annotated[
    int | None, typer.Option("-n", "--count", min=1, help="fakes at most; of a run: 10,000")
]
RealCount = Annotated[int | None, typer.Option(min=1, help="reals at most")]
HeldOut = Annotated[str | None, typer.Option(metavar="DATA", help="reals that are not in REAL")]
Resolution = Annotated[str | None, typer.Option(metavar="SIDE", help="of both: 32, or 48x64 (HxW)")]
Candidate = Annotated[str | None, typer.Option(help="of the run; default: the best")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="decides every draw")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps")]
Json = Annotated[bool, typer.Option("--json", help="print JSON with protocols")]
Compare = Annotated[
    tuple[Path, Path] | None,
    typer.Option(metavar="A.json B.json", help="compare figures written by --json"),
]


def evaluate(
    fake: Fake = None,
    real: Real = None,
    metrics: Metrics = "",
    features: Features = "domain",
    resize: Resize = "clean",
    count: Count = None,
    real_count: RealCount = None,
    held_out: HeldOut = None,
    resolution: Resolution = None,
    candidate: Candidate = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    compare: Compare = None,
) -> None:
    """Measure the images of FAKE against those of REAL."""
    if compare is not None:
        if fake is not None:
            raise UserError("--compare takes two files, and no FAKE and REAL beside them")
        _show_comparison(*compare, as_json=as_json)
        return
    if fake is None or real is None:
        raise UserError("evaluate takes FAKE and REAL, or --compare A.json B.json")
    how: dict[str, Any] = {"features": features, "resize": resize, "count": count, "seed": seed}
    sides = _load(fake, real, held_out, resolution, candidate)
    found = _measured(sides, device, metrics=_names(metrics), real_count=real_count, **how)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        _show(found)


def _names(metrics: str) -> list[str]:
    return [name.strip() for name in metrics.split(",") if name.strip()]


def _measured(sides: Mapping[str, Any], device: str, **how: Any) -> Evaluation:
    from growgan.metrics.evaluate import evaluate as measure
    from growgan.training.runtime import make_runtime

    with _progress() as watch:
        return measure(**sides, device=make_runtime(device).device, watch=watch, **how)


def _load(
    fake: str, real: str, held_out: str | None, resolution: str | None, candidate: str | None
) -> dict[str, Any]:
    """Return what is compared, at one resolution: that asked for, or the fakes' own."""
    from growgan.data import load_images, parse_resolution

    size = parse_resolution(resolution)
    sides: dict[str, Any] = {}
    if _is_run(fake):
        if size is not None:
            raise UserError("--resolution is of datasets; a run has its own")
        sides["fake"], how = _load_run(Path(fake), candidate)
    elif candidate is not None:
        raise UserError(f"--candidate is of a run, but '{fake}' is none")
    else:
        images = sides["fake"] = load_images(fake, resolution=size)
        how = {"resolution": images.resolution, "channels": images.channels}
        if size is not None:
            sides["preparation"] = "loaded at --resolution, fit auto, Lanczos"
        elif not _is_run(real):
            own = _as_they_are(real)
            if own and {"resolution": own.resolution, "channels": own.channels} == how:
                sides["real"] = own
            else:
                was = _form(own) if own else "several sizes"
                sides["preparation"] = (
                    f"reals of {was} brought to the fakes' form, fit auto, Lanczos"
                )
    if "real" not in sides:
        run = _is_run(real)
        sides["real"] = _load_run(Path(real), None)[0] if run else load_images(real, **how)
    sides["held_out"] = load_images(held_out, **how) if held_out else None
    return sides


def _as_they_are(source: str) -> ImageSet | None:
    """Return the images of ``source`` in their own form, or None where that is not one form."""
    from growgan.data import load_images

    try:
        return load_images(source)
    except UserError:  # if it was something else, it comes again as they are loaded in one form
        return None


def _form(images: ImageSet) -> str:
    height, width = images.resolution
    return f"{width}x{height} with {images.channels} channels"


def _is_run(source: str) -> bool:
    from growgan.growth.pool import Pool
    from growgan.nets.pretrained import WEIGHTS

    made = (Path(source) / name for name in ("ledger.jsonl", WEIGHTS))
    return any(each.is_file() for each in made) or Pool.is_one(source)


def _load_run(path: Path, candidate: str | None) -> tuple[Any, dict[str, Any]]:
    """Return a run's model, and how its reals were loaded."""
    from growgan.growth.load import load
    from growgan.growth.pool import Pool

    model = load(path, candidate)
    one = model.run(0).best if isinstance(model, Pool) else model
    return model, one.form


@contextmanager
def _progress() -> Iterator[Watch]:
    """Show bars on stderr while it runs, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:

        def watch(what: str, done: int, count: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=count)
            bars.update(tasks[what], completed=done, total=count)

        yield watch


def _show(found: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", "±", "fakes", "reals", "how")
    for name, figure in found.items():
        error = "" if figure.stderr is None else f"{figure.stderr:.2g}"
        error = error if figure.deviation is None else f"{figure.deviation:.2g} (deviation)"
        counts = [f"{n:,}" if n else "" for n in figure.protocol.counts]
        table.add_row(name, f"{figure.value:.4g}", error, *counts, figure.protocol.estimator)
        for key, value in figure.details.items():
            table.add_row(f"  {key}", f"{value:.4g}", style="dim")
    console = Console(highlight=False)
    for features in {figure.protocol.features for figure in found.values()} - {"none"}:
        console.print(f"features: {features}", markup=False)
    if found:
        console.print(table)
    for reason in dict.fromkeys(found.skipped.values()):
        names = ", ".join(name for name, why in found.skipped.items() if why == reason)
        console.print(f"left out: {names}: {reason}", markup=False, soft_wrap=True)


def _show_comparison(a: Path, b: Path, *, as_json: bool) -> None:
    """Print b - a of each metric that both files hold; refuse figures of different protocols."""
    from growgan.metrics.protocol import compare

    first, second = _read(a), _read(b)
    shared = [name for name in first if name in second]
    if not shared:
        raise UserError(f"'{a}' and '{b}' hold no metric in common")
    differences, refused = {}, []
    for name in shared:
        try:
            differences[name] = compare(first[name], second[name])
        except UserError as error:
            refused.append(f"{name}: {error}")
    if refused:
        raise UserError(". ".join(refused))
    if as_json:
        typer.echo(json.dumps({"differences": differences}, indent=1))
        return
    for name, difference in differences.items():
        values = f"{first[name].value:.4g} -> {second[name].value:.4g}"
        typer.echo(f"{name}: {values}, difference {difference:+.4g}")
    for name in set(first) ^ set(second):
        typer.echo(f"{name}: in one file alone")


def _read(path: Path) -> Evaluation:
    from growgan.metrics.evaluate import Evaluation

    try:
        data = parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as JSON: {error}") from error
    try:
        return Evaluation.from_json(data)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error
