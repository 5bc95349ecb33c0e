"""Reference tables of every setting and of every verb's arguments and options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from growgan.config import Settings, SettingsGroup

if TYPE_CHECKING:
    from growgan.cli.app import CommandSpec

ReferenceRow = tuple[str, str, str, str]  # name, accepted values, default, description


def setting_rows(
    settings_class: type[BaseModel] = Settings, prefix: str = ""
) -> Iterator[ReferenceRow]:
    """Yield a row for each setting, under its dotted name as in ``--set``."""
    for name, field in settings_class.model_fields.items():
        if field.exclude:
            continue  # derived, not a setting
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from setting_rows(annotation, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        default_text = "" if default is PydanticUndefined else _format_default(default)
        values = _describe_type(annotation)
        yield f"{prefix}{name}", values, default_text, field.description or ""


def component_option_rows(components: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each option of registered components, as Markdown cells.

    Components that share an option, with the same default and description, share its row.

    Args:
        components: Components by name: instances or subclasses of :class:`SettingsGroup`. Others
            have no options.
    """
    names_by_row: dict[ReferenceRow, list[str]] = {}
    for component_name, value in components.items():
        is_class = isinstance(value, type) and issubclass(value, SettingsGroup)
        component = value() if is_class else value
        if not isinstance(component, SettingsGroup):
            continue
        for name, field in type(component).model_fields.items():
            if not field.exclude:
                values = _describe_type(field.annotation)
                default = _format_default(getattr(component, name))
                row = name, values, default, field.description or ""
                names_by_row.setdefault(row, []).append(component_name)
    for (name, *cells), component_names in names_by_row.items():
        yield f"`{name}`", ", ".join(f"`{name}`" for name in component_names), *cells


def option_rows(command_name: str, spec: CommandSpec) -> Iterator[ReferenceRow]:
    """Yield a row for each argument and option of a verb."""
    annotations = get_type_hints(spec.load())
    for parameter in spec.to_click(command_name).params:
        if parameter.name not in annotations:
            continue
        annotation = annotations[parameter.name]
        if parameter.param_type_name == "argument":
            name = parameter.metavar or parameter.name.upper()
        else:
            name = ", ".join([*parameter.opts, *parameter.secondary_opts])
        is_flag = annotation is bool
        values = "" if is_flag else _describe_type(annotation)
        yield name, values, _option_default(parameter, is_flag=is_flag), parameter.help or ""


def _option_default(parameter: Any, *, is_flag: bool) -> str:
    if isinstance(parameter.show_default, str):  # a description of what None means
        return parameter.show_default
    if is_flag:
        return parameter.opts[0] if parameter.default else ""
    return "" if parameter.default is None else _format_default(parameter.default)


def commands_markdown(specs: Mapping[str, CommandSpec]) -> str:
    """Return a Markdown section for each verb: description, examples, options."""
    sections = []
    for name, spec in specs.items():
        description, examples = spec.help_text()
        sections += [f"## growgan {name}\n", f"{description}\n"]
        if examples:
            sections.append("\n".join(["```text", *examples, "```\n"]))
        rows = ((f"`{option}`", *cells) for option, *cells in option_rows(name, spec))
        headers = ("Argument or option", "Values", "Default", "Description")
        sections.append(markdown_table(headers, rows))
    return "\n".join(sections)


def markdown_table(headers: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    lines = [markdown_row(*headers), "|" + "---|" * len(headers)]
    lines += [markdown_row(*row) for row in rows]
    return "\n".join(lines) + "\n"


def markdown_row(*cells: str) -> str:
    """Return one row of a Markdown table.

    >>> markdown_row("a|b", "c")
    '| a\\\\|b | c |'
    """
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _format_default(value: object) -> str:
    """Return a default as it is written on the command line.

    >>> _format_default((3, 5)), _format_default(True), _format_default(None)
    ('3,5', 'true', 'null')
    >>> _format_default(100000), _format_default({"r1": {}}), _format_default(())
    ('100000', 'r1', 'empty')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list | dict):
        return ",".join(map(_format_default, value)) or "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _describe_type(annotation: Any) -> str:
    """Return a type in words.

    >>> _describe_type(int | None), _describe_type(Literal["a", "b"])
    ('integer', 'a, b')
    >>> _describe_type(tuple[float, ...]), _describe_type(tuple[int, int])
    ('list of numbers', 'integer,integer')
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe_type(arguments[0])
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(_describe_type(arg) for arg in arguments if arg is not NoneType)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            element = _describe_type(arguments[0])
            return f"list of {element if element == 'text' else f'{element}s'}"
        return ",".join(map(_describe_type, arguments))
    if origin is dict:
        return "mapping"
    if origin is list:
        return f"{_describe_type(arguments[0])}, repeatable"
    names = {
        "str": "text",
        "int": "integer",
        "float": "number",
        "bool": "true or false",
        "Path": "path",
    }
    return names.get(annotation.__name__, annotation.__name__)
