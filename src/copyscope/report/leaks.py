"""HTML page of leaks: groups of images that are in several sets."""

from __future__ import annotations

from . import STATIC_ROWS, Result, _page, page_data, wording


def render(found: Result) -> str:
    """The leaks as an HTML page: text that holds everything the page needs, the same each time."""
    previews = page_data.Previews(found.tables.get("thumbnails"))
    data = page_data.collect(found.tables, previews)
    drop = found.tables.get("drop")
    return _page(
        "leaks.html.j2",
        found,
        data,
        previews,
        kind="search for leaks",
        actions=[],
        static=drop.slice(0, STATIC_ROWS).to_pylist() if drop is not None else [],
        terms=wording.LINT_TERMS,
        section_terms=wording.LINT_SECTION_TERMS,
    )
