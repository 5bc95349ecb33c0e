"""Tests of the command line: output, errors and exit codes."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Annotated

import pytest
import typer

import growgan
from growgan.cli import app as cli
from growgan.cli.list import REGISTRY_PATHS, load_registry
from growgan.errors import UserError


class Color(Enum):
    red = "red"
    green = "green"


def dummy(
    outcome: str,
    policy: Annotated[str, typer.Option()] = "dynamic",
    count: Annotated[int, typer.Option("--count", "-n")] = 1,
    color: Annotated[Color, typer.Option()] = Color.red,
    resume: Annotated[bool, typer.Option()] = False,
) -> None:
    """Do what a test asks for."""
    failures: dict[str, BaseException] = {
        "mistake": UserError("resolution 20 cannot be\nreached from 4x4"),
        "fail": RuntimeError("the disk\nis full"),
        "interrupt": KeyboardInterrupt(),
        "hint": KeyboardInterrupt("resume with: growgan dummy hint --resume"),
        "pipe": BrokenPipeError(),
    }
    if outcome in failures:
        raise failures[outcome]
    typer.echo(f"{outcome} {policy} {count} {color.value} {resume}")


@pytest.fixture(autouse=True)
def dummy_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a verb ``dummy``, which is imported by its path like the real ones."""
    module = types.ModuleType("dummy_command")
    module.__dict__["run"] = dummy
    monkeypatch.setitem(sys.modules, "dummy_command", module)
    commands = {
        **cli.COMMANDS,
        "dummy": cli.CommandSpec("dummy_command:run", "Do.", resumable=True),
    }
    monkeypatch.setattr(cli, "COMMANDS", commands)
    monkeypatch.delenv("GROWGAN_TRACEBACK", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str, str]]:
    """Return a function that runs a command line and returns (exit code, stdout, stderr)."""

    def call(line: str) -> tuple[int, str, str]:
        code = cli.main(shlex.split(line))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


Run = Callable[[str], tuple[int, str, str]]
growgan_commands = tuple(cli.COMMANDS)


def test_a_verb_gets_its_options_and_exits_0(run: Run) -> None:
    code, out, err = run("dummy hello --policy fixed -n 3 --color green --resume")
    assert (code, out, err) == (0, "hello fixed 3 green True\n", "")


@pytest.mark.parametrize("line", ["", "--help", "-h"])
def test_help_lists_every_verb(run: Run, line: str) -> None:
    code, out, err = run(line)
    assert (code, err) == (0, "")
    for name, spec in cli.COMMANDS.items():
        assert re.search(rf"^ +{name} +{re.escape(spec.summary)}$", out, re.MULTILINE)


def test_help_does_not_import_verbs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "absent", cli.CommandSpec("no_such_module:f", "Not there."))
    code, out, _ = run("--help")
    assert code == 0
    assert "Not there." in out


def test_help_of_a_verb(run: Run) -> None:
    code, out, err = run("dummy --help")
    assert (code, err) == (0, "")
    assert out.strip().startswith("Usage: growgan dummy ")
    assert "Do what a test asks for." in out


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"growgan {growgan.__version__}\n", "")
    assert growgan.__version__ == "0.1.0"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dumy x", r"unknown command 'dumy' \(did you mean 'dummy'\?\); it must be one of: .*grow"),
        ("qqq", r"unknown command 'qqq'; it must be one of: data, dummy, evaluate, "),
        ("--verson", r"unknown option '--verson' \(did you mean '--version'\?\); it must be"),
        ("dummy x --polcy=fixed", r"unknown option '--polcy' \(did you mean '--policy'\?\); "),
        ("dummy x --no-resum", r"unknown option '--no-resum' \(did you mean '--no-resume'\?\); "),
        ("dummy x -q", r"unknown option '-q'.*; it must be one of: .*--color.*-n"),
        (
            "dummy x --color blue",
            r"Invalid value for '--color': 'blue' is not one of 'red', 'green'; see: ",
        ),
        (
            "dummy x -n three",
            r"Invalid value for '--count' / '-n': .* integer .*\(got 'three'\); see: ",
        ),
        ("dummy x --policy", r"Option '--policy' requires an argument"),
        ("dummy", r"Missing argument 'outcome'; see: growgan dummy --help$"),
        ("dummy x y", r"Got unexpected extra argument.*y"),
        ("dummy mistake", r"resolution 20 cannot be reached from 4x4$"),
        ("list lossses", r"unknown kind 'lossses' \(did you mean 'losses'\?\); it must be one of"),
    ],
)
def test_a_mistake_is_one_line_and_exits_2(run: Run, line: str, message: str) -> None:
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert re.match(r"growgan: error: " + message, err.rstrip("\n"))
    assert err.count("\n") == 1


