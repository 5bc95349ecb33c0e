"""Callbacks through which a long computation reports its progress."""

from __future__ import annotations

from collections.abc import Callable

ProgressFn = Callable[[int, int], None]
"""Called with the number of finished items and the total."""

StageProgressFn = Callable[[str, int, int], None]
"""Called with the name of the stage, the number of finished items and the total."""


def no_progress(*_: object) -> None:
    """Report nothing."""
