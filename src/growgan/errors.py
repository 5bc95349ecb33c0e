"""What goes wrong, and how it is said.

A :class:`UserError` is the user's mistake: the command line shows its text as one line and exits
with code 2. Everything else is ours and exits with code 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec


class UserError(Exception):
    """A mistake that the user can mend; the text names the thing, its value and the choices."""


def require(module: str, what: str, package: str) -> None:
    """Raise a :class:`UserError` that says how to get ``package`` if ``module`` is not installed.

    >>> require("no_such_module", "ONNX", "'growgan[onnx]'")
    Traceback (most recent call last):
    growgan.errors.UserError: ONNX needs what is not installed: pip install 'growgan[onnx]'
    """
    try:
        missing = find_spec(module) is None
    except ValueError:  # imported already, from no file
        missing = False
    if missing:
        raise UserError(f"{what} needs what is not installed: pip install {package}")


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
