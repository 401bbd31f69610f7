"""The docs as a site: built without a warning, with every page, and fetching nothing from other hosts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import copyscope

ROOT = Path(__file__).parent.parent
NAV = re.findall(r"^ +- .+: ([\w-]+)\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
# Tags that make a browser fetch what they name; `a` does not until somebody follows it.
FETCHING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}


def build(into: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """Run a strict build."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", into],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Fetched(HTMLParser):
    """What a browser fetches with a page, by its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "link" and named.get("rel") in ("prev", "next", "canonical"):
            return
        self.found.append(named.get(FETCHING.get(tag, "")) or "")


def elsewhere(html: str) -> list[str]:
    """Names of other hosts among what a page makes a browser fetch."""
    page = Fetched()
    page.feed(html)
    return [each for each in page.found if re.match(r"(https?:)?//", each)]


def test_every_page_of_the_nav_is_built(site: Path) -> None:
    assert len(NAV) > 25
    for name in NAV:
        assert "<h1" in (site / f"{name}.html").read_text(encoding="utf-8"), name
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} == set(NAV)


def test_pages_can_be_searched(site: Path) -> None:
    found = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    pages = {each["location"].partition(".html")[0] for each in found}
    assert {*NAV, ""} - {"index"} <= pages | {""}
    assert any("conformal" in each["text"] for each in found)
    assert 'data-md-component="search"' in (site / "index.html").read_text(encoding="utf-8")


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[there](index.md#gone)\n")
    validation = re.search(
        r"^validation:\n(?: +.+\n)+", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert validation
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"site_name: x\n{validation[0]}")
    done = build(tmp_path / "site", config)
    assert done.returncode != 0
    assert "index.md#gone" in done.stdout + done.stderr


def test_the_reference_has_every_public_name(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    public = set(copyscope.__all__) - {"__version__"}
    assert set(re.findall(r'id="copyscope\.(\w+)"', text)) == public
    assert "False discovery rate" in text or "false discovery rate" in text


def test_every_table_is_a_table(site: Path) -> None:
    for name in set(NAV) - {"api"}:
        source = re.sub(
            r"^```.*?^```", "", (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"), flags=re.M | re.S
        )
        html = (site / f"{name}.html").read_text(encoding="utf-8")
        assert html.count("<table>") == len(re.findall(r"^\|(?:-+\|)+$", source, re.MULTILINE)), name
        assert "<p>|" not in html, f"{name}: rows without a head"
        assert not re.search(r"^- ", re.sub(r"<(pre|code)\b.*?</\1>", "", html, flags=re.S), re.MULTILINE), name


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        assert elsewhere(html) == [], path.name
        # With these the theme's own script would ask GitHub and a CDN.
        assert 'data-md-component="source"' not in html
        assert 'class="mermaid"' not in html
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_fetching_from_elsewhere_is_seen() -> None:
    html = (
        '<link rel="stylesheet" href="//fonts.x.org/a.css"><script src="https://x.org/a.js"></script><img src="a.png">'
    )
    assert elsewhere(html + '<a href="https://x.org">x</a>') == ["//fonts.x.org/a.css", "https://x.org/a.js"]


def test_ci_installs_what_builds_the_site() -> None:
    extras = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["env"]["EXTRAS"]
    assert "docs" in extras.split(",")
    assert "docs" in re.findall(r"\.\[([\w,]+)\]", (ROOT / "Makefile").read_text(encoding="utf-8"))[0].split(",")
