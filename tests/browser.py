"""Fixtures that open a page in the system's Chromium and watch what it does.

Use with `pytest_plugins = ("tests.browser",)`, not by import. Without a browser its tests are skipped,
but fail where the environment says CI=true.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@dataclasses.dataclass
class Visit:
    """A page that is open, and all it said and asked for since it was opened."""

    page: Any
    requests: list[str] = dataclasses.field(default_factory=list)
    complaints: list[str] = dataclasses.field(default_factory=list)

    def assert_quiet(self) -> None:
        """No console error or warning, no uncaught error, and no request but for the file itself, embedded data and
        files that the page makes for the user to save."""
        assert self.complaints == []
        own = ("data:", "blob:", self.requests[0].split("#")[0])
        assert [url for url in self.requests[1:] if not url.startswith(own)] == []


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The running browser (playwright's `Browser`)."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        message = f"no browser on PATH (looked for {', '.join(NAMES)}); `make browser` installs one"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    """`visit(path, size="desktop", scheme="light", scripts=True)` opens a file, which must stay quiet."""
    visits: list[Visit] = []

    def open_file(path: Path, size: str = "desktop", scheme: str = "light", scripts: bool = True) -> Visit:
        context = chromium.new_context(
            viewport={"width": SIZES[size][0], "height": SIZES[size][1]},
            color_scheme=scheme,
            java_script_enabled=scripts,
            has_touch=size == "phone",
            is_mobile=size == "phone",
        )
        visited = Visit(context.new_page())
        visits.append(visited)
        visited.page.on("request", lambda request: visited.requests.append(request.url))
        visited.page.on("pageerror", lambda error: visited.complaints.append(f"error: {error}"))
        visited.page.on(
            "dialog", lambda dialog: (visited.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss())
        )
        visited.page.on("console", lambda said: _listen(visited, said))
        visited.page.goto(path.as_uri())
        return visited

    yield open_file
    for visited in visits:
        visited.page.context.close()
    for visited in visits:
        visited.assert_quiet()


def _listen(visited: Visit, said: Any) -> None:
    if said.type in ("error", "warning", "assert"):
        visited.complaints.append(f"{said.type}: {said.text}")
