"""``growgan grow`` and ``growgan train``: one run, from images to a report."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growgan.errors import UserError, unknown

if TYPE_CHECKING:
    from growgan.config import Settings
    from growgan.data import ImageSet
    from growgan.growth import Run
    from growgan.growth.budget import Budget
    from growgan.growth.cluster import Cluster
    from growgan.tasks import Task

Data = Annotated[str, typer.Argument(help="folder, zip, .npz, IDX file or a dataset's name")]
Out = Annotated[Path | None, typer.Option(help="run directory; default: a new one in runs/")]
Resolution = Annotated[str | None, typer.Option(help="32, or HxW like 48x32")]
Wall = Annotated[str | None, typer.Option(help="wall clock, everything counted: 90s, 10m, 2h")]
Count = Annotated[str | None, typer.Option(help="instead: images trained on, like 500k")]
Seed = Annotated[int | None, typer.Option(help="decides all that is random; default: 0")]
Device = Annotated[str | None, typer.Option(help="auto (the default), cpu, cuda or mps")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value; reaches every setting")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with the run in --out")]
Dry = Annotated[bool, typer.Option("--dry-run", help="show the stages and their cost, then stop")]
Executor = Annotated[str, typer.Option(help="serial, or ray: children are trained by workers")]
Address = Annotated[str | None, typer.Option(help="of a Ray cluster; default: this machine alone")]
Cpus = Annotated[
    int | None,
    typer.Option(min=1, help="that each child takes; default: its GPUs' share, without GPUs 1"),
]
Gpus = Annotated[float, typer.Option(min=0, help="that each child takes on the cluster")]
Free = Annotated[
    bool, typer.Option("--free", help="no rounds: a free worker takes the next proposal at once")
]
Policy = Annotated[str | None, typer.Option(help="see: growgan list policies")]
Preset = Annotated[str | None, typer.Option(help="see: growgan list presets; default: pggan")]
TaskName = Annotated[
    str | None,
    typer.Option("--task", help="what the GAN is for, like pix2pix:edges; see: growgan list tasks"),
]
Truth = Annotated[
    str | None, typer.Option(help="of a task: what the images of DATA become, one by one")
]
Broken = Annotated[float, typer.Option(help="share of broken files that is tolerated")]

NOTHING = "nothing had begun; give the same command again"


def grow(
    data: Data,
    out: Out = None,
    policy: Policy = None,
    resolution: Resolution = None,
    preset: Preset = None,
    task: TaskName = None,
    truth: Truth = None,
    budget: Wall = None,
    images: Count = None,
    seed: Seed = None,
    device: Device = None,
    set_: Set = None,
    resume: Resume = False,
    dry_run: Dry = False,
    max_broken: Broken = 0.05,
    executor: Executor = "serial",
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = 0,
    free: Free = False,
) -> None:
    """Grow a GAN on DATA within a budget."""
    given = options_given(preset=preset, policy=policy, seed=seed, device=device)
    small = _small(preset or "pggan", task, truth)
    _run(
        [data, *([truth] if truth else [])],
        out,
        lambda side: small,
        given,
        resolution,
        budget,
        images,
        set_,
        resume,
        dry_run,
        max_broken,
        cluster_of(executor, address, gpus, free, cpus),
        task,
    )


def train(
    preset: Annotated[str, typer.Argument(help="or a task; see: growgan list presets, list tasks")],
    data: Annotated[
        list[str], typer.Argument(help="as for grow; some tasks take two: given, and truth")
    ],
    out: Out = None,
    resolution: Resolution = None,
    budget: Wall = None,
    images: Count = None,
    seed: Seed = None,
    device: Device = None,
    set_: Set = None,
    resume: Resume = False,
    dry_run: Dry = False,
    max_broken: Broken = 0.05,
) -> None:
    """Train PRESET, or a task, on DATA as published, without growth."""
    from growgan.nets.presets import PRESETS

    task = None if preset in PRESETS else _task(preset)
    if task is None and len(data) > 1:
        raise UserError(f"preset '{preset}' takes one DATA, but got {len(data)}: {', '.join(data)}")
    if len(data) > 2:
        raise UserError(f"a task takes one DATA or two, but got {len(data)}: {', '.join(data)}")

    def start(side: int) -> dict[str, Any]:
        if task is not None:
            return {**task.start(side), "policy": "fixed"}
        return {**PRESETS[preset].settings(side), "preset": preset, "policy": "fixed"}

    given, named = options_given(seed=seed, device=device), preset if task else None
    fixed = (resolution, budget, images, set_, resume, dry_run, max_broken, None, named)
    _run(data, out, start, given, *fixed)


def _small(preset: str, task: str | None, truth: str | None) -> Mapping[str, Any]:
    """Return the settings that growth begins with; raise a UserError for a truth of no task."""
    from growgan.config import merged
    from growgan.nets.presets import PRESETS

    small = PRESETS[preset].small
    if task is None and truth is not None:
        raise UserError("--truth is of a --task; see: growgan list tasks")
    if task is None:
        return small
    from growgan.tasks.base import named

    found, _, kind = named(task)
    return merged(small, found.beginning(kind))


def _task(name: str) -> Task:
    """Return the task of a name that is no preset; raise a UserError if there is none."""
    from growgan.nets.presets import PRESETS
    from growgan.tasks.base import TASKS

    if (found := name.partition(":")[0]) in TASKS:
        return TASKS[found]
    raise unknown("preset or task", name, [e.name for e in (*PRESETS, *TASKS)])


def _run(
    sources: list[str],
    out: Path | None,
    start: Callable[[int], Mapping[str, Any]],
    given: dict[str, Any],
    resolution: str | None,
    budget: str | None,
    images: str | None,
    overrides: list[str] | None,
    resume: bool,
    dry_run: bool,
    max_broken: float,
    cluster: Cluster | None = None,
    task: str | None = None,
) -> None:
    """Check everything that can be checked, then load the data, then start.

    ``start`` gives the settings to start from, by the smaller side of the images.
    """
    from growgan.data import parse_resolution
    from growgan.nets.presets import PRESETS

    kept = [f"--{name}" for name in given if name != "device"] + ["--set"] * bool(overrides)
    _check_place(out, resume, kept, dry_run)
    known, told = out if resume else None, parse_resolution(resolution)
    settings = _settings(known, start(min(told or (0,))), given, overrides)
    limit = limit_of(budget, images, resume)
    size = told or settings.resolution
    if size is not None:
        # Say what cannot be reached before any image is read.
        PRESETS[settings.preset].family.base(settings.stack, size)
    form = _one_fit(sources, settings.data.model_dump() | {"resolution": size})
    found = _made_ready([loaded(each, max_broken, **form) for each in sources], task)
    if told is None:
        settings = _settings(known, start(min(found.resolution)), given, overrides)
    if dry_run:
        _show(found, task, settings, limit)
        return
    how: dict[str, Any] = {"settings": settings, "budget": limit, "resume": resume}
    how["cluster"] = cluster
    again = loading(sources[0], max_broken) + [f"--truth={each}" for each in sources[1:]]
    _carried(task)(found, out or free_folder(found.name), again, **how)


def _one_fit(sources: list[str], form: dict[str, Any]) -> dict[str, Any]:
    """Return how images are loaded: where two sets would each be fitted otherwise, both cropped."""
    from growgan.data import default_cache
    from growgan.data.prepare import make_plan
    from growgan.data.sources import Request, open_source

    if len(sources) < 2 or form["fit"] != "auto" or form["resolution"] is None:
        return form
    surveys = [open_source(each, Request(default_cache())).survey() for each in sources]
    fits = {make_plan(each, form["resolution"], form["channels"]).fit for each in surveys}
    return form if len(fits) == 1 else {**form, "fit": "crop"}


def _carried(task: str | None) -> Callable[..., None]:
    """Return what carries out a run, or a task's."""
    if task is None:
        from growgan.growth import grow as make

        return partial(carry_out, make)
    from growgan.cli.task import carry_out_task

    return partial(carry_out_task, task)


