"""Errors, and the messages that several modules share.

A :class:`UserError` is the user's mistake: the command line prints its text as one line and exits
with code 2. Any other exception is a bug or a failure, with exit code 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec


class UserError(Exception):
    """A mistake that the user can fix. The text names the argument, its value and valid choices."""


def require_extra(module: str, what: str, package: str) -> None:
    """Raise a :class:`UserError` with the install command if ``module`` is not installed.

    >>> require_extra("no_such_module", "ONNX", "growgan[onnx]")
    Traceback (most recent call last):
    growgan.errors.UserError: ONNX needs a package that is not installed: pip install growgan[onnx]
    """
    try:
        missing = find_spec(module) is None
    except ValueError:  # it is imported but has no spec
        missing = False
    if missing:
        raise UserError(f"{what} needs a package that is not installed: pip install {package}")


def unknown_name_error(what: str, name: str, valid: Iterable[str]) -> UserError:
    """Return the error for a ``name`` that is not among ``valid``, with the nearest suggestion.

    >>> str(unknown_name_error("policy", "dynamik", ["dynamic", "fixed"]))
    "unknown policy 'dynamik' (did you mean 'dynamic'?); it must be one of: dynamic, fixed"
    """
    choices = sorted(valid)
    nearest = get_close_matches(name, choices, n=1, cutoff=0.5)
    suggestion = f" (did you mean '{nearest[0]}'?)" if nearest else ""
    choices_text = f"it must be one of: {', '.join(choices)}" if choices else "there are none"
    return UserError(f"unknown {what} '{name}'{suggestion}; {choices_text}")
