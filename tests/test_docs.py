"""Commands and code in the README and the docs work, on small images and with a small budget.

Blocks of ``sh`` and ``python`` are run. Commands in blocks of ``text`` are only parsed. The blocks
of a page run in order in one folder, so a command may use the results of earlier ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from PIL import Image

from growgan.cli import main
from growgan.cli.app import LazyCommandGroup
from growgan.config import make_settings
from growgan.errors import UserError
from growgan.search.budget import Budget
from growgan.search.policies import make_policy

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A command that is indented like code, outside of a block.
INDENTED = re.compile(r"^(?: {4,}|\t)\s*(?:growgan|pip|make|python|import|from) ", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
KINDS = {"sh", "python", "text", "toml", "yaml"}
# Options that make a run small.
SMALL = (
    "--set batch_size=8 --set network.width=8 --set network.latent_dim=16"
    " --set score.num_samples=64"
)
TRAINING_VERBS = ("grow", "train", "finetune", "per-class")
# Commands that other tests run.
SKIPPED = ("make ", "pip ", "git ", "pre-commit ", "python benchmarks/", "torchrun ")


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(kind, text) for kind, text in BLOCK.findall(page.read_text())]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(text: str) -> Iterator[str]:
    """Yield the commands of a block, with a small budget in place of theirs."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or line.startswith(SKIPPED) or words[:2] == ["growgan", "explore"]:
            continue  # the explorer runs until it is interrupted, and has its own test
        if words[0] == "growgan" and words[1] in TRAINING_VERBS:
            if "--resume" not in words:
                words += shlex.split(SMALL)
            words = shlex.split(re.sub(r"--budget \S+", "--images 160", shlex.join(words)))
            if "--resume" in words:
                words[words.index("--images") + 1] = "320"
        yield shlex.join(words).replace(" '>' ", " > ")  # into a file


