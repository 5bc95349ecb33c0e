"""Names that users type, and what they stand for.

Each kind of part (loss, regulariser, block, policy, preset, ...) has one :class:`Registry`. An
entry describes itself in one line, so that the command line, the docs table and the matrix test
need no list of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from growgan.errors import unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One named part: its value, a one-line summary, and the paper that it comes from."""

    name: str
    value: T
    summary: str
    paper: str = ""


class Registry(Generic[T]):
    """A mapping of names to parts of one kind.

    Args:
        kind: what the parts are, in the singular, as error messages say it ("loss").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, summary: str, paper: str = "") -> Callable[[T], T]:
        """Return a decorator that enters its argument under ``name``."""

        def enter(value: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = Entry(name, value, summary, paper)
            return value

        return enter

    def __getitem__(self, name: str) -> T:
        """Return the part called ``name``; raise a :class:`UserError` if there is none."""
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name].value

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)
