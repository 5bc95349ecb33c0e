"""Registries: the names that users type, and the components they stand for.

Each kind of component (loss, regularizer, block, policy, preset, ...) has one :class:`Registry`.
Entries describe themselves, so the command line, the docs and the tests need no lists of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from growgan.errors import unknown_name_error

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A named component: its value, a one-line summary, and its paper."""

    name: str
    value: T
    summary: str
    paper: str = ""


class Registry(Generic[T]):
    """A mapping from names to components of one kind.

    Args:
        kind: Singular name of the kind for error messages, like "loss".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, summary: str, paper: str = "") -> Callable[[T], T]:
        """Return a decorator that registers its argument under ``name``."""

        def decorator(value: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = Entry(name, value, summary, paper)
            return value

        return decorator

    def __getitem__(self, name: str) -> T:
        """Return the component called ``name``.

        Raises:
            UserError: There is none.
        """
        if name not in self._entries:
            raise unknown_name_error(self.kind, name, self._entries)
        return self._entries[name].value

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)
