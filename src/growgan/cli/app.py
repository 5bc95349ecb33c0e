"""The entry point of ``growgan VERB ...``: finds the verb, runs it, and reports errors.

A verb's module is imported only when the verb is called, so ``growgan --help`` starts quickly.
Every error is one line on stderr. Exit codes: 0 done, 1 failed, 2 user error, 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import cleandoc
from pkgutil import resolve_name
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from growgan import __version__
from growgan.errors import UserError, unknown_name_error


@dataclass(frozen=True)
class CommandSpec:
    """A verb.

    Attributes:
        import_path: The function that implements it, as ``module:name``.
        summary: One line for ``growgan --help``.
        resumable: Whether the verb takes ``--resume``.
    """

    import_path: str
    summary: str
    resumable: bool = False

    def load(self) -> Callable[..., None]:
        """Import and return the function that implements the verb."""
        function: Callable[..., None] = resolve_name(self.import_path)
        return function

    def help_text(self) -> tuple[str, list[str]]:
        """Return the verb's description and its example commands, from its docstring."""
        docstring = cleandoc(self.load().__doc__ or "")
        description, _, examples = docstring.partition("\n\nExamples:\n")
        paragraphs = [part.replace("\n", " ") for part in description.split("\n\n")]
        return "\n\n".join(paragraphs), [line.strip() for line in examples.splitlines()]

    def to_click(self, name: str) -> Any:
        """Return the verb as a click command called ``name``."""
        description, examples = self.help_text()
        app = typer.Typer(
            add_completion=False,
            rich_markup_mode="rich",
            context_settings={"help_option_names": ["-h", "--help"]},
        )
        # Typer prints each paragraph of the epilog on a line of its own.
        epilog = "\n\n".join(["Examples:", *examples]) if examples else None
        app.command(name, help=description, epilog=epilog)(self.load())
        return get_command(app)


COMMANDS = {
    "grow": CommandSpec(
        "growgan.cli.grow:grow", "Grow a GAN on your images within a budget.", resumable=True
    ),
    "train": CommandSpec(
        "growgan.cli.grow:train", "Train a preset as published, without growth.", resumable=True
    ),
    "finetune": CommandSpec(
        "growgan.cli.finetune:finetune", "Make a trained generator class-conditional."
    ),
    "per-class": CommandSpec(
        "growgan.cli.per_class:per_class", "Train one GAN for each class and combine them."
    ),
    "sample": CommandSpec("growgan.cli.sample:sample", "Generate images from a run."),
    "evaluate": CommandSpec(
        "growgan.cli.evaluate:evaluate", "Compute metrics of generated images."
    ),
    "inspect": CommandSpec(
        "growgan.cli.inspect:inspect", "Show a run's growth tree, scores and cost."
    ),
    "report": CommandSpec(
        "growgan.cli.report:report", "Write a run's report as one self-contained page."
    ),
    "explore": CommandSpec("growgan.cli.explore:explore", "Explore a run in the browser."),
    "export": CommandSpec("growgan.cli.export:export", "Export a generator for other programs."),
    "data": CommandSpec("growgan.cli.data:data", "Summarize a dataset and check its files."),
    "list": CommandSpec(
        "growgan.cli.list:list_entries", "List presets, policies, losses, settings and more."
    ),
}


class LazyCommandGroup(TyperGroup):
    """The group of all verbs. Lists them from :data:`COMMANDS` and imports only the one called."""

    @property
    def specs(self) -> Mapping[str, CommandSpec]:
        """All verbs by name."""
        return COMMANDS

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the verbs and their summaries into the help page."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, spec.summary) for name, spec in COMMANDS.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the name, command and arguments of the verb at the start of ``args``."""
        name, *rest = args
        if name not in COMMANDS:
            raise unknown_name_error("command", name, COMMANDS)
        return name, COMMANDS[name].to_click(name), rest


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: Arguments after ``growgan``; None takes those of the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with _sigterm_as_interrupt():
            _dispatch(argv)
        sys.stdout.flush()  # raise BrokenPipeError here, not at exit
    except typer.Exit as exit_:
        return exit_.exit_code
    except (UserError, typer.TyperException) as error:
        return _print_error(_usage_message(error), exit_code=2)
    except (KeyboardInterrupt, typer.Abort) as interrupt:
        return _report_interrupt(argv, str(interrupt))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _report_exception(error)
    return 0


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C inside the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _dispatch(argv: list[str]) -> None:
    # The plain help page of the group calls format_commands; the one of rich would not.
    app = typer.Typer(
        cls=LazyCommandGroup,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    group = get_command(app)
    with group.make_context("growgan", argv) as context:
        group.invoke(context)


def _print_error(message: str, exit_code: int, prefix: str = "error: ") -> int:
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"growgan: {prefix}{line}", file=sys.stderr)
    return exit_code


def _usage_message(error: UserError | typer.TyperException) -> str:
    """Return the text of a user error; for an unknown option, with the nearest valid one."""
    context = getattr(error, "ctx", None)
    if isinstance(error, UserError) or context is None:
        return str(error)
    if hasattr(error, "possibilities"):
        names = [
            name
            for parameter in context.command.get_params(context)
            for name in (*parameter.opts, *parameter.secondary_opts)
            if name.startswith("-")
        ]
        return str(unknown_name_error("option", str(getattr(error, "option_name", "")), names))
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    return f"{message}{_invalid_value_suffix(error, message)}; see: {context.command_path} --help"


def _invalid_value_suffix(error: typer.TyperException, message: str) -> str:
    """Return the invalid value of an option in parentheses, "" if ``message`` contains it."""
    from pydantic import ValidationError

    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return ""
    value = repr(cause.errors()[0]["input"])
    return "" if value in message else f" (got {value})"


def _report_interrupt(argv: list[str], resume_hint: str) -> int:
    """Report the interrupt and how to resume; return 130.

    A verb gives a hint of its own by raising KeyboardInterrupt with a text.
    """
    if sys.stderr.isatty():
        print(file=sys.stderr)  # the terminal shows ^C on the current line
    spec = COMMANDS.get(argv[0]) if argv else None
    if not resume_hint and spec is not None and spec.resumable:
        resume_argv = [*argv, *([] if "--resume" in argv else ["--resume"])]
        resume_hint = f"resume with: growgan {shlex.join(resume_argv)}"
    message = f"interrupted; {resume_hint}" if resume_hint else "interrupted"
    return _print_error(message, exit_code=130, prefix="")


def _report_exception(error: Exception) -> int:
    """Report an unexpected error; return 1."""
    show_traceback = os.environ.get("GROWGAN_TRACEBACK", "") not in ("", "0")
    if show_traceback:
        traceback.print_exception(error)
    hint = "" if show_traceback else " (set GROWGAN_TRACEBACK=1 for a traceback)"
    return _print_error(f"{type(error).__name__}: {error}{hint}", exit_code=1)
