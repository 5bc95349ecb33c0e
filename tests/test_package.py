"""Tests of releases: the wheel and the sdist are complete, and the wheel works when installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import growgan

ROOT = Path(__file__).resolve().parent.parent
# Files and folders that the sdist must contain, because tests and packagers need them.
REQUIRED_FILES = set(
    "LICENSE README.md CHANGELOG.md CITATION.cff CONTRIBUTING.md Makefile constraints.txt"
    " mkdocs.yml pyproject.toml benchmarks/search_simulation.py".split()
)
INCLUDED_FOLDERS = ("src", "tests", "docs", "examples")


def test_the_version_follows_semantic_versioning_and_is_the_same_everywhere() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", growgan.__version__)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == growgan.__version__ and citation["license"] == "Apache-2.0"
    assert f"## [{growgan.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_dev_extra_installs_the_tools_of_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        re.split(r"[<>=\[]", requirement)[0]
        for requirement in project["optional-dependencies"]["dev"]
    }
    assert "pre-commit install" in text and {"pre-commit", "ruff", "mypy", "pytest"} <= names


def test_the_public_names_are_typed() -> None:
    for name in growgan.__all__:
        assert getattr(growgan, name) is not None
    assert (Path(growgan.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_and_the_sdist_are_built_and_the_wheel_works(tmp_path: Path) -> None:
    if find_spec("build") is None or find_spec("hatchling") is None:
        pytest.skip("build and hatchling are not installed")
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for part in ("py.typed", "explore/page.html", "explore/page.js", "explore/page.css"):
        assert f"growgan/{part}" in names
    assert not [name for name in names if name.startswith("tests")]
    with tarfile.open(source) as archive:
        sdist_files = {name.partition("/")[2] for name in archive.getnames()}
    assert not REQUIRED_FILES - sdist_files
    tracked = {
        p.relative_to(ROOT).as_posix()
        for folder in INCLUDED_FOLDERS
        for p in (ROOT / folder).rglob("*.*")
    }
    assert {name for name in tracked if "__pycache__" not in name} <= sdist_files
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, capture_output=True)
    program = "import growgan, growgan.cli; print(growgan.__file__); growgan.cli.main(['list'])"
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.startswith(str(target)) and "dynamic" in process.stdout
