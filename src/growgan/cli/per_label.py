"""``growgan per-label``: one Wasserstein pair for each label, each alone in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated

import typer

from growgan.cli.grow import Broken, Data, Out, Resolution, Seed, Set, free_folder, loaded
from growgan.errors import UserError

if TYPE_CHECKING:
    from growgan.growth.pool import Pool

# Of each label's run, where nothing else is asked for: a critic with a penalty on its gradient, and
# a score that no network must be trained for first.
USUAL = ("loss=wasserstein", "regularisers=gp,drift", "score.kind=swd")


Wall = Annotated[str, typer.Option(help="wall clock of each label: 90s, 10m, 2h")]
Count = Annotated[str | None, typer.Option(help="instead: images each label trains on, like 500k")]
Jobs = Annotated[int, typer.Option(min=1, help="labels at a time; they share the cores")]
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
    seed: Seed = None,
    set_: Set = None,
    max_broken: Broken = 0.05,
) -> None:
    """Train a pair of PRESET for each label of DATA, each in its own process, and pool them.

    The same command goes on where it was interrupted, label by label. growgan sample OUT and
    growgan evaluate OUT DATA draw from all of them, equally often.
    """
    from growgan.data import parse_resolution
    from growgan.growth.pool import begin
    from growgan.nets.presets import PRESETS

    PRESETS[preset]
    found = loaded(data, max_broken, resolution=parse_resolution(resolution))
    if found.labels is None or not found.classes:
        raise UserError(f"'{found.name}' has no labels; a folder for each class gives them")
    labels = range(len(found.classes)) if only_label is None else [only_label]
    if labels[-1] >= len(found.classes):
        raise UserError(f"--only-label must be at most {len(found.classes) - 1}, not {only_label}")
    how = ["--images", images] if images else ["--budget", budget]
    size = "x".join(str(side) for side in found.resolution)
    words = [preset, data, "--resolution", size, "--seed", str(seed or 0), *how]
    words += ["--max-broken", f"{max_broken:g}"]
    changes = [*USUAL, f"threads={max(1, (os.cpu_count() or 1) // jobs)}", *(set_ or [])]
    asked = {"classes": list(found.classes), "command": words, "settings": list(set_ or [])}
    place = out or free_folder(f"{found.name}-per-label")
    pool = begin(place, asked)
    try:
        failed = _train(pool, labels, words, changes, jobs)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on") from None
    if failed:
        names = ", ".join(f"{label} ({pool.classes[label]})" for label in failed)
        raise RuntimeError(f"these labels failed: {names}; see '{place}/label-*.log'")
    typer.echo(f"{place}: {len(labels)} of {len(found.classes)} labels are done")


def _train(
    pool: Pool, labels: Sequence[int], words: list[str], changes: list[str], jobs: int
) -> list[int]:
    """Train what is not finished, some at a time; return the labels that failed."""

    def train(label: int) -> int | None:
        if pool.finished(label):
            return None
        if pool.begun(label):
            # A run that goes on knows its settings and its budget.
            known = [*words[1 : words.index("--seed")], *words[-2:]]
            command = ["grow", *known, "--out", str(pool.folder(label)), "--resume"]
        else:
            own = [*changes, f"labels.only={label}"]
            more = [word for change in own for word in ("--set", change)]
            command = ["train", *words, "--out", str(pool.folder(label)), *more]
        with pool.folder(label).with_suffix(".log").open("a") as log:
            done = subprocess.run(
                [sys.executable, "-m", "growgan", *command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        how = "failed" if done.returncode else "done"
        typer.echo(f"label {label}, {pool.classes[label]}: {how}")
        return label if done.returncode else None

    with ThreadPoolExecutor(jobs) as workers:
        return [label for label in workers.map(train, labels) if label is not None]
