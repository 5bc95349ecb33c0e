"""What is released: the wheel and the sdist are built, installed, and have all that they need."""

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
# What a packager finds in the sdist: files, and folders with all that is in them. Tests read them.
NEEDED = set(
    "LICENSE README.md CHANGELOG.md CITATION.cff CONTRIBUTING.md Makefile constraints.txt"
    " mkdocs.yml pyproject.toml benchmarks/search_simulation.py".split()
)
SHARED = ("src", "tests", "docs", "examples")


def test_the_version_follows_semantic_versioning_and_is_the_same_everywhere() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", growgan.__version__)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == growgan.__version__ and citation["license"] == "Apache-2.0"
    assert f"## [{growgan.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_what_contributing_tells_to_use_is_installed_by_the_dev_extra() -> None:
    told = (ROOT / "CONTRIBUTING.md").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[]", each)[0] for each in extras["optional-dependencies"]["dev"]}
    assert "pre-commit install" in told and {"pre-commit", "ruff", "mypy", "pytest"} <= names


def test_the_public_names_are_typed() -> None:
    for name in growgan.__all__:
        assert getattr(growgan, name) is not None
    assert (Path(growgan.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_and_the_sdist_are_built_and_the_wheel_works(tmp_path: Path) -> None:
    if find_spec("build") is None or find_spec("hatchling") is None:
        pytest.skip("build and hatchling are not installed")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(words, check=True, capture_output=True)
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for part in ("py.typed", "explore/page.html", "explore/page.js", "explore/page.css"):
        assert f"growgan/{part}" in names
    assert not [name for name in names if name.startswith("tests")]
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert not NEEDED - inside
    tracked = {
        p.relative_to(ROOT).as_posix() for each in SHARED for p in (ROOT / each).rglob("*.*")
    }
    assert {name for name in tracked if "__pycache__" not in name} <= inside
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(place), str(wheel)], check=True, capture_output=True)
    program = "import growgan, growgan.cli; print(growgan.__file__); growgan.cli.main(['list'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(place)) and "dynamic" in done.stdout
