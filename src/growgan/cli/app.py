"""The command line: ``growgan VERB ...``.

A verb's module is imported when the verb is called, so that ``growgan --help`` stays quick. Every
failure is one line on stderr. Exit codes: 0 done, 1 failed, 2 the user's mistake, 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from growgan import __version__
from growgan.errors import UserError, unknown


@dataclass(frozen=True)
class Verb:
    """A verb: the function behind it as ``module:name``, and its line in ``growgan --help``."""

    target: str
    summary: str
    resumable: bool = False


VERBS = {
    "grow": Verb("growgan.cli.grow:grow", "Grow a GAN on images within a budget.", True),
    "train": Verb("growgan.cli.grow:train", "Train a preset as it is, without growth.", True),
    "condition": Verb("growgan.cli.condition:condition", "Teach a run's generator labels.", True),
    "per-label": Verb("growgan.cli.per_label:per_label", "Train a pair for each label, and pool."),
    "sample": Verb("growgan.cli.sample:sample", "Draw images from a run."),
    "evaluate": Verb("growgan.cli.evaluate:evaluate", "Measure images against reals."),
    "inspect": Verb("growgan.cli.inspect:inspect", "Show a run's growth tree, scores and costs."),
    "report": Verb("growgan.cli.report:report", "Write a run's report, one self-contained page."),
    "explore": Verb("growgan.cli.explore:explore", "Look at a run in the browser."),
    "export": Verb("growgan.cli.export:export", "Write a generator for other programs."),
    "data": Verb("growgan.cli.data:data", "Say what a dataset holds, and what is wrong with it."),
    "list": Verb("growgan.cli.list:list_entries", "List presets, policies, losses and the like."),
}


class VerbGroup(TyperGroup):
    """The group of all verbs: lists them from the table above, and imports only the one called."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the verbs and their summaries into the help page."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the name, command and arguments of the verb that ``args`` begins with."""
        name, *rest = args
        if name not in VERBS:
            raise unknown("command", name, VERBS)
        module, function = VERBS[name].target.split(":")
        app = _application()
        app.command(name)(getattr(import_module(module), function))
        return name, get_command(app), rest


def _application(group: type[TyperGroup] | None = None) -> typer.Typer:
    return typer.Typer(
        cls=group,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Point it at images, give it a budget, and it grows a GAN for them."""
    if version:
        typer.echo(f"growgan {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: what follows ``growgan``; the process's own arguments if None.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _stoppable():
            _run(arguments)
        sys.stdout.flush()  # a closed pipe shows here, not at exit
    except typer.Exit as exit_:
        return exit_.exit_code
    except (UserError, typer.TyperException) as error:
        return _complain(_usage(error), code=2)
    except (KeyboardInterrupt, typer.Abort) as interrupt:
        return _interrupted(arguments, str(interrupt))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _failed(error)
    return 0


@contextmanager
def _stoppable() -> Iterator[None]:
    """While it is entered, SIGTERM interrupts a verb as Ctrl-C does, whatever it is doing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str]) -> None:
    app = _application(VerbGroup)
    app.callback(invoke_without_command=True)(_root)
    group = get_command(app)
    with group.make_context("growgan", arguments) as context:
        group.invoke(context)


def _complain(message: str, code: int, label: str = "error: ") -> int:
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"growgan: {label}{line}", file=sys.stderr)
    return code


def _usage(error: UserError | typer.TyperException) -> str:
    """Return the text of a user's mistake, naming the nearest option if it is an unknown one."""
    context = getattr(error, "ctx", None)
    if isinstance(error, UserError) or context is None:
        return str(error)
    if hasattr(error, "possibilities"):
        parameters = context.command.get_params(context)
        names = [name for each in parameters for name in (*each.opts, *each.secondary_opts)]
        valid = [name for name in names if name.startswith("-")]
        return str(unknown("option", str(getattr(error, "option_name", "")), valid))
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    return f"{message}{_value(error, message)}; see: {context.command_path} --help"


def _value(error: typer.TyperException, message: str) -> str:
    """Return the value that an option could not take, in brackets, unless ``message`` has it."""
    from pydantic import ValidationError

    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return ""
    got = repr(cause.errors()[0]["input"])
    return "" if got in message else f" (got {got})"


def _interrupted(arguments: list[str], how_to_resume: str) -> int:
    """Say that the run was interrupted and how it goes on; return 130.

    A verb that knows better says so itself, by raising KeyboardInterrupt with a text.
    """
    if sys.stderr.isatty():
        print(file=sys.stderr)  # leave the line on which the terminal shows ^C
    verb = VERBS.get(arguments[0]) if arguments else None
    if not how_to_resume and verb is not None and verb.resumable:
        again = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
        how_to_resume = f"go on with: growgan {shlex.join(again)}"
    message = f"interrupted; {how_to_resume}" if how_to_resume else "interrupted"
    return _complain(message, code=130, label="")


def _failed(error: Exception) -> int:
    """Report an error that is not the user's; return 1."""
    shown = os.environ.get("GROWGAN_TRACEBACK", "") not in ("", "0")
    if shown:
        traceback.print_exception(error)
    hint = "" if shown else " (GROWGAN_TRACEBACK=1 shows where)"
    return _complain(f"{type(error).__name__}: {error}{hint}", code=1)
