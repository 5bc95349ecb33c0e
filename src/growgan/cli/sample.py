"""``growgan sample``: generate images from a run, an ensemble or an export."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growgan.cli.options import OUTPUT_PANEL, CandidateOption
from growgan.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from growgan.artifacts.per_class_ensemble import PerClassEnsemble
    from growgan.sampling.trained_generator import ImageArray, SampleSpec, TrainedGenerator

SHEET_COLUMNS = 8  # images in a row of a comparison sheet

LATENT_PANEL = "Latents"
CLASS_PANEL = "Classes and source images"
COMPARISON_PANEL = "Comparison with the training images"

SamplesOutOption = Annotated[
    str,
    typer.Option(
        help="File or folder to write: FILE.png (a grid), FILE.npz, FILE.zip or FOLDER.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
CountOption = Annotated[
    int,
    typer.Option("-n", "--count", min=1, help="Number of images.", rich_help_panel=OUTPUT_PANEL),
]
SampleSeedOption = Annotated[
    int,
    typer.Option(
        min=0, max=2**32 - 1, help="Random seed of the latents.", rich_help_panel=LATENT_PANEL
    ),
]
TruncationOption = Annotated[
    float | None,
    typer.Option(
        help="Redraw latent values beyond this many standard deviations. With a mapping network,"
        " the factor by which styles keep their distance to the mean style.",
        rich_help_panel=LATENT_PANEL,
    ),
]
InterpolateOption = Annotated[
    str | None,
    typer.Option(
        metavar="INDICES",
        help="Interpolate from each image to the next: indices like 3,17,5.",
        rich_help_panel=LATENT_PANEL,
    ),
]
StepsOption = Annotated[
    int,
    typer.Option(
        min=1,
        help="Number of images from one index, class or end to the next.",
        rich_help_panel=LATENT_PANEL,
    ),
]
LatentArithmeticOption = Annotated[
    str | None,
    typer.Option(
        metavar="INDICES",
        help="Add and subtract mean latents of sets of images: 1,2,3-4,5,6+7,8,9.",
        rich_help_panel=LATENT_PANEL,
    ),
]
StyleMixOption = Annotated[
    str | None,
    typer.Option(
        metavar="INDICES",
        help="Mix the coarse styles of some images with the fine styles of others: 0,1,2:3,4.",
        rich_help_panel=LATENT_PANEL,
    ),
]
TraverseCodeOption = Annotated[
    int | None,
    typer.Option(
        metavar="CODE",
        help="Vary this continuous code of an infogan run from -2 to 2, for eight latents.",
        rich_help_panel=LATENT_PANEL,
    ),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        help="Class labels to draw in turn, like 0,3.",
        show_default="all classes",
        rich_help_panel=CLASS_PANEL,
    ),
]
InterpolateClassesOption = Annotated[
    str | None,
    typer.Option(
        metavar="LABELS",
        help="Interpolate from each class to the next, for eight latents: labels like 0,3,5.",
        rich_help_panel=CLASS_PANEL,
    ),
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Source images of an image-to-image run, used in turn.",
        rich_help_panel=CLASS_PANEL,
    ),
]
CaptionOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Caption for a text2image run; several are used in turn.",
        rich_help_panel=CLASS_PANEL,
    ),
]
NearestOption = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Show the nearest training image below each sample. DATA is what RUN was trained on.",
        rich_help_panel=COMPARISON_PANEL,
    ),
]
TruncationSweepOption = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Show a row of 8 samples for each truncation, and print precision and recall of 2,000"
        " samples. DATA is what RUN was trained on.",
        rich_help_panel=COMPARISON_PANEL,
    ),
]


def sample(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Run directory, export, or hub:USER/NAME.")
    ],
    count: CountOption = 64,
    out: SamplesOutOption = "samples.png",
    candidate: CandidateOption = None,
    seed: SampleSeedOption = 0,
    truncation: TruncationOption = None,
    interpolate: InterpolateOption = None,
    steps: StepsOption = 8,
    latent_arithmetic: LatentArithmeticOption = None,
    style_mix: StyleMixOption = None,
    traverse_code: TraverseCodeOption = None,
    labels: LabelsOption = None,
    interpolate_classes: InterpolateClassesOption = None,
    source: SourceOption = None,
    caption: CaptionOption = None,
    nearest: NearestOption = None,
    truncation_sweep: TruncationSweepOption = None,
) -> None:
    """Generate images from the best generator of RUN, and print the path.

    An index names an image that the same -n and --seed generate. Indices count from 0, row by row.

    Examples:
        growgan sample runs/photos -n 100 --out samples.png
        growgan sample runs/photos --interpolate 3,17,5 --steps 12
        growgan sample runs/photos --labels 0,3 --truncation 0.7 --out samples.npz
    """
    from growgan.artifacts.load import load
    from growgan.report.image_files import write_images
    from growgan.sampling.trained_generator import TrainedGenerator

    generator = load(run, candidate)
    modes = {
        "interpolate": interpolate,
        "latent-arithmetic": latent_arithmetic,
        "style-mix": style_mix,
        "traverse-code": traverse_code,
        "interpolate-classes": interpolate_classes,
        "nearest": nearest,
        "truncation-sweep": truncation_sweep,
    }
    mode = _check_exclusive(generator, modes, {"source": source, "caption": caption})
    sample_spec: SampleSpec = {
        "count": count,
        "seed": seed,
        "truncation": truncation,
        "labels": None if labels is None else _parse_indices("labels", labels),
    }
    _check_fixed_by_mode(mode, sample_spec)
    columns = image_labels = None
    if isinstance(generator, TrainedGenerator) and mode is not None:
        images, columns = _sample_mode(generator, mode, modes[mode], steps, sample_spec)
    else:
        images, image_labels = _sample_images(generator, sample_spec, source, caption or [])
    typer.echo(str(write_images(images.transpose(0, 3, 1, 2), image_labels, out, columns)))


def _check_exclusive(
    generator: TrainedGenerator | PerClassEnsemble,
    modes: Mapping[str, object],
    inputs: Mapping[str, object],
) -> str | None:
    """Return the name of the mode that was chosen, None for plain samples.

    Raises:
        UserError: Several modes or inputs were chosen, or one that an ensemble lacks.
    """
    from growgan.artifacts.per_class_ensemble import PerClassEnsemble

    chosen = [name for name, value in {**modes, **inputs}.items() if value is not None]
    options = " and ".join(f"--{name}" for name in chosen)
    if isinstance(generator, PerClassEnsemble) and chosen:
        raise UserError(f"a per-class ensemble does not support {options}")
    if len(chosen) > 1:
        raise UserError(f"{options} cannot be combined")
    return next((name for name in chosen if name in modes), None)


def _check_fixed_by_mode(mode: str | None, sample_spec: SampleSpec) -> None:
    """Raise a UserError for an option that the mode sets itself."""
    fixed_by_mode = {
        "truncation-sweep": ("truncation", "labels"),
        "interpolate-classes": ("labels",),
        "traverse-code": ("labels",),
    }
    for name in fixed_by_mode.get(mode or "", ()):
        if sample_spec.get(name) is not None:
            raise UserError(f"--{mode} and --{name} cannot be combined")


def _sample_images(
    generator: TrainedGenerator | PerClassEnsemble,
    sample_spec: SampleSpec,
    source: str | None,
    captions: list[str],
) -> tuple[ImageArray, NDArray[np.int64] | None]:
    """Return images uint8 [N, H, W, C], and their labels int64 [N] if there are any."""
    from growgan.sampling.trained_generator import TrainedGenerator

    count, labels = sample_spec["count"], sample_spec["labels"]
    if isinstance(generator, TrainedGenerator) and (source or captions):
        source_images = _load_source_images(generator, source, captions, count, sample_spec["seed"])
        images = generator.sample(**sample_spec, source_images=source_images)
        return images, generator.sample_labels(count, labels, source_images)
    return generator.sample(**sample_spec), generator.sample_labels(count, labels)


def _load_source_images(
    generator: TrainedGenerator, source: str | None, captions: list[str], count: int, seed: int
) -> ImageArray:
    """Return the images to translate, or those that captions stand for, uint8 [K, H, W, C]."""
    if not source:
        from growgan.tasks.text2image import sources_for_captions

        return sources_for_captions(generator, captions, count, seed)
    from growgan.data import load_images

    channels = generator.load_network().spec.source_channels
    if not channels:
        raise UserError(f"--source: run '{generator.run_dir}' does not take source images")
    if channels not in (1, 3, 4):
        raise UserError(
            f"--source: run '{generator.run_dir}' takes sources with {channels} channels, which no"
            " image file holds"
        )
    images = load_images(source, **{**generator.load_args, "channels": channels})
    return images.images.transpose(0, 2, 3, 1)


def _sample_mode(
    generator: TrainedGenerator, mode: str, value: Any, steps: int, sample_spec: SampleSpec
) -> tuple[ImageArray, int]:
    """Return the images of a mode, uint8 [N, H, W, C], and the number of columns of their grid."""
    seed, truncation = sample_spec["seed"], sample_spec["truncation"]
    if mode in ("nearest", "truncation-sweep"):
        return _compare_with_data(generator, mode, value, sample_spec)
    if mode == "interpolate":
        return generator.interpolate(_parse_indices(mode, value), steps, **sample_spec), steps
    if mode == "interpolate-classes":
        labels = _parse_indices(mode, value)
        images = generator.interpolate_classes(labels, steps, seed=seed, truncation=truncation)
        return images, (len(labels) - 1) * steps + 1
    if mode == "traverse-code":
        images = generator.traverse_code(value, steps, seed=seed, truncation=truncation)
        return images, steps + 1
    if mode == "latent-arithmetic":
        added, subtracted = _parse_signed_sets(value)
        return generator.latent_arithmetic(added, subtracted, **sample_spec), 3
    coarse, colon, fine = value.partition(":")
    if not colon:
        raise UserError(f"--style-mix must be two lists of indices like 0,1:2,3, but got '{value}'")
    fine_indices = _parse_indices(mode, fine)
    images = generator.style_mix(_parse_indices(mode, coarse), fine_indices, **sample_spec)
    return images, len(fine_indices)


def _compare_with_data(
    generator: TrainedGenerator, mode: str, source: str, sample_spec: SampleSpec
) -> tuple[ImageArray, int]:
    """Return samples above their nearest training images, or a row for each truncation."""
    import numpy as np

    from growgan.artifacts.gallery import nearest_images, truncation_curve
    from growgan.artifacts.run_features import comparison_extractor
    from growgan.run.run import Run

    run, data = Run.open(generator.run_dir), generator.load_data(source)
    extractor = comparison_extractor(run, generator, data)
    if mode == "nearest":
        columns = min(sample_spec["count"], SHEET_COLUMNS)
        padding = ((0, -sample_spec["count"] % columns), (0, 0), (0, 0), (0, 0))
        samples, nearest = (
            np.pad(images, padding)
            for images in nearest_images(generator, data, extractor, **sample_spec)
        )
        rows = [images.reshape(-1, columns, *images.shape[1:]) for images in (samples, nearest)]
        pairs = np.stack(rows, axis=1)  # (row, sample or nearest, column, H, W, C)
        return pairs.reshape(-1, *pairs.shape[3:]), columns
    typer.echo("truncation  precision  recall")
    sheet = []
    for point in truncation_curve(generator, data, extractor, sample_spec["seed"]):
        truncation = point["truncation"]
        name = "none" if truncation is None else f"{truncation:g}"
        typer.echo(f"{name:>10}  {point['precision']:9.1%}  {point['recall']:6.1%}")
        sheet.append(
            generator.sample(SHEET_COLUMNS, seed=sample_spec["seed"], truncation=truncation)
        )
    return np.concatenate(sheet), SHEET_COLUMNS


def _parse_signed_sets(text: str) -> tuple[list[list[int]], list[list[int]]]:
    """Return the sets of indices to add and those to subtract, of a text like 0,1+2,3-4,5."""
    if not re.fullmatch(r"[+-]?[\d,]+([+-][\d,]+)*", text):
        raise UserError(
            f"--latent-arithmetic must be sets of indices like 0,1+2,3-4,5, but got '{text}'"
        )
    added: list[list[int]] = []
    subtracted: list[list[int]] = []
    for sign, indices in re.findall(r"([+-]?)([^+-]+)", text):
        target = subtracted if sign == "-" else added
        target.append(_parse_indices("latent-arithmetic", indices))
    return added, subtracted


def _parse_indices(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--{option} must be integers like 3,17,5, but got '{text}'") from None
