"""``growgan per-class``: train one Wasserstein GAN per class, each in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from growgan.cli import subprocess_main
from growgan.cli.options import (
    BUDGET_PANEL,
    CLUSTER_PANEL,
    DATA_PANEL,
    CpusPerWorkerOption,
    DataArgument,
    ExecutorOption,
    GpusPerWorkerOption,
    MaxBrokenOption,
    OverridesOption,
    RayAddressOption,
    ResolutionOption,
    RunOutOption,
    SeedOption,
)
from growgan.cli.run_command import (
    DEFAULT_BUDGET,
    DEFAULT_MAX_BROKEN,
    load_before_start,
    make_ray_options,
    next_run_dir,
)
from growgan.errors import UserError

if TYPE_CHECKING:
    from growgan.artifacts.per_class_ensemble import PerClassEnsemble
    from growgan.execution.ray_cluster import RayCluster

# Settings of each run unless others are given. The score "swd" needs no feature extractor, which
# each run would have to train first.
DEFAULT_OVERRIDES = ("loss=wasserstein", "regularizers=gp,drift", "score.kind=swd")
WAIT_INTERVAL_SECONDS = 0.5  # between two checks whether to stop a running process


BudgetPerClassOption = Annotated[
    str,
    typer.Option(
        help="Wall-clock time for each class: 90s, 10m, 2h.", rich_help_panel=BUDGET_PANEL
    ),
]
ImagesPerClassOption = Annotated[
    str | None,
    typer.Option(
        help="Budget of each class in training images instead of time, like 500k.",
        rich_help_panel=BUDGET_PANEL,
    ),
]
JobsOption = Annotated[
    int,
    typer.Option(
        min=1,
        help="Number of classes that this machine trains at the same time.",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
OnlyClassOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Train only the class with this index, for example in a job array.",
        show_default="all classes",
        rich_help_panel=DATA_PANEL,
    ),
]


@dataclass(frozen=True)
class RunOptions:
    """Options that the runs of all classes share, as on the command line."""

    preset: str
    source: str
    resolution: str
    max_broken: float
    seed: int
    budget: str | None
    images: str | None

    def train_command(self, out: Path, overrides: Sequence[str]) -> list[str]:
        """Return the arguments of ``growgan`` that start a run in ``out``."""
        budget = ["--images", self.images] if self.images else ["--budget", str(self.budget)]
        return [
            *("train", self.preset, *self._data_args(), *budget),
            *("--seed", str(self.seed), "--out", str(out)),
            *(argument for override in overrides for argument in ("--set", override)),
        ]

    def resume_command(self, out: Path) -> list[str]:
        """Return the arguments of ``growgan`` that resume the run in ``out``."""
        return ["grow", *self._data_args(), "--out", str(out), "--resume"]

    def _data_args(self) -> list[str]:
        max_broken = f"{self.max_broken:g}"
        return [self.source, "--resolution", self.resolution, "--max-broken", max_broken]


def per_class(
    preset: Annotated[
        str, typer.Argument(metavar="PRESET", help="Architecture. See: growgan list presets.")
    ],
    data: DataArgument,
    out: RunOutOption = None,
    resolution: ResolutionOption = None,
    budget: BudgetPerClassOption = DEFAULT_BUDGET,
    images: ImagesPerClassOption = None,
    jobs: JobsOption = 1,
    only_class: OnlyClassOption = None,
    executor: ExecutorOption = "serial",
    ray_address: RayAddressOption = None,
    cpus_per_worker: CpusPerWorkerOption = None,
    gpus_per_worker: GpusPerWorkerOption = 0,
    seed: SeedOption = None,
    overrides: OverridesOption = None,
    max_broken: MaxBrokenOption = DEFAULT_MAX_BROKEN,
) -> None:
    """Train one GAN of PRESET for each class of DATA.

    Each class trains in its own process, without communication. To resume after an interruption,
    run the same command again; finished classes are skipped. growgan sample OUT and growgan
    evaluate OUT DATA use all classes equally.

    With --executor ray, the workers must find DATA and OUT at the same paths as this machine.

    Examples:
        growgan per-class sngan photos/ --resolution 64 --budget 30m --out runs/classes
        growgan per-class pggan digits --images 100k --jobs 2
        growgan per-class pggan digits --out runs/digits --only-class 3
    """
    from growgan.artifacts.per_class_ensemble import create_or_open
    from growgan.data import parse_resolution
    from growgan.nets.presets import PRESETS
    from growgan.report.formatting import format_resolution

    PRESETS[preset]  # raises an error for an unknown preset
    image_set = load_before_start(
        data, max_broken=max_broken, resolution=parse_resolution(resolution)
    )
    if image_set.labels is None or not image_set.classes:
        raise UserError(
            f"'{image_set.name}' has no labels; put the images of each class in a folder of its own"
        )
    labels = _class_indices(only_class, len(image_set.classes))
    cluster = make_ray_options(
        executor,
        ray_address=ray_address,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
    )
    options = RunOptions(
        preset=preset,
        source=data,
        resolution=format_resolution(image_set.resolution),
        max_broken=max_broken,
        seed=seed or 0,
        budget=None if images else budget,
        images=images,
    )
    manifest = {
        "classes": list(image_set.classes),
        **asdict(options),
        "overrides": list(overrides or []),
    }
    ensemble = create_or_open(out or next_run_dir(f"{image_set.name}-per-class"), manifest)
    _train_unfinished(
        ensemble,
        labels,
        options=options,
        overrides=[*DEFAULT_OVERRIDES, *_resource_overrides(cluster, jobs), *(overrides or [])],
        cluster=cluster,
        jobs=jobs,
    )
    typer.echo(f"{ensemble.path}: {len(labels)} of {len(image_set.classes)} classes are trained")


def train_class(
    ensemble: PerClassEnsemble,
    label: int,
    *,
    options: RunOptions,
    overrides: Sequence[str],
    stop: Event | None = None,
) -> bool:
    """Train a class in a subprocess, or resume its run; return whether it succeeded.

    If this call is interrupted or ``stop`` is set, the subprocess saves its state and ends. If this
    process dies, so does the subprocess.

    Args:
        ensemble: The ensemble.
        label: Index of the class.
        options: Options of the run.
        overrides: Settings of a new run, each ``key=value``.
        stop: An event that stops the training.

    Raises:
        UserError: This machine does not see the folder of the ensemble.
    """
    if not ensemble.is_ensemble(ensemble.path):
        raise UserError(
            f"a worker cannot see '{ensemble.path}'; put --out on a disk that all machines share"
        )
    run_dir = ensemble.run_dir(label)
    if ensemble.has_started(label):
        command = options.resume_command(run_dir)
    else:
        command = options.train_command(run_dir, [*overrides, f"labels.only_class={label}"])
    with ensemble.log_path(label).open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", subprocess_main.__name__, str(os.getpid()), *command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C in the terminal does not reach it directly
        )
    return _wait_or_terminate(process, stop) == 0


def _wait_or_terminate(process: subprocess.Popen[bytes], stop: Event | None) -> int:
    """Wait for a process to end, or end it if ``stop`` is set; return its exit code."""
    try:
        while not (stop and stop.is_set()):
            with suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=WAIT_INTERVAL_SECONDS)
    finally:
        process.terminate()  # does nothing if it has ended
        process.wait()
    return process.returncode


def _resource_overrides(cluster: RayCluster | None, jobs: int) -> list[str]:
    """Return the settings that give each run its share of a machine."""
    from growgan.data.parallel import num_available_cores

    if cluster is None:
        return [f"threads={max(1, num_available_cores() // jobs)}"]
    threads = f"threads={cluster.cpus_per_trial or 1}"
    # Without GPUs of their own, all runs on a machine would share its first one.
    return [threads] if cluster.gpus_per_trial else [threads, "device=cpu"]


def _class_indices(only_class: int | None, num_classes: int) -> Sequence[int]:
    """Return the classes to train: all, or one."""
    if only_class is None:
        return range(num_classes)
    if only_class >= num_classes:
        raise UserError(f"--only-class must be at most {num_classes - 1}, but got {only_class}")
    return [only_class]


def _train_unfinished(
    ensemble: PerClassEnsemble,
    class_indices: Sequence[int],
    *,
    options: RunOptions,
    overrides: Sequence[str],
    cluster: RayCluster | None,
    jobs: int,
) -> None:
    """Train the classes that are not finished, on a cluster or on this machine."""
    unfinished = [label for label in class_indices if not ensemble.is_finished(label)]
    try:
        if cluster is None:
            _train_locally(ensemble, unfinished, options=options, overrides=overrides, jobs=jobs)
        else:
            _train_on_ray(
                ensemble, unfinished, options=options, overrides=overrides, cluster=cluster
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to resume") from None


def _train_locally(
    ensemble: PerClassEnsemble,
    class_indices: Sequence[int],
    *,
    options: RunOptions,
    overrides: Sequence[str],
    jobs: int,
) -> None:
    """Train classes on this machine, ``jobs`` at a time. If interrupted, let them save."""
    stop = Event()
    train = partial(train_class, ensemble, options=options, overrides=overrides, stop=stop)
    with ThreadPoolExecutor(jobs) as threads:
        try:
            _report_results(ensemble, class_indices, threads.map(train, class_indices))
        finally:
            stop.set()


def _train_on_ray(
    ensemble: PerClassEnsemble,
    class_indices: Sequence[int],
    *,
    options: RunOptions,
    overrides: Sequence[str],
    cluster: RayCluster,
) -> None:
    """Train classes on the workers of a cluster. They have other working directories."""
    from growgan.execution.ray_map import map_on_workers

    if Path(options.source).exists():
        options = replace(options, source=str(Path(options.source).resolve()))
    ensemble = replace(ensemble, path=ensemble.path.resolve())
    train = partial(train_class, ensemble, options=options, overrides=overrides)
    _report_results(ensemble, class_indices, map_on_workers(cluster, train, class_indices))


def _report_results(
    ensemble: PerClassEnsemble, class_indices: Sequence[int], results: Iterable[bool]
) -> None:
    """Print whether each class succeeded, as soon as it is known.

    Raises:
        RuntimeError: Some classes failed.
    """
    failed = []
    for label, succeeded in zip(class_indices, results, strict=True):
        name = ensemble.classes[label]
        typer.echo(f"class {label}, {name}: {'done' if succeeded else 'failed'}")
        if not succeeded:
            failed.append(f"{label} ({name})")
    if failed:
        raise RuntimeError(
            f"these classes failed: {', '.join(failed)}; see '{ensemble.path}/class-*.log'"
        )
