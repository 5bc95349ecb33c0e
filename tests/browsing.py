"""A real browser for tests, and what axe-core finds in a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

NEEDED = os.environ.get("GROWGAN_BROWSER", "") not in ("", "0")  # then a missing one is a failure


def missing(what: str) -> None:
    """Skip the test for want of something, or fail it where ``GROWGAN_BROWSER`` is set."""
    if NEEDED:
        pytest.fail(f"GROWGAN_BROWSER is set, and there is no {what}")
    pytest.skip(f"there is no {what}")


@contextmanager
def headless() -> Iterator[Any]:
    """Yield a headless Chromium that can reach nothing but this machine."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    for name, found in (
        ("playwright", find_spec("playwright")),
        ("axe_playwright_python", find_spec("axe_playwright_python")),
        ("Chromium", path),
    ):
        if found is None:
            missing(name)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        flags = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        chromium = started.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


def serious(page: Any) -> list[str]:
    """Return what axe-core finds in the page that is serious or worse."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {[node['html'][:120] for node in each['nodes']]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
