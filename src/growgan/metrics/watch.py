"""How a long computation says how far it has come."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]  # how many are done, of how many
Watch = Callable[[str, int, int], None]  # what is done, how many images of it, of how many


def unseen(done: int, count: int) -> None:
    """Show nothing."""


def unwatched(what: str, done: int, count: int) -> None:
    """Show nothing."""
