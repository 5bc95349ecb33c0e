"""``growgan evaluate``: metrics of one set of images against another, each with its protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growgan.cli.options import CandidateOption
from growgan.errors import UserError
from growgan.jsonl import parse_json

if TYPE_CHECKING:
    from growgan.data import ImageSet
    from growgan.metrics.evaluate import Evaluation
    from growgan.metrics.progress import StageProgressFn

IMAGES_PANEL = "Images"
METRICS_PANEL = "Metrics"
OUTPUT_PANEL = "Output"

FakeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="FAKE", help="Generated images: a run directory, or DATA.", show_default=False
    ),
]
RealArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="REAL", help="Reference images: DATA, or a run directory.", show_default=False
    ),
]
MetricsOption = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Comma-separated metrics, or all. See: growgan list metrics.",
        show_default="those that usually apply",
        rich_help_panel=METRICS_PANEL,
    ),
]
FeaturesOption = Annotated[
    str,
    typer.Option(
        help="Features to compare: own (a small network trained on REAL), pixels, inception,"
        " dinov2, clip, or FILE.pt.",
        rich_help_panel=METRICS_PANEL,
    ),
]
ResizeOption = Annotated[
    str,
    typer.Option(
        help="How images are resized for inception: clean, legacy-pytorch or legacy-tensorflow.",
        rich_help_panel=METRICS_PANEL,
    ),
]
FakeCountOption = Annotated[
    int | None,
    typer.Option(
        "-n",
        "--count",
        min=1,
        help="Largest number of fakes.",
        show_default="10,000 of a run, all of DATA",
        rich_help_panel=IMAGES_PANEL,
    ),
]
RealCountOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Largest number of reals.", show_default="all", rich_help_panel=IMAGES_PANEL
    ),
]
HeldOutOption = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Real images that are not in REAL, for metrics that need them.",
        rich_help_panel=IMAGES_PANEL,
    ),
]
EvaluationResolutionOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIDE",
        help="Resolution of both sets in pixels: a side like 32, or HxW like 48x64.",
        show_default="that of FAKE",
        rich_help_panel=IMAGES_PANEL,
    ),
]
EvaluationSeedOption = Annotated[
    int,
    typer.Option(min=0, max=2**32 - 1, help="Random seed.", rich_help_panel=METRICS_PANEL),
]
EvaluationDeviceOption = Annotated[
    str,
    typer.Option(help="Device: auto, cpu, cuda or mps.", rich_help_panel=METRICS_PANEL),
]
EvaluationJsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print JSON with the protocols.", rich_help_panel=OUTPUT_PANEL),
]
CompareOption = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        metavar="A.json B.json",
        help="Compare two files written with --json, instead of FAKE and REAL.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]


@dataclass
class EvaluationSets:
    """The two sets of images to compare, and held-out images.

    Attributes:
        fake: An image set, or a generator.
        real: An image set, or a generator.
        held_out: Real images that are not in ``real``.
        preprocessing: How the images were brought to one resolution, for the protocol.
    """

    fake: Any
    real: Any
    held_out: ImageSet | None = None
    preprocessing: str = "none"


def evaluate(
    fake: FakeArgument = None,
    real: RealArgument = None,
    count: FakeCountOption = None,
    real_count: RealCountOption = None,
    held_out: HeldOutOption = None,
    resolution: EvaluationResolutionOption = None,
    candidate: CandidateOption = None,
    metrics: MetricsOption = "",
    features: FeaturesOption = "own",
    resize: ResizeOption = "clean",
    seed: EvaluationSeedOption = 0,
    device: EvaluationDeviceOption = "auto",
    as_json: EvaluationJsonOption = False,
    compare: CompareOption = None,
) -> None:
    """Compute metrics of the images of FAKE against those of REAL.

    Examples:
        growgan evaluate runs/photos photos/
        growgan evaluate runs/photos photos/ --metrics fid,kid --features inception
        growgan evaluate --compare before.json after.json
    """
    if compare is not None:
        if fake is not None:
            raise UserError("--compare takes two files instead of FAKE and REAL")
        _print_comparison(*compare, as_json=as_json)
        return
    if fake is None or real is None:
        raise UserError("evaluate needs FAKE and REAL, or --compare A.json B.json")
    from growgan.metrics.evaluate import evaluate as run_evaluation
    from growgan.training.runtime import make_runtime

    sets = _load_sets(fake, real, held_out, resolution, candidate)
    with _progress_bars() as progress:
        evaluation = run_evaluation(
            sets.fake,
            sets.real,
            metrics=_parse_metric_names(metrics),
            features=features,
            resize=resize,
            num_fake=count,
            num_real=real_count,
            held_out=sets.held_out,
            preprocessing=sets.preprocessing,
            seed=seed,
            device=make_runtime(device).device,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(evaluation.to_json(), indent=1))
    else:
        _print_evaluation(evaluation)


def _parse_metric_names(metrics: str) -> list[str]:
    return [name.strip() for name in metrics.split(",") if name.strip()]


def _load_sets(
    fake: str, real: str, held_out: str | None, resolution: str | None, candidate: str | None
) -> EvaluationSets:
    """Load the sets at one resolution: the requested one, or that of the fakes."""
    from growgan.data import load_images, parse_resolution

    target_resolution = parse_resolution(resolution)
    preprocessing = "none"
    real_images: Any = None
    if _is_generator(fake):
        if target_resolution is not None:
            raise UserError("--resolution applies to datasets; a run has its own resolution")
        fake_images, load_args = _load_generator(Path(fake), candidate)
    elif candidate is not None:
        raise UserError(f"--candidate needs a run, but FAKE '{fake}' is a dataset")
    else:
        fake_images = load_images(fake, resolution=target_resolution)
        load_args = {"resolution": fake_images.resolution, "channels": fake_images.channels}
        if target_resolution is not None:
            preprocessing = "loaded at --resolution, fit auto, Lanczos"
        elif not _is_generator(real):
            unresized = _load_without_resizing(real)
            if unresized and _same_format(unresized, fake_images):
                real_images = unresized
            else:
                real_format = _describe_format(unresized) if unresized else "several sizes"
                preprocessing = (
                    f"reals of {real_format} resized to the format of the fakes, fit auto, Lanczos"
                )
    if real_images is None:
        real_images = (
            _load_generator(Path(real), None)[0]
            if _is_generator(real)
            else load_images(real, **load_args)
        )
    return EvaluationSets(
        fake=fake_images,
        real=real_images,
        held_out=load_images(held_out, **load_args) if held_out else None,
        preprocessing=preprocessing,
    )


def _load_without_resizing(source: str) -> ImageSet | None:
    """Return the images of ``source`` at their own resolution, None if they have several."""
    from growgan.data import load_images

    try:
        return load_images(source)
    except UserError:  # any other problem is raised again when they are loaded at one resolution
        return None


def _same_format(first: ImageSet, second: ImageSet) -> bool:
    return (first.resolution, first.channels) == (second.resolution, second.channels)


def _describe_format(images: ImageSet) -> str:
    from growgan.report.formatting import format_resolution

    return f"{format_resolution(images.resolution)} with {images.channels} channels"


def _is_generator(source: str) -> bool:
    """Return whether ``source`` is a run, an export or an ensemble, not a dataset."""
    from growgan.artifacts.per_class_ensemble import PerClassEnsemble
    from growgan.nets.hub import WEIGHTS_FILE

    files = [Path(source) / name for name in ("ledger.jsonl", WEIGHTS_FILE)]
    return any(file.is_file() for file in files) or PerClassEnsemble.is_ensemble(source)


def _load_generator(path: Path, candidate: str | None) -> tuple[Any, dict[str, Any]]:
    """Return a generator, and the arguments of ``load_images`` that fit its images."""
    from growgan.artifacts.load import load
    from growgan.artifacts.per_class_ensemble import PerClassEnsemble

    generator = load(path, candidate)
    single = generator.run(0).best if isinstance(generator, PerClassEnsemble) else generator
    return generator, single.load_args


@contextmanager
def _progress_bars() -> Iterator[StageProgressFn]:
    """Yield a callback that draws progress bars on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    bar_ids: dict[str, TaskID] = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:

        def update(stage: str, num_done: int, total: int) -> None:
            if stage not in bar_ids:
                bar_ids[stage] = bars.add_task(stage, total=total)
            bars.update(bar_ids[stage], completed=num_done, total=total)

        yield update


