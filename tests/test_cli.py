"""The command line's contract: what it prints, where, and with which exit code."""

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
from pathlib import Path
from typing import Annotated

import pytest
import typer

import growgan
from growgan.cli import app as cli
from growgan.cli.list import REGISTRIES, registry
from growgan.errors import UserError


class Colour(Enum):
    red = "red"
    green = "green"


def dummy(
    outcome: str,
    policy: Annotated[str, typer.Option()] = "dynamic",
    count: Annotated[int, typer.Option("--count", "-n")] = 1,
    colour: Annotated[Colour, typer.Option()] = Colour.red,
    resume: Annotated[bool, typer.Option()] = False,
) -> None:
    """Do what a test asks for."""
    failures: dict[str, BaseException] = {
        "mistake": UserError("resolution 20 cannot be\nreached from 4x4"),
        "fail": RuntimeError("the disk\nis full"),
        "interrupt": KeyboardInterrupt(),
        "told": KeyboardInterrupt("go on with: growgan dummy told --resume"),
        "pipe": BrokenPipeError(),
    }
    if outcome in failures:
        raise failures[outcome]
    typer.echo(f"{outcome} {policy} {count} {colour.value} {resume}")


@pytest.fixture(autouse=True)
def dummy_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``dummy`` a verb, found by its module's name as the real ones are."""
    module = types.ModuleType("dummy_verb")
    module.__dict__["run"] = dummy
    monkeypatch.setitem(sys.modules, "dummy_verb", module)
    verbs = {**cli.VERBS, "dummy": cli.Verb("dummy_verb:run", "Do.", resumable=True)}
    monkeypatch.setattr(cli, "VERBS", verbs)
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


def test_a_verb_gets_its_options_and_exits_0(run: Run) -> None:
    code, out, err = run("dummy hello --policy fixed -n 3 --colour green --resume")
    assert (code, out, err) == (0, "hello fixed 3 green True\n", "")


@pytest.mark.parametrize("line", ["", "--help", "-h"])
def test_help_lists_every_verb(run: Run, line: str) -> None:
    code, out, err = run(line)
    assert (code, err) == (0, "")
    for name, verb in cli.VERBS.items():
        assert re.search(rf"^ +{name} +{re.escape(verb.summary)}$", out, re.MULTILINE)


def test_help_does_not_import_verbs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "absent", cli.Verb("no_such_module:f", "Not there."))
    code, out, _ = run("--help")
    assert code == 0
    assert "Not there." in out


def test_help_of_a_verb(run: Run) -> None:
    code, out, err = run("dummy --help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: growgan dummy ")
    assert "Do what a test asks for." in out


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"growgan {growgan.__version__}\n", "")
    assert growgan.__version__ == "0.1.0"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dumy x", r"unknown command 'dumy' \(did you mean 'dummy'\?\); it must be one of: .*grow"),
        ("qqq", r"unknown command 'qqq'; it must be one of: condition, data, dummy, "),
        ("--verson", r"unknown option '--verson' \(did you mean '--version'\?\); it must be"),
        ("dummy x --polcy=fixed", r"unknown option '--polcy' \(did you mean '--policy'\?\); "),
        ("dummy x --no-resum", r"unknown option '--no-resum' \(did you mean '--no-resume'\?\); "),
        ("dummy x -q", r"unknown option '-q'.*; it must be one of: .*--colour.*-n"),
        (
            "dummy x --colour blue",
            r"Invalid value for '--colour': 'blue' is not one of 'red', 'green'; see: ",
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
        "growgan: error: RuntimeError: the disk is full (GROWGAN_TRACEBACK=1 shows where)\n"
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
        ("dummy interrupt -n 2", "go on with: growgan dummy interrupt -n 2 --resume"),
        ("dummy interrupt --resume", "go on with: growgan dummy interrupt --resume"),
        ("dummy told", "go on with: growgan dummy told --resume"),
    ],
)
def test_an_interrupt_says_how_to_go_on_and_exits_130(run: Run, line: str, message: str) -> None:
    assert run(line) == (130, "", f"growgan: interrupted; {message}\n")


def test_each_verb_can_follow_any_other_in_one_process(run: Run) -> None:
    assert run("list --help")[0] == 0
    assert run("dummy hello")[0] == 0


def test_an_interrupt_of_a_verb_that_cannot_resume_promises_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.VERBS, "once", cli.Verb("dummy_verb:run", "Do."))
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
cli.VERBS["wait"] = cli.Verb("waiting:wait", "Wait.", resumable=True)
sys.exit(cli.main(["wait"]))
"""


@pytest.fixture
def waiting() -> Iterator[subprocess.Popen[str]]:
    """Start a process whose verb waits; it is gone when the test is over."""
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
    assert err == "growgan: interrupted; go on with: growgan wait --resume\n"


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


def test_list_prints_every_entry_a_line_each(run: Run) -> None:
    code, out, err = run("list")
    assert (code, err) == (0, "")
    entries = [(kind, entry) for kind in REGISTRIES for entry in registry(kind)]
    lines = out.splitlines()
    assert len(lines) == len(entries) > len(REGISTRIES)
    for line, (kind, entry) in zip(lines, entries, strict=True):
        assert line.split()[:2] == [kind, entry.name]
        assert entry.summary in line
        assert entry.paper in line


@pytest.mark.parametrize("kind", REGISTRIES)
def test_list_of_one_kind(run: Run, kind: str) -> None:
    code, out, _ = run(f"list {kind}")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [kind] * len(registry(kind))


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


def test_the_toolbox_in_the_docs_is_what_is_registered(run: Run) -> None:
    code, tables, _ = run("list --markdown")
    assert code == 0
    document = Path(__file__).parent.parent / "docs" / "TOOLBOX.md"
    remade = "docs/TOOLBOX.md must be made again from: growgan list --markdown"
    assert document.read_text().strip().endswith(tables.strip()), remade
