"""The pages by axe-core: no serious finding (contrast, labels, names, landmarks), in both schemes and in the viewer."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from copyscope.report import lookup, render, render_lint
from tests.audits import FakeResult, make_audit, make_lint, make_lookup, other_audit

pytest.importorskip("axe_playwright_python", reason="axe-core comes with the extra dev")
pytest_plugins = ("tests.browser",)
pytestmark = pytest.mark.browser

PAGES = {
    "audit": lambda: render(make_audit(60, 12)),
    "suspicious": lambda: render(other_audit("suspicious")),
    "cannot tell": lambda: render(other_audit("cannot tell")),
    "void": lambda: render(FakeResult({}, {})),
    "lint": lambda: render_lint(make_lint()),
    "look-up": lambda: lookup.render(make_lookup()),
}


def serious(page: Any) -> list[str]:
    """Serious and critical findings of axe-core, each with the first element it is on."""
    page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]} {each['nodes'][0]['failureSummary'][:300]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", list(PAGES))
def test_no_serious_finding(visit: Any, tmp_path: Path, name: str, scheme: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(PAGES[name](), encoding="utf-8")
    page = visit(path, scheme=scheme).page
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert serious(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_finding_in_the_viewer(visit: Any, tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(PAGES["audit"](), encoding="utf-8")
    page = visit(path, "phone", scheme).page
    page.locator("#gallery-rows .zoom").first.click()
    page.locator("#viewer .marker button").first.click()
    assert serious(page) == []
    page.keyboard.press("s")
    assert serious(page) == []
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.closest('#gallery-rows') !== null"), "focus goes back to the card"
