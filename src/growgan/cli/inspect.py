"""``growgan inspect``: the growth tree in the terminal, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from growgan.report.branches import Branch
    from growgan.report.run import RunRecord

PIPE_WIDTH = 200
STYLES = {"best": "bold green", "alive": "", "pruned": "dim", "failed": "red"}


def inspect(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a tree")] = False,
) -> None:
    """Show a run's growth tree with scores and costs."""
    from growgan.report.run import read_run

    record = read_run(run)
    if as_json:
        typer.echo(json.dumps(as_data(record), indent=1, allow_nan=False))
    else:
        _show(record)


def as_data(run: RunRecord) -> dict[str, Any]:
    """Return what ``--json`` prints: best, candidates and cost (seconds by purpose)."""
    return {
        "best": run.best,
        "candidates": [
            {
                "id": c.id,
                "parent": c.parent,
                "growth": c.growth,
                "resolution": list(c.resolution),
                "images": c.images,
                "seconds": c.seconds,
                "score": c.score,
                "score_stderr": c.score_stderr,
                "generator_layers": c.generator_layers,
                "discriminator_layers": c.discriminator_layers,
                "status": c.status,
            }
            for c in run.candidates
        ],
        "cost": dict(run.cost),
    }


def _show(run: RunRecord) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    from growgan.report.branches import branches
    from growgan.report.text import printable

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    for line in _heading(run):
        console.print(Text(printable(line)), soft_wrap=True)
    for root in branches(run):
        tree = Tree(_label(root), guide_style="dim")
        _hang(tree, root)
        console.print(tree)
    for line in _ending(run):
        console.print(Text(printable(line)), soft_wrap=True)


def _hang(tree: Tree, branch: Branch) -> None:
    for child in branch.children:
        _hang(tree.add(_label(child)), child)


def _label(b: Branch) -> Text:
    """Return one line for a pair of networks and all slices that trained it."""
    from rich.text import Text

    from growgan.report.text import count, duration, printable, scored, size

    c = b.face
    first, last = b.members[0], b.members[-1]
    ids = c.id if first is last else f"{last.id} ({len(b.members)} slices from {first.id})"
    style = "green" if b.leads and b.status != "best" else STYLES[b.status]
    words = [
        f"score {scored(c.score, c.score_stderr)}" if c.score is not None else "no score",
        size(c.resolution),
        b.members[0].origin,
        f"{count(c.images)} images",
        duration(b.seconds),
    ]
    if b.status == "best":
        words.append(f"best: {c.id}")
    elif b.status != "alive":
        words.append(b.status)
    words += [m.error for m in b.members if m.error]
    return Text(printable(f"{ids}  {', '.join(words)}"), style=style)


def _heading(run: RunRecord) -> list[str]:
    from growgan.report.text import duration, size

    budget = ""
    if run.budget_seconds:
        budget = f" of a budget of {duration(run.budget_seconds)}"
    elif run.budget_images:
        budget = f" on a budget of {run.budget_images:,} images"
    state = "" if run.finished else ", not ended"
    return [
        f"{run.data_name}, {run.data_count:,} images: {run.policy} from {run.preset}"
        f" to {size(run.resolution)}, seed {run.seed}",
        f"{duration(run.elapsed)}{budget}{state}; on {run.machine}",
        "",
    ]


def _ending(run: RunRecord) -> list[str]:
    from growgan.report.text import count, duration, plural, purpose, scored, size

    if not run.best_lineage:
        return ["no candidate yet"]
    best = run.best_lineage[-1]
    costs = ", ".join(f"{purpose(kind)} {duration(seconds)}" for kind, seconds in run.cost.items())
    return [
        "",
        f"best {best.id}: score {scored(best.score, best.score_stderr)} at {size(best.resolution)};"
        f" G {plural(best.generator_layers, 'layer')}, {count(best.generator_parameters)}"
        f" parameters; D {plural(best.discriminator_layers, 'layer')},"
        f" {count(best.discriminator_parameters)}",
        *_health(best.vitals),
        f"cost: {costs}; {plural(len(run.candidates), 'candidate')} tried",
    ]


def _health(vitals: Mapping[str, float]) -> list[str]:
    """Return what the doctor last measured of the best pair, in a line."""
    shown = {
        "diversity": "fakes vary {:.0%} as much as reals",
        "wins_seen": "D puts {:.0%} of the reals it trains on above fakes",
        "wins_unseen": "{:.0%} of held-out ones",
        "singular": "largest singular values: D {:.3g}",
        "singular_generator": "G {:.3g}",
        "copies": "{:.0%} of the fakes are copies",
    }
    words = [text.format(vitals[key]) for key, text in shown.items() if key in vitals]
    return [f"health: {', '.join(words)}"] if words else []