def _show(data: ImageSet, task: str | None, settings: Settings, limit: Budget | None) -> None:
    """Print what a run would cost."""
    from growgan.cli.dry_run import show_stages
    from growgan.growth.run import for_data
    from growgan.tasks.base import named

    if task is not None:
        found, _, kind = named(task)
        data = found.outline(data, kind)
    show_stages(data, for_data(settings, data), limit)


def _made_ready(sets: list[ImageSet], task: str | None) -> ImageSet:
    """Return the images to make, each with the one that a task makes it from."""
    if task is None:
        return sets[0]
    from growgan.tasks.base import prepare

    return prepare(task, *sets)


def cluster_of(
    executor: str, address: str | None, gpus: float, free: bool, cpus: int | None
) -> Cluster | None:
    """Return the workers that the options name, None for this process."""
    if executor == "ray":
        from growgan.growth.cluster import Cluster

        return Cluster(address, cpus=cpus, gpus=gpus, free=free)
    if executor != "serial":
        raise unknown("executor", executor, ("serial", "ray"))
    if address is not None or cpus or gpus or free:
        raise UserError("--address, --cpus, --gpus and --free are of --executor ray")
    return None


def _check_place(out: Path | None, resume: bool, kept: list[str], dry_run: bool) -> None:
    """Raise a UserError where ``out`` is taken, or ``kept`` options do not fit a resumed run."""
    from growgan.growth.run import check_out

    if resume and out is None:
        raise UserError("--resume needs --out RUN, the run to go on with")
    if resume and kept:
        raise UserError(f"a resumed run keeps its settings: leave out {' and '.join(kept)}")
    if out is not None and not dry_run:
        check_out(out, None, resume=resume)


