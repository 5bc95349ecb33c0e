"""``growgan inspect``: print the growth tree of a run, or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from growgan.cli.options import JsonOption, RunArgument

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from growgan.report.growth_tree import TreeNode
    from growgan.report.run_record import RunRecord

PIPE_WIDTH_COLUMNS = 200  # line width if stdout is not a terminal
STATUS_STYLES = {"best": "bold green", "alive": "", "pruned": "dim", "failed": "red"}
# (health metric, text) of the summary
HEALTH_TEXTS = (
    ("diversity_ratio", "diversity of fakes {:.0%} of that of reals"),
    ("train_win_rate", "D scores {:.0%} of training images above fakes"),
    ("held_out_win_rate", "{:.0%} of held-out images"),
    ("discriminator_spectral_norm", "largest singular values: D {:.3g}"),
    ("generator_spectral_norm", "G {:.3g}"),
    ("copy_fraction", "{:.0%} of fakes copy training images"),
)


def inspect(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show a run's growth tree with scores and cost.

    Examples:
        growgan inspect runs/photos
        growgan inspect runs/photos --json
    """
    from growgan.report.run_record import read_run

    record = read_run(run)
    if as_json:
        typer.echo(json.dumps(run_to_json(record), indent=1, allow_nan=False))
    else:
        _print_run(record)


def run_to_json(run: RunRecord) -> dict[str, Any]:
    """Return what ``--json`` prints: best candidate, all candidates, and seconds by phase."""
    return {
        "best": run.best_id,
        "candidates": [
            {
                "id": c.id,
                "parent": c.parent_id,
                "growth": c.growth,
                "resolution": list(c.resolution),
                "images": c.images_seen,
                "seconds": c.seconds,
                "score": c.score,
                "score_stderr": c.score_stderr,
                "generator_layers": c.generator_layers,
                "discriminator_layers": c.discriminator_layers,
                "status": c.status,
            }
            for c in run.candidates
        ],
        "cost": dict(run.seconds_by_phase),
    }


def _print_run(run: RunRecord) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    from growgan.report.formatting import to_single_line
    from growgan.report.growth_tree import build_growth_tree

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH_COLUMNS
    for line in _header_lines(run):
        console.print(Text(to_single_line(line)), soft_wrap=True)
    for root in build_growth_tree(run):
        tree = Tree(_node_label(root), guide_style="dim")
        _add_children(tree, root)
        console.print(tree)
    for line in _summary_lines(run):
        console.print(Text(to_single_line(line)), soft_wrap=True)


def _add_children(tree: Tree, node: TreeNode) -> None:
    for child in node.children:
        _add_children(tree.add(_node_label(child)), child)


def _node_label(node: TreeNode) -> Text:
    """Return a line about a pair of networks and all segments that trained it."""
    from rich.text import Text

    from growgan.report.formatting import (
        format_count,
        format_duration,
        format_resolution,
        format_score,
        to_single_line,
    )

    best, first, last = node.representative, node.segments[0], node.segments[-1]
    ids = best.id
    if first is not last:
        ids = f"{last.id} ({len(node.segments)} segments from {first.id})"
    score = "no score"
    if best.score is not None:
        score = f"score {format_score(best.score, best.score_stderr)}"
    parts = [
        score,
        format_resolution(best.resolution),
        first.growth_label,
        f"{format_count(best.images_seen)} images",
        format_duration(node.seconds),
    ]
    if node.status == "best":
        parts.append(f"best: {best.id}")
    elif node.status != "alive":
        parts.append(node.status)
    parts += [segment.error for segment in node.segments if segment.error]
    is_ancestor_of_best = node.on_best_lineage and node.status != "best"
    style = "green" if is_ancestor_of_best else STATUS_STYLES[node.status]
    return Text(to_single_line(f"{ids}  {', '.join(parts)}"), style=style)


def _header_lines(run: RunRecord) -> list[str]:
    from growgan.report.formatting import format_duration, format_resolution
    from growgan.report.page import budget_text

    state = "" if run.finished else ", not finished"
    return [
        f"{run.data_name}, {run.num_training_images:,} images: {run.policy} policy from"
        f" {run.preset} to {format_resolution(run.resolution)}, seed {run.seed}",
        f"{format_duration(run.elapsed)}{budget_text(run)}{state}; on {run.machine}",
        "",
    ]


def _summary_lines(run: RunRecord) -> list[str]:
    from growgan.report.formatting import (
        format_count,
        format_duration,
        format_resolution,
        format_score,
        phase_label,
        pluralize,
    )

    if not run.best_lineage:
        return ["no candidate yet"]
    best = run.best_lineage[-1]
    costs = ", ".join(
        f"{phase_label(phase)} {format_duration(seconds)}"
        for phase, seconds in run.seconds_by_phase.items()
    )
    networks = "; ".join(
        f"{name} {pluralize(num_layers, 'layer')}, {format_count(num_parameters)} parameters"
        for name, num_layers, num_parameters in (
            ("G", best.generator_layers, best.generator_parameters),
            ("D", best.discriminator_layers, best.discriminator_parameters),
        )
    )
    score = format_score(best.score, best.score_stderr)
    return [
        "",
        f"best {best.id}: score {score} at {format_resolution(best.resolution)}; {networks}",
        *_health_lines(best.health_metrics),
        f"cost: {costs}; {pluralize(len(run.candidates), 'candidate')}",
    ]


def _health_lines(health_metrics: Mapping[str, float]) -> list[str]:
    """Return a line about the latest health check of the best candidate, if there is one."""
    parts = [
        text.format(health_metrics[name]) for name, text in HEALTH_TEXTS if name in health_metrics
    ]
    return [f"health: {', '.join(parts)}"] if parts else []
