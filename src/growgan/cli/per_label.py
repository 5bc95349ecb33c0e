"""``growgan per-label``: one Wasserstein pair for each label, each alone in its own process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from growgan.cli.grow import (
    Address,
    Broken,
    Cpus,
    Data,
    Executor,
    Gpus,
    Out,
    Resolution,
    Seed,
    Set,
    cluster_of,
    free_folder,
    loaded,
)
from growgan.errors import UserError

if TYPE_CHECKING:
    from growgan.growth.cluster import Cluster
    from growgan.growth.pool import Pool

# Of each label's run, where nothing else is asked for: a critic with a penalty on its gradient, and
# a score that no network must be trained for first.
USUAL = ("loss=wasserstein", "regularisers=gp,drift", "score.kind=swd")


Wall = Annotated[str, typer.Option(help="wall clock of each label: 90s, 10m, 2h")]
Count = Annotated[str | None, typer.Option(help="instead: images each label trains on, like 500k")]
Jobs = Annotated[int, typer.Option(min=1, help="labels at a time on one machine")]
Only = Annotated[int | None, typer.Option(min=0, help="train this one alone, as a job array does")]


def per_label(
    preset: Annotated[str, typer.Argument(help="see: growgan list presets")],
    data: Data,
    out: Out = None,
    resolution: Resolution = None,
    budget: Wall = "10m",
    images: Count = None,
    jobs: Jobs = 1,
    only_label: Only = None,
    executor: Executor = "serial",
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = 0,
    seed: Seed = None,
    set_: Set = None,
    max_broken: Broken = 0.05,
) -> None:
    """Train a pair of PRESET for each label of DATA, each in its own process, and pool them.

    The same command goes on where it was interrupted, label by label. growgan sample OUT and
    growgan evaluate OUT DATA draw from all of them, equally often. With --executor ray the labels
    are trained by workers, which must see DATA and OUT at the same places as this machine.
    """
    from growgan.data import parse_resolution
    from growgan.growth.pool import begin
    from growgan.nets.presets import PRESETS

    PRESETS[preset]
    found = loaded(data, max_broken, resolution=parse_resolution(resolution))
    if found.labels is None or not found.classes:
        raise UserError(f"'{found.name}' has no labels; a folder for each class gives them")
    labels = _labels(only_label, len(found.classes))
    how = ["--images", images] if images else ["--budget", budget]
    size = "x".join(str(side) for side in found.resolution)
    words = [preset, data, "--resolution", size, "--seed", str(seed or 0), *how]
    words += ["--max-broken", f"{max_broken:g}"]
    cluster = cluster_of(executor, address, gpus, False, cpus)
    changes = [*USUAL, *_own(cluster, jobs), *(set_ or [])]
    asked = {"classes": list(found.classes), "command": words, "settings": list(set_ or [])}
    pool = begin(out or free_folder(f"{found.name}-per-label"), asked)
    _train(pool, labels, words, changes, cluster or jobs)
    typer.echo(f"{pool.path}: {len(labels)} of {len(found.classes)} labels are done")


def _own(cluster: Cluster | None, jobs: int) -> list[str]:
    """Return the settings of a label's share of a machine."""
    from growgan.data.parallel import cores

    if cluster is None:
        return [f"threads={max(1, cores() // jobs)}"]
    # Without a GPU of their own, all labels on a machine would share its first one.
    return [f"threads={cluster.cpus or 1}", *([] if cluster.gpus else ["device=cpu"])]


def _labels(only: int | None, classes: int) -> Sequence[int]:
    """Return the labels to train: all, or one."""
    if only is None:
        return range(classes)
    if only >= classes:
        raise UserError(f"--only-label must be at most {classes - 1}, not {only}")
    return [only]


def _train(
    pool: Pool, labels: Sequence[int], words: list[str], changes: list[str], crew: int | Cluster
) -> None:
    """Train what is not finished, some at a time."""
    left = [label for label in labels if not pool.finished(label)]
    try:
        if isinstance(crew, int):
            _here(crew, pool, left, words, changes)
        else:
            _there(crew, pool, left, words, changes)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on") from None


def _here(
    jobs: int, pool: Pool, labels: Sequence[int], words: list[str], changes: list[str]
) -> None:
    """Train labels on this machine; interrupted, let them save."""
    from growgan.growth.pool import train_label

    stop = Event()
    make = partial(train_label, pool, words=words, changes=changes, stop=stop)
    with ThreadPoolExecutor(jobs) as workers:
        try:
            _tell(pool, labels, workers.map(make, labels))
        finally:
            stop.set()


def _there(
    cluster: Cluster, pool: Pool, labels: Sequence[int], words: list[str], changes: list[str]
) -> None:
    """Train labels by the workers of a cluster, whose working folders are others."""
    from growgan.growth.cluster import spread
    from growgan.growth.pool import train_label

    preset, data, *rest = words
    data = str(Path(data).resolve()) if Path(data).exists() else data
    pool = replace(pool, path=pool.path.resolve())
    make = partial(train_label, pool, words=[preset, data, *rest], changes=changes)
    _tell(pool, labels, spread(cluster, make, labels))


def _tell(pool: Pool, labels: Sequence[int], made: Iterable[bool]) -> None:
    """Say what became of each label, as soon as it is known.

    Raises:
        RuntimeError: some failed.
    """
    failed = []
    for label, done in zip(labels, made, strict=True):
        typer.echo(f"label {label}, {pool.classes[label]}: {'done' if done else 'failed'}")
        if not done:
            failed.append(f"{label} ({pool.classes[label]})")
    if failed:
        raise RuntimeError(
            f"these labels failed: {', '.join(failed)}; see '{pool.path}/label-*.log'"
        )
