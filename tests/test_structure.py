"""The rules of the code base: import order, unique names, documentation, and a quick start."""

from __future__ import annotations

import ast
import re
import resource
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from pkgutil import resolve_name

import pytest

from growgan.cli.app import COMMANDS
from growgan.cli.list import REGISTRY_PATHS

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
MODULES = sorted(SOURCE.rglob("*.py"))
ENTRY_POINTS = ("growgan", "growgan.__main__")  # they may import every part

# Each part may import the parts below it, and no other. Modules at the top of the package that are
# not listed (errors, jsonl, ...) may be imported by all parts.
BASE = {"config", "errors", "files", "jsonl", "registry"}
BESIDE = {"data", "metrics", "report"}
LAYERS = {
    "nets": set(),
    "objectives": {"nets"},
    "training": {"objectives", "nets"},
    "sampling": {"training", "objectives", "nets"},
    "search": {"nets"},
    "execution": {"search", "sampling", "training", "objectives", "nets"},
    "run": {"execution", "search", "sampling", "training", "objectives", "nets"},
}
LAYERS["artifacts"] = {"run", *LAYERS["run"]}
LAYERS["tasks"] = {"artifacts", *LAYERS["artifacts"]}
LAYERS["explore"] = {"artifacts", *LAYERS["artifacts"]}
LAYERS["cli"] = {"tasks", "explore", *LAYERS["tasks"]}
ALLOWED: dict[str, set[str]] = {
    **{part: {*below, *BESIDE, *BASE} for part, below in LAYERS.items()},
    "data": set(BASE),
    "metrics": {"data", *BASE},
    "report": {"data", *BASE},
    "config": {"errors", "registry"},
    "errors": set(),
    "files": set(),
    "jsonl": {"errors"},
    "registry": {"errors"},
}

# What a string constant may import: module:name, a dotted module, or code.
IMPORT_PATH = re.compile(r"growgan(?:\.\w+)+:\w+")
MODULE_PATH = re.compile(r"growgan(?:\.\w+)+")
CODE = re.compile(r"(?:from|import) (growgan(?:\.\w+)+)|-m (growgan(?:\.\w+)*)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(path: Path) -> str:
    """Return the name of a module, such as ``growgan.nets.spec``."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


NAMES = {module_name(path): path for path in MODULES}


def existing_module(name: str) -> str:
    """Return the longest prefix of a dotted name that is a module of the package."""
    parts = name.split(".")
    return next(
        (prefix for k in range(len(parts), 0, -1) if (prefix := ".".join(parts[:k])) in NAMES),
        name,
    )


def imported_names(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the dotted names that an import statement imports from growgan."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
        names = [f"{base}.{alias.name}" for alias in node.names]
    else:
        return
    yield from (name for name in names if name.split(".")[0] == "growgan")


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """Return the nodes of all docstrings, of classes and attributes too."""
    return {
        statement.value
        for node in ast.walk(tree)
        if isinstance(body := getattr(node, "body", None), list)  # not that of a lambda
        for statement in body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    }


def names_in_strings(tree: ast.AST) -> Iterator[str]:
    """Yield the names that strings import: import paths, modules and code."""
    ignored = docstrings(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if node in ignored:
            continue
        text = node.value
        if IMPORT_PATH.fullmatch(text) or MODULE_PATH.fullmatch(text):
            yield text.replace(":", ".")
        for module, command in CODE.findall(text):
            yield module or ("growgan.cli" if command == "growgan" else command)


def package_of(name: str, *, is_package: bool) -> str:
    return name if is_package else name.rpartition(".")[0]


def all_imports(name: str, tree: ast.AST, *, is_package: bool = False) -> set[str]:
    """Return every name that a module imports, in functions and strings too."""
    package = package_of(name, is_package=is_package)
    names = {imported for node in ast.walk(tree) for imported in imported_names(node, package)}
    return names | set(names_in_strings(tree))


def imports_at_import_time(name: str, tree: ast.Module, *, is_package: bool) -> set[str]:
    """Return the modules that are imported when a module is imported."""
    package = package_of(name, is_package=is_package)

    def visit(statements: list[ast.stmt]) -> Iterator[str]:
        for node in statements:
            yield from imported_names(node, package)
            if isinstance(node, Function):
                continue
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                yield from visit(node.orelse)
                continue
            for field in ("body", "orelse", "finalbody"):
                yield from visit(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from visit(handler.body)

    return {existing_module(imported) for imported in visit(tree.body)} - {name}


def forbidden_imports(name: str, tree: ast.AST, *, is_package: bool = False) -> set[str]:
    """Return the parts that the module ``name`` imports although it must not."""
    part = name.split(".")[1]
    parts = {imported.split(".")[1] for imported in all_imports(name, tree, is_package=is_package)
             if "." in imported}  # fmt: skip
    parts = {each for each in parts if f"growgan.{each}" in NAMES or each in ALLOWED}
    return parts - ALLOWED.get(part, set()) - {part}


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a cycle of the graph, [] if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def is_overload(node: Function | ast.ClassDef) -> bool:
    return any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield the public classes and functions of a module, and the public methods of classes."""
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if is_overload(node):  # the implementation below it is documented
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, Function) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


def unannotated(function: Function) -> list[str]:
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    parameters += [p for p in (arguments.vararg, arguments.kwarg) if p is not None]
    missing = [p.arg for p in parameters if p.annotation is None and p.arg not in ("self", "cls")]
    return missing if function.returns is not None else [*missing, "return"]


