"""A headless browser for tests, and accessibility checks with axe-core."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

IS_BROWSER_REQUIRED = os.environ.get("GROWGAN_BROWSER", "") not in ("", "0")


def skip_without(requirement: str) -> None:
    """Skip the test because ``requirement`` is missing; fail if ``GROWGAN_BROWSER`` is set."""
    if IS_BROWSER_REQUIRED:
        pytest.fail(f"GROWGAN_BROWSER is set, but {requirement} is missing")
    pytest.skip(f"{requirement} is missing")


@contextmanager
def headless() -> Iterator[Any]:
    """Yield a headless Chromium that can only connect to this machine."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    for name, location in (
        ("playwright", find_spec("playwright")),
        ("axe_playwright_python", find_spec("axe_playwright_python")),
        ("Chromium", path),
    ):
        if location is None:
            skip_without(name)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


def serious_violations(page: Any) -> list[str]:
    """Return the serious and critical violations that axe-core finds in a page."""
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {[node['html'][:120] for node in violation['nodes']]}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
    ]