def test_a_failure_is_one_line_with_a_hint_and_exits_1(run: Run) -> None:
    code, out, err = run("dummy fail")
    assert (code, out) == (1, "")
    assert err == (
        "growgan: error: RuntimeError: the disk is full (set GROWGAN_TRACEBACK=1 for a traceback)\n"
    )


def test_a_failure_shows_its_traceback_when_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWGAN_TRACEBACK", "1")
    code, _, err = run("dummy fail")
    assert code == 1
    assert err.startswith("Traceback (most recent call last):")
    assert "test_cli.py" in err
    assert err.endswith("growgan: error: RuntimeError: the disk is full\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dummy interrupt -n 2", "resume with: growgan dummy interrupt -n 2 --resume"),
        ("dummy interrupt --resume", "resume with: growgan dummy interrupt --resume"),
        ("dummy hint", "resume with: growgan dummy hint --resume"),
    ],
)
def test_an_interrupt_says_how_to_resume_and_exits_130(run: Run, line: str, message: str) -> None:
    assert run(line) == (130, "", f"growgan: interrupted; {message}\n")


def test_each_verb_can_follow_any_other_in_one_process(run: Run) -> None:
    assert run("list --help")[0] == 0
    assert run("dummy hello")[0] == 0


def test_an_interrupt_of_a_verb_that_cannot_resume_promises_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "once", cli.CommandSpec("dummy_command:run", "Do."))
    assert run("once interrupt") == (130, "", "growgan: interrupted\n")


WAITING = """
import sys, time, types
from growgan.cli import app as cli

def wait():
    print("ready", flush=True)
    time.sleep(60)

module = types.ModuleType("waiting")
module.wait = wait
sys.modules["waiting"] = module
cli.COMMANDS["wait"] = cli.CommandSpec("waiting:wait", "Wait.", resumable=True)
sys.exit(cli.main(["wait"]))
"""


@pytest.fixture
def waiting() -> Iterator[subprocess.Popen[str]]:
    """Start a process whose verb waits; kill it after the test."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.kill()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_ctrl_c_in_a_real_process(waiting: subprocess.Popen[str]) -> None:
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "ready\n"
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 130
    assert err == "growgan: interrupted; resume with: growgan wait --resume\n"


def test_a_closed_pipe_is_quiet() -> None:
    code = "from growgan.cli import main; import sys; sys.exit(main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_python_dash_m_growgan() -> None:
    command = [sys.executable, "-m", "growgan", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("growgan: error: unknown command 'nonsense'")


def test_list_prints_one_line_per_entry(run: Run) -> None:
    code, out, err = run("list")
    assert (code, err) == (0, "")
    entries = [(kind, entry) for kind in REGISTRY_PATHS for entry in load_registry(kind)]
    lines = out.splitlines()
    assert len(lines) == len(entries) > len(REGISTRY_PATHS)
    for line, (kind, entry) in zip(lines, entries, strict=True):
        assert line.split()[:2] == [kind, entry.name]
        assert entry.summary in line
        assert entry.paper in line


@pytest.mark.parametrize("kind", REGISTRY_PATHS)
def test_list_of_one_kind(run: Run, kind: str) -> None:
    code, out, _ = run(f"list {kind}")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [kind] * len(load_registry(kind))


def test_list_names_the_five_policies(run: Run) -> None:
    _, out, _ = run("list policies")
    names = {line.split()[1] for line in out.splitlines()}
    assert names >= {"dynamic", "progressive", "plateau", "random", "fixed"}


@pytest.mark.parametrize("name", growgan.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(growgan, name) is not None
    assert name in dir(growgan)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'growgan' has no attribute 'graw'"):
        _ = growgan.graw


def test_grow_help_groups_its_options_and_shows_defaults_and_examples(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run("grow --help")
    assert code == 0
    panels = [line for line in out.splitlines() if line.startswith("\u256d")]
    names = ["Data", "Budget", "Architecture", "Output", "Device and cluster"]
    assert [name for line in panels for name in names if f" {name} " in line] == names
    for option, default in (("--budget", "10m"), ("--preset", "pggan"), ("--executor", "serial")):
        (line,) = [line for line in out.splitlines() if re.search(rf"{option} +<", line)]
        assert re.search(rf"default: \(?{default}\)?\]", line)
    assert len(re.findall("^ growgan grow ", out, re.MULTILINE)) == 3


@pytest.mark.parametrize("name", growgan_commands)
def test_every_verb_has_examples_and_a_sentence_for_each_option(name: str) -> None:
    description, examples = cli.COMMANDS[name].help_text()
    assert description.endswith(".") and examples
    assert all(example.startswith(f"growgan {name}") for example in examples)
    for parameter in cli.COMMANDS[name].to_click(name).params:
        assert parameter.help and parameter.help[-1] in ".:", (name, parameter.name)
        assert parameter.help[0].isupper() or parameter.help.startswith("reprogram")
