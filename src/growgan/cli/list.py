"""``growgan list``: what can be named on the command line."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer

from growgan.errors import unknown
from growgan.registry import Entry, Registry

REGISTRIES = {
    "presets": "growgan.nets.presets:PRESETS",
    "policies": "growgan.growth.policies:POLICIES",
    "losses": "growgan.objectives:LOSSES",
    "regularisers": "growgan.objectives:REGULARISERS",
    "augmentations": "growgan.objectives:AUGMENTATIONS",
    "blocks": "growgan.nets.blocks:BLOCKS",
    "metrics": "growgan.metrics.suite:METRICS",
    "features": "growgan.metrics.networks:FEATURES",
    "resizes": "growgan.metrics.resize:RESIZES",
}


def list_entries(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help=f"One of: {', '.join(REGISTRIES)}. [default: all]"),
    ] = None,
) -> None:
    """List what can be named, a line each: kind, name, what it is, and its paper."""
    if kind is not None and kind not in REGISTRIES:
        raise unknown("kind", kind, REGISTRIES)
    kinds = list(REGISTRIES) if kind is None else [kind]
    rows = [(each, entry) for each in kinds for entry in registry(each)]
    kind_width = max((len(each) for each, _ in rows), default=0)
    name_width = max((len(entry.name) for _, entry in rows), default=0)
    for each, entry in rows:
        typer.echo(f"{each:<{kind_width}}  {entry.name:<{name_width}}  {describe(entry)}")


def registry(kind: str) -> Registry[Any]:
    """Return the registry of a kind, a key of :data:`REGISTRIES`, importing its module."""
    module, attribute = REGISTRIES[kind].split(":")
    found: Registry[Any] = getattr(import_module(module), attribute)
    return found


def describe(entry: Entry[Any]) -> str:
    """Return an entry's summary, with its paper in brackets where it has one."""
    return f"{entry.summary} ({entry.paper})" if entry.paper else entry.summary
