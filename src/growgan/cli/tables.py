"""Tables of what the command line takes: every setting, every verb's arguments and options."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.main import get_command

from growgan.cli.app import VERBS
from growgan.config import Settings

Row = tuple[str, str, str, str]  # name, what it may be, default, what it is


def settings(group: type[BaseModel] = Settings, before: str = "") -> Iterator[Row]:
    """Yield each setting by its dotted name, as ``--set`` takes it."""
    for name, field in group.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{before}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "" if default is PydanticUndefined else _plain(default)
        yield f"{before}{name}", _named(kind), shown, field.description or ""


def options(verb: str) -> Iterator[Row]:
    """Yield each argument and option of a verb."""
    module, function = VERBS[verb].target.split(":")
    called = getattr(import_module(module), function)
    kinds = get_type_hints(called)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(verb)(called)
    for each in get_command(app).params:
        if each.name not in kinds:
            continue
        named: Any = each
        argument, kind = named.param_type_name == "argument", kinds[each.name]
        written = ", ".join([*each.opts, *each.secondary_opts])
        name = (named.metavar or named.name.upper()) if argument else written
        default = "" if kind is bool or each.default is None else _plain(each.default)
        yield name, "" if kind is bool else _named(kind), default, named.help or ""


def commands_page() -> str:
    """Return all verbs with their options, Markdown."""
    from inspect import cleandoc

    parts = []
    for name, verb in VERBS.items():
        module, function = verb.target.split(":")
        words = cleandoc(getattr(import_module(module), function).__doc__)
        parts += [f"## growgan {name}\n", f"{words}\n", table(options(name))]
    return "\n".join(parts)


def table(rows: Iterator[Row]) -> str:
    """Return rows as a table, Markdown."""
    lines = ["| name | may be | default | what it is |", "|---|---|---|---|"]
    for name, *rest in rows:
        cells = (f"`{name}`", *rest)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str:
    """Return a default as it is written on the command line.

    >>> _plain((3, 5)), _plain(True), _plain(None), _plain(100000), _plain({"r1": {}})
    ('3,5', 'true', 'none', '100000', 'r1')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list | dict):
        return ",".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _named(kind: Any) -> str:
    """Return a type in words.

    >>> _named(int | None), _named(Literal["a", "b"]), _named(tuple[float, ...])
    ('int', 'a, b', 'floats')
    """
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _named(inside[0])
    if origin is Literal:
        return ", ".join(map(str, inside))
    if origin in (Union, UnionType):
        return " or ".join(_named(each) for each in inside if each is not NoneType)
    if origin is tuple:
        one = _named(inside[0])
        return f"{one}s" if inside[-1] is Ellipsis else ",".join(map(_named, inside))
    if origin is dict:
        return "values by name"
    if origin is list:
        return f"{_named(inside[0])}, more than once"
    words = {"str": "text", "bool": "true or false", "Path": "path"}
    return words.get(kind.__name__, kind.__name__)
