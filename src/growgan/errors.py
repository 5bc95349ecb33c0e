"""What goes wrong, and how it is said.

A :class:`UserError` is the user's mistake: the command line shows its text as one line and exits
with code 2. Everything else is ours and exits with code 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that the user can mend; the text names the thing, its value and the choices."""


def unknown(what: str, name: str, valid: Iterable[str]) -> UserError:
    """Return the error for a name that is not among ``valid``, with the nearest one suggested.

    >>> str(unknown("policy", "dynamik", ["dynamic", "fixed"]))
    "unknown policy 'dynamik' (did you mean 'dynamic'?); it must be one of: dynamic, fixed"
    """
    choices = sorted(valid)
    near = get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    may_be = f"it must be one of: {', '.join(choices)}" if choices else "there is none"
    return UserError(f"unknown {what} '{name}'{hint}; {may_be}")
