"""``growgan grow`` and ``growgan train``: one run, from images to a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growgan.cli.options import (
    ARCHITECTURE_PANEL,
    CLUSTER_PANEL,
    DATA_HELP,
    DATA_PANEL,
    BudgetOption,
    CpusPerWorkerOption,
    DataArgument,
    DeviceOption,
    DryRunOption,
    ExecutorOption,
    GpusPerWorkerOption,
    ImagesOption,
    MaxBrokenOption,
    OverridesOption,
    RayAddressOption,
    ResolutionOption,
    ResumeOption,
    RunOutOption,
    SeedOption,
)
from growgan.cli.run_command import (
    DEFAULT_MAX_BROKEN,
    drop_unset,
    load_before_start,
    make_ray_options,
    next_run_dir,
    parse_budget,
    reload_args,
    run_with_resume_hint,
)
from growgan.cli.task_run import run_task
from growgan.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    from growgan.config import Settings
    from growgan.data import ImageSet
    from growgan.execution.ray_cluster import RayCluster
    from growgan.search.budget import Budget
    from growgan.tasks import Task

AsyncOption = Annotated[
    bool,
    typer.Option(
        "--async",
        help="Search without rounds: an idle worker immediately receives a new trial.",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        help="Growth policy, which decides when and how the networks grow. See: growgan list"
        " policies.",
        show_default="dynamic",
        rich_help_panel=ARCHITECTURE_PANEL,
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        help="Architecture to start from. See: growgan list presets.",
        show_default="pggan",
        rich_help_panel=ARCHITECTURE_PANEL,
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="Application to train for, like pix2pix:edges. See: growgan list tasks.",
        rich_help_panel=ARCHITECTURE_PANEL,
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Target images paired with DATA, for an image-to-image --task.",
        rich_help_panel=DATA_PANEL,
    ),
]
PresetArgument = Annotated[
    str,
    typer.Argument(
        metavar="PRESET",
        help="Preset or task to train. See: growgan list presets, growgan list tasks.",
    ),
]
TrainDataArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA...",
        help=f"{DATA_HELP} Image-to-image tasks take two: source and target images.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A run as the command line describes it, before any image is read.

    Attributes:
        sources: DATA, then the target images if there are any.
        cli_settings: Settings that have an option of their own.
        overrides: Settings given by ``--set``.
    """

    sources: tuple[str, ...]
    out: Path | None
    resolution: str | None
    budget: str | None
    images: str | None
    cli_settings: Mapping[str, Any]
    overrides: tuple[str, ...]
    resume: bool
    dry_run: bool
    max_broken: float
    task: str | None = None
    cluster: RayCluster | None = None


def grow(
    data: DataArgument,
    resolution: ResolutionOption = None,
    target: TargetOption = None,
    max_broken: MaxBrokenOption = DEFAULT_MAX_BROKEN,
    budget: BudgetOption = None,
    images: ImagesOption = None,
    seed: SeedOption = None,
    preset: PresetOption = None,
    policy: PolicyOption = None,
    task: TaskOption = None,
    overrides: OverridesOption = None,
    out: RunOutOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    device: DeviceOption = None,
    executor: ExecutorOption = "serial",
    ray_address: RayAddressOption = None,
    cpus_per_worker: CpusPerWorkerOption = None,
    gpus_per_worker: GpusPerWorkerOption = 0,
    asynchronous: AsyncOption = False,
) -> None:
    """Grow a GAN on DATA within a budget.

    The networks start small and grow while they train. The run directory holds the checkpoints,
    samples, a log of every decision, and report.html.

    Examples:
        growgan grow photos/ --resolution 64 --budget 2h --out runs/photos
        growgan grow fashion-mnist --images 500k --policy progressive --seed 1
        growgan grow photos/ --out runs/photos --resume
    """
    small_settings = _small_settings(preset or "pggan", task, target)
    request = RunRequest(
        sources=(data, target) if target else (data,),
        out=out,
        resolution=resolution,
        budget=budget,
        images=images,
        cli_settings=drop_unset(preset=preset, policy=policy, seed=seed, device=device),
        overrides=tuple(overrides or ()),
        resume=resume,
        dry_run=dry_run,
        max_broken=max_broken,
        task=task,
        cluster=make_ray_options(
            executor,
            ray_address=ray_address,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            asynchronous=asynchronous,
        ),
    )
    _load_and_run(request, lambda min_side: small_settings)