def parsed_commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each ``growgan`` command in a block that is not run.

    Shell variables are replaced by 1.
    """
    for line in text.replace("\\\n", " ").splitlines():
        match = re.search(r"(?:^|python3? -m |torchrun .*-m )growgan (?=[a-z-]+(?: |$))(.*)", line)
        if match:
            yield shlex.split(re.sub(r"\$\{?\w+\}?", "1", match[1]), comments=True)


def check_command(arguments: list[str]) -> None:
    """Parse a command and check its budget, settings and policy, without running it."""
    group = LazyCommandGroup(name="growgan")
    with group.make_context("growgan", [], resilient_parsing=True) as context:
        verb, command, rest = group.resolve_command(context, arguments)
        options = command.make_context(verb, rest, parent=context).params
    if options.get("budget"):
        Budget.parse(options["budget"])
    settings = make_settings(overrides=options.get("overrides") or ())
    make_policy(options.get("policy") or settings.policy, settings.growth)


def python(text: str) -> str:
    """Return a block of Python with a small budget in place of its own."""
    settings = {"batch_size": 8, "network": {"width": 8, "latent_dim": 16}}
    small = f"images=160, settings={settings!r}"
    return re.sub(r'budget="\w+"', small, text)


def write_photos(folder: Path, count: int, seed: int) -> None:
    """Write photographs of two classes, of several sizes."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        class_dir = folder / ("cats" if i % 2 else "dogs")
        class_dir.mkdir(parents=True, exist_ok=True)
        height, width = (48, 64) if i % 3 else (40, 56)
        pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        large = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        large.save(class_dir / f"{i:03d}.png")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_code_block_names_its_language(page: Path) -> None:
    parts = re.split(r"^```(\w*)$", page.read_text(), flags=re.MULTILINE)
    kinds, texts = parts[1::4], parts[2::4]  # between them are the closing fences
    assert len(parts) % 4 == 1 and not any(parts[3::4]) and set(kinds) <= KINDS | {""}
    plain = [text for kind, text in zip(kinds, texts, strict=True) if not kind]
    # Commands belong in blocks of sh, which are run.
    assert not any(line.startswith("growgan ") for text in plain for line in text.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_command_is_in_an_indented_block(page: Path) -> None:
    assert not INDENTED.findall(BLOCK.sub("", page.read_text()))


def test_an_indented_command_is_found() -> None:
    assert INDENTED.search("# Metrics\n\n    growgan evaluate RUN DATA\n")
    assert not INDENTED.search("- a list, of what\n  growgan report makes\n")


PARSED_COMMANDS = [
    (page, arguments)
    for page in PAGES
    for kind, text in blocks(page)
    if kind == "text"
    for arguments in parsed_commands(text)
]


@pytest.mark.parametrize(
    ("page", "arguments"),
    PARSED_COMMANDS,
    ids=lambda value: "" if isinstance(value, Path) else shlex.join(value),
)
def test_a_command_that_no_test_runs_is_valid(page: Path, arguments: list[str]) -> None:
    check_command(arguments)


def test_invalid_commands_are_detected() -> None:
    (words,) = parsed_commands(
        'x=1 torchrun --nproc 4 \\\n  -m growgan per-class a b --only-class "$I"  # comment'
    )
    assert words == ["per-class", "a", "b", "--only-class", "1"]
    check_command(words)
    assert not [*parsed_commands("growgan: blobs (64 images)\ngrowgan 0.1.0")]
    assert len([words for _, words in PARSED_COMMANDS if "--executor" in words]) >= 8
    for invalid in (
        "--gpu 1",
        "--gpus-per-worker one",
        "--budget 3x",
        "--set growth.serach=1",
        "--set batch_size=x",
    ):
        with pytest.raises((UserError, typer.TyperException)):
            check_command(["grow", "photos/", *invalid.split()])
    with pytest.raises(UserError, match="unknown command"):
        check_command(["gorw", "photos/"])


def pages_of(entries: list[Any]) -> Iterator[str]:
    """Yield the pages of a site's navigation."""
    for entry in entries:
        (target,) = entry.values() if isinstance(entry, dict) else (entry,)
        if isinstance(target, list):
            yield from pages_of(target)
        else:
            yield target


def test_the_site_has_every_page_and_nothing_else() -> None:
    entries = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = [p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")]
    assert sorted(entries) == sorted(written) and entries[0] == "index.md"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs and mkdocstrings are not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    reference = (tmp_path / "reference" / "index.html").read_text()
    for identifier in (
        "growgan.sampling.trained_generator.TrainedGenerator.sample",
        "growgan.Generator.from_pretrained",
    ):
        assert f'id="{identifier}"' in reference
    assert 'id="growgan.RayCluster"' in reference


@pytest.mark.parametrize(
    ("page", "kind", "expected"),
    [
        ("COMMANDS", ["commands"], "grow "),
        ("SETTINGS", ["settings"], "optimizer.lr"),
        ("TOOLBOX", [], "stylegan2"),
    ],
)
def test_pages_generated_from_the_code_are_current(
    page: str, kind: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", *kind, "--markdown"]) == 0
    hint = f"regenerate docs/{page}.md with: growgan {shlex.join(['list', *kind, '--markdown'])}"
    tables = capsys.readouterr().out.strip()
    assert (ROOT / "docs" / f"{page}.md").read_text().strip().endswith(tables), hint
    if kind == ["settings"]:
        assert not [line for line in tables.splitlines() if line.endswith("|  |")]
    assert main(["list", *kind]) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_has_a_target(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=name)
def test_the_commands_and_code_of_a_page_work(page: Path, tmp_path: Path) -> None:
    page_blocks = [(kind, text) for kind, text in blocks(page) if kind in ("sh", "python")]
    if any("fashion-mnist" in text for _, text in page_blocks):
        from growgan.data import default_cache
        from growgan.data.fashion import open_fashion_mnist

        try:
            open_fashion_mnist("", default_cache())
        except UserError as error:
            pytest.skip(str(error))
    write_photos(tmp_path / "photos", 60, 0)
    write_photos(tmp_path / "others", 120, 1)
    for folder, seed in (("folder_a", 2), ("folder_b", 3)):
        write_photos(tmp_path / folder, 24, seed)
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    steps = []
    program = ""
    for kind, text in page_blocks:
        if kind == "sh":
            steps += [("sh", command) for command in commands(text)]
        else:  # the blocks of a page are one program
            program += python(text) + "\n"
    steps += [("python", program)] if program else []
    for kind, text in steps:
        arguments = ["bash", "-ec", text] if kind == "sh" else [sys.executable, "-c", text]
        process = subprocess.run(
            arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, (
            f"{text}\n{process.stdout[-2000:]}\n{process.stderr[-2000:]}"
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=name)
def test_a_notebook_runs_from_end_to_end(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    monkeypatch.setenv("GROWGAN_BUDGET", "20s")
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # outputs are not stored
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any("image/png" in str(cell.outputs) for cell in code)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_explorer_is_served_by_its_command(tmp_path: Path) -> None:
    for module in ("starlette", "uvicorn"):
        pytest.importorskip(module)
    write_photos(tmp_path / "photos", 60, 0)
    grow = next(commands("growgan grow photos/ --resolution 16 --budget 5m --out runs/photos"))
    python = [sys.executable, "-m", "growgan"]
    subprocess.run([*python, *shlex.split(grow)[1:]], cwd=tmp_path, check=True, capture_output=True)
    options = ["explore", "runs/photos", "--data", "photos/", "--no-browser", "--port", "0"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([*python, *options], cwd=tmp_path, **streams) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            for _ in range(100):  # the address is printed just before the server listens
                with contextlib.suppress(OSError), opener.open(address, timeout=10) as page:
                    assert b"growgan explorer" in page.read()
                    break
            else:
                raise AssertionError(f"nothing answers at {address}")
        finally:
            server.terminate()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_of_the_readme_works(tmp_path: Path) -> None:
    if shutil.which("make") is None or not (ROOT / ".venv" / ".ready").is_file():
        pytest.skip("needs make and an environment that it created")
    # Install nothing: only the demo is tested.
    command = ["make", "demo", f"DEMO={tmp_path / 'demo'}", "--old-file=.venv/.ready"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    for filename in ("report.html", "samples.png"):
        assert (tmp_path / "demo" / filename).stat().st_size > 1000
        assert filename in process.stdout
