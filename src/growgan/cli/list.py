"""``growgan list``: what can be named on the command line."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from typing import Annotated, Any

import typer

from growgan.cli.app import VERBS
from growgan.errors import unknown
from growgan.registry import Entry, Registry

REGISTRIES = {
    "presets": "growgan.nets.presets:PRESETS",
    "policies": "growgan.growth.policies:POLICIES",
    "losses": "growgan.objectives:LOSSES",
    "regularisers": "growgan.objectives:REGULARISERS",
    "conditionings": "growgan.objectives.conditioning:CONDITIONINGS",
    "augmentations": "growgan.objectives:AUGMENTATIONS",
    "blocks": "growgan.nets.blocks:BLOCKS",
    "norms": "growgan.nets.norms:NORMS",
    "forms": "growgan.nets.forms:FORMS",
    "metrics": "growgan.metrics.suite:METRICS",
    "features": "growgan.metrics.networks:FEATURES",
    "resizes": "growgan.metrics.resize:RESIZES",
    "trackers": "growgan.growth.tracking:TRACKERS",
    "exports": "growgan.growth.export:EXPORTS",
    "tasks": "growgan.tasks:TASKS",
}

OTHERS = ("settings", "commands")  # what is named otherwise than by a registry; alone if asked for


def list_entries(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help=f"One of: {', '.join((*REGISTRIES, *OTHERS))}. [default: all parts]",
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option(help="print tables, with every option")] = False,
) -> None:
    """List what can be named, a line each: kind, name, what it is, and its paper."""
    if kind in OTHERS:
        _list_other(kind, markdown)
        return
    if kind is not None and kind not in REGISTRIES:
        raise unknown("kind", kind, (*REGISTRIES, *OTHERS))
    kinds = list(REGISTRIES) if kind is None else [kind]
    if markdown:
        typer.echo("\n".join(_table(each) for each in kinds))
        return
    rows = [(each, entry) for each in kinds for entry in registry(each)]
    kind_width = max((len(each) for each, _ in rows), default=0)
    name_width = max((len(entry.name) for _, entry in rows), default=0)
    for each, entry in rows:
        typer.echo(f"{each:<{kind_width}}  {entry.name:<{name_width}}  {describe(entry)}")


def _list_other(kind: str, markdown: bool) -> None:
    from growgan.cli import tables

    if kind == "settings":
        rows = list(tables.settings())
        if markdown:
            typer.echo(tables.table(iter(rows)))
            return
        width = max(len(name) for name, *_ in rows)
        for name, _, default, words in rows:
            typer.echo(f"{name:<{width}}  {default or '-'}{'  ' * bool(words)}{words}")
    elif markdown:
        typer.echo(tables.commands_page())
    else:
        for name, verb in VERBS.items():
            typer.echo(f"{name:<10}  {verb.summary}")


def _table(kind: str) -> str:
    """Return the entries of a kind as a table, with their options and what these are by default."""
    lines = [f"## {kind}\n", "| name | what it is | source | options |", "|---|---|---|---|"]
    for entry in registry(kind):
        cells = (f"`{entry.name}`", entry.summary, entry.paper, options(entry.value))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def options(value: Any) -> str:
    """Return the numbers that can be set of a part, with their defaults."""
    if not is_dataclass(value):
        return ""
    plain = value() if isinstance(value, type) and _needs_nothing(value) else value
    found = [(f.name, getattr(plain, f.name, None)) for f in fields(value)]
    return ", ".join(f"`{k}={v:g}`" for k, v in found if type(v) in (int, float))


def _needs_nothing(kind: type[Any]) -> bool:
    return all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(kind))


def registry(kind: str) -> Registry[Any]:
    """Return the registry of a kind, a key of :data:`REGISTRIES`, importing its module."""
    module, attribute = REGISTRIES[kind].split(":")
    found: Registry[Any] = getattr(import_module(module), attribute)
    return found


def describe(entry: Entry[Any]) -> str:
    """Return an entry's summary, with its paper in brackets where it has one."""
    return f"{entry.summary} ({entry.paper})" if entry.paper else entry.summary
