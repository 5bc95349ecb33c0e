"""The rules that keep the code in shape: who imports whom, how long things are, what is said."""

from __future__ import annotations

import ast
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from growgan.cli.app import VERBS

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
MODULES = sorted(SOURCE.rglob("*.py"))

CHAIN = ("cli", "growth", "training", "objectives", "nets")  # imports run to the right only
BESIDE = ("data", "metrics")  # these import none of the chain
REPORT_MAY_IMPORT = {"data", "errors", "plain", "registry", "report"}

FUNCTION_LINES, LOOP_LINES, FILE_LINES, LINE_LENGTH = 40, 80, 400, 100
LOOP_HOME = "growgan/training/stage.py"  # the one training loop lives here

Function = ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def parts_imported(path: str, tree: ast.AST) -> set[str]:
    """Return the parts of growgan (``nets``, ``errors``, ...) that a module's code imports."""
    package = ["growgan", *path.split("/")[1:-1]]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("growgan.")}


def forbidden_imports(path: str, tree: ast.AST) -> set[str]:
    """Return what the module ``path``, as in ``growgan/nets/spec.py``, must not import but does."""
    part = path.split("/")[1].removesuffix(".py")
    imported = parts_imported(path, tree)
    if part == "report":
        return imported - REPORT_MAY_IMPORT
    if part in CHAIN:
        return imported & set(CHAIN[: CHAIN.index(part)])
    if part in BESIDE or part in ("errors", "registry"):
        return imported & set(CHAIN)
    return imported & {"cli"}


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def code_lines(function: Function) -> int:
    """Return a function's lines from ``def`` on, its docstring not counted."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def public(tree: ast.Module) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield the public classes and functions of a module, and the public methods of the former."""
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, Function) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


def unannotated(function: Function) -> list[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
    missing = [each.arg for each in every if each.annotation is None]
    missing = [name for name in missing if name not in ("self", "cls")]
    return missing if function.returns is not None else [*missing, "return"]


def project_files() -> list[Path]:
    """Return the files that git tracks or would track."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


# --- the rules themselves, on code where the answer is known


@pytest.mark.parametrize(
    ("path", "code", "expected"),
    [
        ("growgan/nets/spec.py", "from growgan.objectives import losses", {"objectives"}),
        ("growgan/nets/spec.py", "import growgan.training.gan", {"training"}),
        ("growgan/nets/spec.py", "from growgan import growth", {"growth"}),
        ("growgan/nets/spec.py", "from ..objectives.losses import hinge", {"objectives"}),
        ("growgan/nets/spec.py", "from . import layers\nfrom .. import errors", set()),
        ("growgan/nets/__init__.py", "from .objectives import x", set()),
        ("growgan/growth/search.py", "from growgan.nets import spec", set()),
        ("growgan/growth/search.py", "def f():\n    from growgan.cli import main", {"cli"}),
        ("growgan/data/store.py", "from growgan.nets import spec", {"nets"}),
        ("growgan/metrics/swd.py", "from growgan.data import ImageSet", set()),
        ("growgan/report/page.py", "from growgan.metrics import swd", {"metrics"}),
        ("growgan/config.py", "from growgan.nets.presets import PRESETS", set()),
    ],
)
def test_forbidden_imports_finds_each_way_to_write_one(
    path: str, code: str, expected: set[str]
) -> None:
    assert forbidden_imports(path, ast.parse(code)) == expected


def test_code_lines_leave_out_the_docstring_and_decorators() -> None:
    code = '@cache\ndef f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    return x\n'
    assert [code_lines(each) for each in functions(ast.parse(code))] == [4]


# --- the rules on this project


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_run_one_way(path: Path) -> None:
    name = relative(path)
    if name in ("growgan/__init__.py", "growgan/__main__.py"):
        return  # the front doors lead to every part
    assert not forbidden_imports(name, ast.parse(path.read_text("utf-8")))


def test_functions_and_files_are_short() -> None:
    problems, loops = [], []
    for path in MODULES:
        text = path.read_text("utf-8")
        lines = text.splitlines()
        if len(lines) > FILE_LINES:
            problems.append(f"{relative(path)}: {len(lines)} lines")
        for number, line in enumerate(lines, 1):
            if len(line) > LINE_LENGTH:
                problems.append(f"{relative(path)}:{number}: {len(line)} characters")
        for function in functions(ast.parse(text)):
            length = code_lines(function)
            if relative(path) == LOOP_HOME and FUNCTION_LINES < length <= LOOP_LINES:
                loops.append(function.name)
            elif length > FUNCTION_LINES:
                problems.append(f"{relative(path)}: {function.name} has {length} lines")
    assert not problems
    assert len(loops) <= 1, "there is one training loop"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_public_code_is_documented_and_annotated(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    problems = []
    if path.read_text("utf-8").strip() and ast.get_docstring(tree) is None:
        problems.append("the module has no docstring")
    for name, node in public(tree):
        if ast.get_docstring(node) is None and "." not in name:
            problems.append(f"{name} has no docstring")
        if isinstance(node, Function) and unannotated(node):
            problems.append(f"{name} leaves unannotated: {', '.join(unannotated(node))}")
    assert not problems


def test_no_machine_paths_or_registry_hosts() -> None:
    machine = re.compile(r"(?<![\w.~-])/(?:work|home|root|Users)/")
    hosts = re.compile(r"pypi\.org|pythonhosted\.org|npmjs\.org|deb\.debian\.org|download\.pytorch")
    problems = []
    for path in project_files():
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if machine.search(line) or hosts.search(line):
                problems.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not problems


# --- a quick start


def loads_torch(code: str) -> bool:
    """Return whether running ``code`` in a fresh interpreter loads torch."""
    ending = "\nimport sys; sys.stderr.write('TORCH' if 'torch' in sys.modules else 'NONE')"
    command = [sys.executable, "-c", code + ending]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stderr in ("TORCH", "NONE"), done.stderr
    return done.stderr == "TORCH"


def test_loads_torch_sees_torch() -> None:
    assert loads_torch("import sys, types; sys.modules['torch'] = types.ModuleType('torch')")


def test_import_growgan_loads_no_torch() -> None:
    assert not loads_torch("import growgan; dir(growgan)")


def test_import_data_loads_no_torch() -> None:
    assert not loads_torch("import growgan.data")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"]], ids=" ".join)
def test_root_command_loads_no_torch(arguments: list[str]) -> None:
    assert not loads_torch(f"from growgan.cli import main; assert main({arguments}) == 0")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_loads_no_torch(verb: str) -> None:
    assert find_spec(VERBS[verb].target.split(":")[0]) is not None
    assert not loads_torch(f"from growgan.cli import main; assert main(['{verb}', '--help']) == 0")


def test_help_takes_less_than_half_a_second() -> None:
    def processor_seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    spent = []
    for _ in range(3):  # the first run may have to compile
        before = processor_seconds()
        command = [sys.executable, "-m", "growgan", "--help"]
        subprocess.run(command, capture_output=True, check=True)
        spent.append(processor_seconds() - before)
    assert min(spent) < 0.5
