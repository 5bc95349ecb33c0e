"""``growgan list``: everything that can be named on the command line."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from growgan.errors import unknown_name_error
from growgan.registry import Entry, Registry

if TYPE_CHECKING:
    from growgan.cli.app import LazyCommandGroup

REGISTRY_PATHS = {
    "presets": "growgan.nets.presets:PRESETS",
    "policies": "growgan.search.policies:POLICIES",
    "losses": "growgan.objectives:LOSSES",
    "regularizers": "growgan.objectives:REGULARIZERS",
    "conditionings": "growgan.objectives.conditioning:CONDITIONINGS",
    "augmentations": "growgan.objectives:AUGMENTATIONS",
    "blocks": "growgan.nets.blocks:BLOCKS",
    "norms": "growgan.nets.norms:NORMS",
    "ends": "growgan.nets.ends:ENDS",
    "metrics": "growgan.metrics.registry:METRICS",
    "features": "growgan.metrics.features.pretrained:FEATURES",
    "resizes": "growgan.metrics.features.resize:RESIZE_METHODS",
    "loggers": "growgan.run.loggers:LOGGERS",
    "exports": "growgan.artifacts.export:EXPORT_FORMATS",
    "tasks": "growgan.tasks:TASKS",
}
NON_REGISTRY_KINDS = ("settings", "commands")  # listed only when asked for
KINDS = (*REGISTRY_PATHS, *NON_REGISTRY_KINDS)


def list_entries(
    context: typer.Context,
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help=f"One of: {', '.join(KINDS)}.",
            show_default="all but settings and commands",
        ),
    ] = None,
    markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print Markdown tables, with all options."),
    ] = False,
) -> None:
    """List the names that can be used on the command line, one per line.

    Each line holds the kind, the name, a summary, and the paper.

    Examples:
        growgan list
        growgan list presets
        growgan list settings
    """
    if kind is not None and kind not in KINDS:
        raise unknown_name_error("kind", kind, KINDS)
    if kind == "settings":
        _list_settings(markdown=markdown)
    elif kind == "commands":
        _list_commands(cast("LazyCommandGroup", context.find_root().command), markdown=markdown)
    else:
        _list_registries(list(REGISTRY_PATHS) if kind is None else [kind], markdown=markdown)


def _list_registries(kinds: list[str], *, markdown: bool) -> None:
    if markdown:
        typer.echo("\n".join(_registry_markdown(kind) for kind in kinds))
        return
    rows = [(kind, entry) for kind in kinds for entry in load_registry(kind)]
    kind_width = max((len(kind) for kind, _ in rows), default=0)
    name_width = max((len(entry.name) for _, entry in rows), default=0)
    for kind, entry in rows:
        typer.echo(f"{kind:<{kind_width}}  {entry.name:<{name_width}}  {summary_with_paper(entry)}")


def _list_settings(*, markdown: bool) -> None:
    from growgan.cli.reference_tables import markdown_table, setting_rows

    rows = list(setting_rows())
    if markdown:
        headers = ("Setting", "Values", "Default", "Description")
        typer.echo(markdown_table(headers, ((f"`{name}`", *cells) for name, *cells in rows)))
        return
    name_width = max(len(name) for name, *_ in rows)
    default_width = max(len(default) for _, _, default, _ in rows)
    for name, _, default, description in rows:
        typer.echo(f"{name:<{name_width}}  {default:<{default_width}}  {description}")


def _list_commands(group: LazyCommandGroup, *, markdown: bool) -> None:
    from growgan.cli.reference_tables import commands_markdown

    if markdown:
        typer.echo(commands_markdown(group.specs))
        return
    for name, spec in group.specs.items():
        typer.echo(f"{name:<10}  {spec.summary}")


def _registry_markdown(kind: str) -> str:
    """Return a heading and Markdown tables of a registry's entries and of their options."""
    from growgan.cli.reference_tables import component_option_rows, markdown_table

    entries = list(load_registry(kind))
    rows = [(f"`{entry.name}`", entry.summary, entry.paper) for entry in entries]
    sections = [f"## {kind.capitalize()}\n"]
    if any(entry.paper for entry in entries):
        sections.append(markdown_table(("Name", "Description", "Paper"), rows))
    else:
        sections.append(markdown_table(("Name", "Description"), [row[:2] for row in rows]))
    option_rows = list(component_option_rows({entry.name: entry.value for entry in entries}))
    if option_rows:
        headers = ("Option", "Available for", "Values", "Default", "Description")
        sections.append(markdown_table(headers, option_rows))
    return "\n".join(sections)


def load_registry(kind: str) -> Registry[Any]:
    """Import and return the registry of ``kind``, a key of :data:`REGISTRY_PATHS`."""
    registry: Registry[Any] = resolve_name(REGISTRY_PATHS[kind])
    return registry


def summary_with_paper(entry: Entry[Any]) -> str:
    """Return an entry's summary, followed by its paper in parentheses if it has one."""
    return f"{entry.summary} ({entry.paper})" if entry.paper else entry.summary