def loaded(source: str, max_broken: float, **how: Any) -> ImageSet:
    """Return the images; interrupted here, a run has not begun."""
    from growgan.data import load_images

    try:
        return load_images(source, max_broken=max_broken, **how)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(NOTHING) from None


def loading(source: str, max_broken: float) -> list[str]:
    """Return the words of a command that load ``source`` again."""
    return [source] if max_broken == 0.05 else [source, "--max-broken", f"{max_broken:g}"]


def options_given(**options: str | int | None) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _settings(
    resumed: Path | None,
    start: Mapping[str, Any],
    given: dict[str, Any],
    overrides: list[str] | None,
) -> Settings:
    """Return the settings of the run that is resumed, or of a new one; every name is known."""
    from growgan.config import Settings, make_settings
    from growgan.growth.run import check_names

    if resumed is not None and (resumed / "config.yaml").exists():
        settings = Settings.from_yaml(resumed / "config.yaml")
        settings = settings.model_copy(update=given)  # at most another device
    else:
        settings = make_settings(start, given, overrides=overrides or ())
    return check_names(settings)


def limit_of(budget: str | None, images: str | None, resume: bool) -> Budget | None:
    """Return the budget: ten minutes by default, None for that of the run that is resumed."""
    from growgan.growth.budget import Budget, parse_count

    if images is not None and budget is not None:
        raise UserError("give either --budget or --images, not both")
    if images is not None:
        return Budget(images=parse_count(images))
    if budget is None and resume:
        return None
    return Budget.parse(budget or "10m")


def carry_out(
    make: Callable[..., Run], data: ImageSet, out: Path, source: list[str], **how: Any
) -> None:
    """Call ``make`` for a run in ``out``, and say how it goes on where it does not end.

    ``source`` are the words of a command that load the same data.
    """
    from safetensors import SafetensorError

    from growgan.cli.display import make_display
    from growgan.growth.place import begun
    from growgan.training.ranks import join

    size = "x".join(str(side) for side in data.resolution)
    words = ["growgan", "grow", *source, "--resolution", size, "--out", str(out), "--resume"]
    again = f"go on with: {shlex.join(words)}"
    try:
        made = make(data, out=out, display=make_display(quiet=not join().first), **how)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(again if begun(out) else NOTHING) from None
    except (OSError, SafetensorError) as error:
        raise RuntimeError(f"{error}; once '{out}' can be written, {again}") from error
    if not join().first:
        return  # what there is to say the first rank says
    ended = made.events[-1]
    if ended.get("stopped"):
        raise RuntimeError(f"the run was stopped before its budget was spent: {ended['stopped']}")


def free_folder(name: str) -> Path:
    """Return the first folder ``runs/NAME-N`` that does not exist."""
    stem = re.sub(r"[^\w.-]+", "-", Path(name).stem) or "run"
    number = 1
    while (path := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return path