def train(
    preset: PresetArgument,
    data: TrainDataArgument,
    resolution: ResolutionOption = None,
    max_broken: MaxBrokenOption = DEFAULT_MAX_BROKEN,
    budget: BudgetOption = None,
    images: ImagesOption = None,
    seed: SeedOption = None,
    overrides: OverridesOption = None,
    out: RunOutOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    device: DeviceOption = None,
) -> None:
    """Train a preset or a task with its published settings, without growth.

    Examples:
        growgan train stylegan2 photos/ --resolution 64 --budget 8h
        growgan train dcgan fashion-mnist --resolution 32 --images 500k
        growgan train pix2pix:edges photos/ --resolution 64 --budget 2h
    """
    from growgan.nets.presets import PRESETS

    task = None if preset in PRESETS else _find_task(preset)
    max_sources = 1 if task is None else 2
    if len(data) > max_sources:
        kind = "preset" if task is None else "task"
        raise UserError(
            f"{kind} '{preset}' takes at most {max_sources} DATA, but got {len(data)}:"
            f" {', '.join(data)}"
        )

    def published_settings(min_side: int) -> Mapping[str, Any]:
        if task is not None:
            return {**task.published_settings(min_side), "policy": "fixed"}
        settings = PRESETS[preset].settings_for_side(min_side)
        return {**settings, "preset": preset, "policy": "fixed"}

    request = RunRequest(
        sources=tuple(data),
        out=out,
        resolution=resolution,
        budget=budget,
        images=images,
        cli_settings=drop_unset(seed=seed, device=device),
        overrides=tuple(overrides or ()),
        resume=resume,
        dry_run=dry_run,
        max_broken=max_broken,
        task=preset if task is not None else None,
    )
    _load_and_run(request, published_settings)


def _small_settings(preset: str, task: str | None, target: str | None) -> Mapping[str, Any]:
    """Return the settings that growth starts from.

    Raises:
        UserError: The preset or task is unknown, or there is a target without a task.
    """
    from growgan.config import merge_settings
    from growgan.nets.presets import PRESETS
    from growgan.tasks.base import parse_task

    preset_settings = PRESETS[preset].small_settings
    if task is None:
        if target is not None:
            raise UserError("--target needs a --task; see: growgan list tasks")
        return preset_settings
    task_object, _, variant = parse_task(task)
    return merge_settings(preset_settings, task_object.small_settings(variant))


def _find_task(name: str) -> Task:
    """Return the task called ``name``, which is not a preset.

    Raises:
        UserError: There is no such task.
    """
    from growgan.nets.presets import PRESETS
    from growgan.tasks.base import TASKS

    task_name = name.partition(":")[0]
    if task_name not in TASKS:
        raise unknown_name_error(
            "preset or task", name, [entry.name for entry in (*PRESETS, *TASKS)]
        )
    return TASKS[task_name]


def _load_and_run(
    request: RunRequest, settings_for_side: Callable[[int], Mapping[str, Any]]
) -> None:
    """Check what can be checked before any image is read, load the data, and train.

    Args:
        request: What the command line asks for.
        settings_for_side: Maps the shorter side of the images in pixels, 0 if it is not known yet,
            to the settings to start from.
    """
    from growgan.data import parse_resolution
    from growgan.nets.presets import PRESETS

    _check_run_dir(request)
    resolution = parse_resolution(request.resolution)
    settings = _resolve_settings(request, settings_for_side(min(resolution or (0,))))
    budget = parse_budget(request.budget, request.images, resume=request.resume)
    target_resolution = resolution or settings.resolution
    if target_resolution is not None:
        # Refuse a resolution that the preset cannot reach.
        PRESETS[settings.preset].family.base_grid(settings.network, target_resolution)
    fit = _shared_fit(request.sources, settings.data.fit, target_resolution, settings.data.channels)
    datasets = [
        load_before_start(
            source,
            max_broken=request.max_broken,
            resolution=target_resolution,
            channels=settings.data.channels,
            fit=fit,
        )
        for source in request.sources
    ]
    data = _apply_task(datasets, request.task)
    if resolution is None:
        settings = _resolve_settings(request, settings_for_side(min(data.resolution)))
    if request.dry_run:
        _print_dry_run(data, request.task, settings, budget)
    else:
        _train(request, data, settings, budget)


