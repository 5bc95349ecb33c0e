"""What users may set of a loss, a regulariser, an augmentation or a conditioning.

Options are the fields of a dataclass that are numbers, and their annotations say what they may be:
a plain ``float`` or ``int`` is 0 or more, the names below are narrower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import inf, isfinite
from typing import Annotated, Any, TypeVar, get_type_hints

from growgan.errors import UserError, unknown

Options = TypeVar("Options")


@dataclass(frozen=True)
class Range:
    """From ``least`` to ``most``; without ``least`` itself where it is ``above`` that."""

    least: float = 0.0
    most: float = inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        over = value > self.least if self.above else value >= self.least
        return over and value <= self.most and isfinite(value)

    def words(self) -> str:
        """Return the range as it stands in a sentence."""
        if self.most < inf:
            return f"from {self.least:g} to {self.most:g}"
        return f"{'above' if self.above else 'of at least'} {self.least:g}"


Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(above=True)]
Count = Annotated[int, Range(1)]
Switch = Annotated[int, Range(0, 1)]


def with_options(usual: Options, options: Mapping[str, float], key: str) -> Options:
    """Return the dataclass ``usual`` with some of its numbers changed; ``key`` names it.

    Raises:
        UserError: an unknown option, or a value that is not finite or out of its range.
    """
    hints = get_type_hints(type(usual), include_extras=True)
    kinds: dict[str, Any] = {
        field.name: type(getattr(usual, field.name))
        for field in fields(usual)  # type: ignore[arg-type]
        if type(getattr(usual, field.name)) in (int, float)
    }
    for name, value in options.items():
        if name not in kinds:
            raise unknown(f"{key} setting", name, kinds)
        whole = kinds[name] is int
        (legal,) = getattr(hints[name], "__metadata__", [Range()])
        if value not in legal or (whole and value != int(value)):
            words = f"a whole number {legal.words()}" if whole else f"a number {legal.words()}"
            raise UserError(f"setting '{key}.{name}' must be {words}, but got {value:g}")
    given = {name: kinds[name](value) for name, value in options.items()}
    return replace(usual, **given)  # type: ignore[type-var]