def _print_evaluation(evaluation: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", "±", "fakes", "reals", "estimator")
    for name, result in evaluation.items():
        error = "" if result.stderr is None else f"{result.stderr:.2g}"
        error = error if result.std is None else f"{result.std:.2g} (std)"
        counts = [f"{n:,}" if n else "" for n in result.protocol.num_images]
        table.add_row(name, f"{result.value:.4g}", error, *counts, result.protocol.estimator)
        for key, value in result.details.items():
            table.add_row(f"  {key}", f"{value:.4g}", style="dim")
    console = Console(highlight=False)
    for features in {result.protocol.features for result in evaluation.values()} - {"none"}:
        console.print(f"features: {features}", markup=False)
    if evaluation:
        console.print(table)
    for reason in dict.fromkeys(evaluation.skipped.values()):
        names = ", ".join(name for name, text in evaluation.skipped.items() if text == reason)
        console.print(f"skipped: {names}: {reason}", markup=False, soft_wrap=True)


def _print_comparison(first_path: Path, second_path: Path, *, as_json: bool) -> None:
    """Print the difference, second minus first, of each metric that both files hold.

    Raises:
        UserError: The files share no metric, or a shared one was measured by another protocol.
    """
    from growgan.metrics.result import result_difference

    first, second = _read_evaluation(first_path), _read_evaluation(second_path)
    shared = [name for name in first if name in second]
    if not shared:
        raise UserError(f"'{first_path}' and '{second_path}' have no metric in common")
    differences, mismatches = {}, []
    for name in shared:
        try:
            differences[name] = result_difference(first[name], second[name])
        except UserError as error:
            mismatches.append(f"{name}: {error}")
    if mismatches:
        raise UserError(". ".join(mismatches))
    if as_json:
        typer.echo(json.dumps({"differences": differences}, indent=1))
        return
    for name, difference in differences.items():
        values = f"{first[name].value:.4g} -> {second[name].value:.4g}"
        typer.echo(f"{name}: {values}, difference {difference:+.4g}")
    for name in set(first) ^ set(second):
        typer.echo(f"{name}: in only one of the files")


def _read_evaluation(path: Path) -> Evaluation:
    """Return an evaluation written with ``--json``.

    Raises:
        UserError: The file cannot be read, or is not an evaluation.
    """
    from growgan.metrics.evaluate import Evaluation

    try:
        data = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as JSON: {error}") from error
    try:
        return Evaluation.from_json(data)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error