def _train(request: RunRequest, data: ImageSet, settings: Settings, budget: Budget | None) -> None:
    """Start or resume the run."""
    out = request.out or next_run_dir(data.name)
    data_args = reload_args(request.sources[0], request.max_broken)
    data_args += [f"--target={source}" for source in request.sources[1:]]
    if request.task is None:
        from growgan.run.grow import grow as grow_run

        start_run = partial(
            grow_run,
            data,
            out=out,
            settings=settings,
            budget=budget,
            resume=request.resume,
            cluster=request.cluster,
        )
        run_with_resume_hint(start_run, data=data, out=out, data_args=data_args)
        return
    from growgan.tasks.base import train_task

    start_task = partial(
        train_task,
        request.task,
        data,
        out=out,
        settings=settings,
        budget=budget,
        resume=request.resume,
        cluster=request.cluster,
    )
    run_task(request.task, start_task, data=data, out=out, data_args=data_args)


def _shared_fit(
    sources: tuple[str, ...],
    fit: str,
    resolution: tuple[int, int] | None,
    channels: int | None,
) -> str:
    """Return how images are fitted to the resolution: two sets always in the same way.

    If "auto" would choose differently for the two, both are cropped.
    """
    from growgan.data import default_cache
    from growgan.data.base import SourceContext
    from growgan.data.prepare import make_plan
    from growgan.data.sources import open_source

    if len(sources) < 2 or fit != "auto" or resolution is None:
        return fit
    context = SourceContext(default_cache())
    histograms = [open_source(source, context).size_histogram() for source in sources]
    fits = {make_plan(histogram, resolution, channels).fit for histogram in histograms}
    return fit if len(fits) == 1 else "crop"


def _print_dry_run(
    data: ImageSet, task: str | None, settings: Settings, budget: Budget | None
) -> None:
    from growgan.cli.dry_run import print_training_cost
    from growgan.run.validation import derive_network_settings
    from growgan.tasks.base import parse_task

    if task is not None:
        task_object, _, variant = parse_task(task)
        data = task_object.shape_placeholder(data, variant)
    print_training_cost(data, derive_network_settings(settings, data), budget)


def _apply_task(datasets: list[ImageSet], task: str | None) -> ImageSet:
    """Return the training images; for an image-to-image task, with their source images."""
    if task is None:
        return datasets[0]
    from growgan.tasks.base import prepare_task_data

    return prepare_task_data(task, *datasets)


def _check_run_dir(request: RunRequest) -> None:
    """Check that the run can be started or resumed in ``--out``.

    Raises:
        UserError: ``--out`` is taken, or a resumed run is given options it cannot change.
    """
    from growgan.run.run_directory import check_run_dir

    if request.resume:
        if request.out is None:
            raise UserError("--resume needs --out RUN, the run to resume")
        fixed_options = [f"--{name}" for name in request.cli_settings if name != "device"]
        fixed_options += ["--set"] if request.overrides else []
        if fixed_options:
            raise UserError(
                f"a resumed run keeps its settings: remove {' and '.join(fixed_options)}"
            )
    if request.out is not None and not request.dry_run:
        check_run_dir(request.out, None, resume=request.resume)


def _resolve_settings(request: RunRequest, preset_settings: Mapping[str, Any]) -> Settings:
    """Return the checked settings: those of the resumed run, or those of a new one."""
    from growgan.config import Settings, make_settings
    from growgan.run.validation import validate_settings

    config_path = request.out / "config.yaml" if request.resume and request.out else None
    if config_path is not None and config_path.exists():
        # Only the device may differ from the original run.
        settings = Settings.from_yaml(config_path).model_copy(update=dict(request.cli_settings))
    else:
        settings = make_settings(preset_settings, request.cli_settings, overrides=request.overrides)
    return validate_settings(settings)
