"""Options of losses, regularizers, augmentations and conditionings, validated by pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import ValidationError as PydanticValidationError

from growgan.config import SettingsGroup
from growgan.errors import UserError, unknown_name_error

__all__ = [
    "Fraction",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OptionGroup",
    "PositiveFloat",
    "PositiveInt",
    "option_defaults",
    "with_options",
]

Fraction = Annotated[float, Field(ge=0, le=1)]


class OptionGroup(SettingsGroup):
    """A component whose fields are its options.

    Fields with ``exclude=True`` are part of the component, but users cannot set them.
    """


OptionsT = TypeVar("OptionsT", bound=OptionGroup)


def option_defaults(component: OptionGroup) -> dict[str, Any]:
    """Return the options that users may set, with their values in ``component``."""
    fields = type(component).model_fields
    return {name: getattr(component, name) for name in fields if not fields[name].exclude}


def with_options(defaults: OptionsT, options: Mapping[str, Any], setting_path: str) -> OptionsT:
    """Return a copy of ``defaults`` with some options changed.

    Args:
        defaults: The component with its default options.
        options: New values by name.
        setting_path: Where the options are in the settings, for error messages.

    Raises:
        UserError: An option is unknown, or a value has the wrong type or is out of range.
    """
    names = option_defaults(defaults)
    for name in options:
        if name not in names:
            raise unknown_name_error(f"{setting_path} setting", name, names)
    try:
        return type(defaults).model_validate({**dict(defaults), **options})
    except PydanticValidationError as error:
        first = error.errors()[0]
        setting = ".".join([setting_path, *map(str, first["loc"])])
        rule = first["msg"].replace("Input should", "must", 1)
        raise UserError(f"setting '{setting}' {rule}, but got {first['input']!r}") from error
