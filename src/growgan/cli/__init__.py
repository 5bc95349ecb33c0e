"""The command line, ``growgan VERB ...``: one module per verb; :mod:`growgan.cli.app` runs them."""

from growgan.cli.app import main

__all__ = ["main"]