def project_files() -> list[Path]:
    """Return the files that git tracks or would track."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [path for name in output.split("\0") if name and (path := ROOT / name).is_file()]


# --- the rules themselves, on code whose answer is known


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("growgan.nets.spec", "from growgan.objectives import losses", {"objectives"}),
        ("growgan.nets.spec", "import growgan.training.gan", {"training"}),
        ("growgan.nets.spec", "from growgan import run", {"run"}),
        ("growgan.nets.spec", "from ..objectives.losses import hinge", {"objectives"}),
        ("growgan.nets.spec", "from . import layers\nfrom .. import errors", set()),
        ("growgan.run.search_loop", "from growgan.nets import spec", set()),
        ("growgan.run.search_loop", "def f():\n    from growgan.cli import main", {"cli"}),
        ("growgan.run.search_loop", "x = 'from growgan.cli.app import main; main()'", {"cli"}),
        ("growgan.run.search_loop", "x = 'python -m growgan train'", {"cli"}),
        ("growgan.run.search_loop", "x = 'growgan.artifacts.load:load'", {"artifacts"}),
        ("growgan.run.search_loop", "x = 'growgan.artifacts.load'", {"artifacts"}),
        ("growgan.run.search_loop", "x = 'see growgan.artifacts.load'", set()),
        ("growgan.search.history", "from growgan.training import gan", {"training"}),
        ("growgan.data.store", "from growgan.nets import spec", {"nets"}),
        ("growgan.metrics.registry", "from growgan.data import ImageSet", set()),
        ("growgan.report.page", "from growgan.metrics import registry", {"metrics"}),
        ("growgan.explore.api", "from growgan.tasks import TASKS", {"tasks"}),
    ],
)
def test_forbidden_imports_finds_each_way_to_write_one(
    name: str, code: str, expected: set[str]
) -> None:
    assert forbidden_imports(name, ast.parse(code)) == expected


def test_imports_in_functions_and_for_type_checking_are_not_made_at_import_time() -> None:
    code = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from growgan.cli import app\n"
        "def f():\n    from growgan.cli import app\n"
        "try:\n    import growgan.errors\nexcept ImportError:\n    pass\n"
        "class C:\n    from growgan.nets.spec import NetworkSpec\n"
    )
    names = imports_at_import_time("growgan.run.run", ast.parse(code), is_package=False)
    assert names == {"growgan.errors", "growgan.nets.spec"}


def test_find_cycle() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}


# --- the rules on this project


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    name = module_name(path)
    if name not in ENTRY_POINTS:
        is_package = path.name == "__init__.py"
        assert not forbidden_imports(name, parse(path), is_package=is_package)


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        name: imports_at_import_time(name, parse(path), is_package=path.name == "__init__.py")
        for name, path in NAMES.items()
    }
    assert not find_cycle(graph)


def test_every_name_in_a_string_exists() -> None:
    """Names in strings are imported lazily, so nothing else finds a wrong one early."""
    missing = []
    for name, path in NAMES.items():
        for imported in names_in_strings(parse(path)):
            module = existing_module(imported)
            attribute = imported.removeprefix(module).lstrip(".")
            try:
                resolve_name(f"{module}:{attribute}" if attribute else module)
            except (ImportError, AttributeError):
                missing.append(f"{name}: {imported}")
    assert not missing


@pytest.mark.parametrize("path", [*(s.import_path for s in COMMANDS.values()),
                                  *REGISTRY_PATHS.values()])  # fmt: skip
def test_every_lazy_import_path_resolves(path: str) -> None:
    assert resolve_name(path) is not None


def test_no_two_classes_share_a_name() -> None:
    modules = defaultdict(list)
    for name, path in NAMES.items():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                modules[node.name].append(name)
    assert not {name: where for name, where in modules.items() if len(where) > 1}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_public_code_is_documented_and_annotated(path: Path) -> None:
    tree, problems = parse(path), []
    if path.read_text("utf-8").strip() and ast.get_docstring(tree) is None:
        problems.append("the module has no docstring")
    for name, node in public_definitions(tree):
        if ast.get_docstring(node) is None and "." not in name:
            problems.append(f"{name} has no docstring")
        if isinstance(node, Function) and unannotated(node):
            problems.append(f"{name} has no annotation of: {', '.join(unannotated(node))}")
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
    suffix = "\nimport sys; sys.stderr.write('TORCH' if 'torch' in sys.modules else 'NONE')"
    command = [sys.executable, "-c", code + suffix]
    process = subprocess.run(command, capture_output=True, check=True, text=True)
    assert process.stderr in ("TORCH", "NONE"), process.stderr
    return process.stderr == "TORCH"


def test_loads_torch_sees_torch() -> None:
    assert loads_torch("import sys, types; sys.modules['torch'] = types.ModuleType('torch')")


def test_import_growgan_loads_no_torch() -> None:
    assert not loads_torch("import growgan; dir(growgan)")


def test_import_data_loads_no_torch() -> None:
    assert not loads_torch("import growgan.data")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"]], ids=" ".join)
def test_root_command_loads_no_torch(arguments: list[str]) -> None:
    assert not loads_torch(f"from growgan.cli import main; assert main({arguments}) == 0")


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_of_a_verb_loads_no_torch(verb: str) -> None:
    assert not loads_torch(f"from growgan.cli import main; assert main(['{verb}', '--help']) == 0")


def test_help_takes_less_than_half_a_second() -> None:
    def processor_seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    seconds = []
    for _ in range(3):  # the first may have to compile
        before = processor_seconds()
        command = [sys.executable, "-m", "growgan", "--help"]
        subprocess.run(command, capture_output=True, check=True)
        seconds.append(processor_seconds() - before)
    assert min(seconds) < 0.5
