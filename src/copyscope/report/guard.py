"""HTML page of a guard's log."""

from __future__ import annotations

from . import Result, _page, page_data

TERMS = {
    "copy": "an image whose p-value, by the calibration of the index, is at most the policy's rate; or one that a "
    "signal flagged, where the policy counts that. At a rate of 1 %, one in a hundred images that are none is one too.",
    "passed": "share of the tries on a rung that were no copies, and so were handed out. Later rungs are given the "
    "images that earlier ones could not save: their shares do not compare.",
    "stopped": "tries that ended early, since an estimate of each image under way was a copy.",
    "95 % interval": "exact binomial; as if images were independent, which those of one prompt are not.",
}
SECTION_TERMS = {"rungs": list(TERMS)}


def render(log: Result) -> str:
    """Render a guard's log as an HTML page: text that holds everything the page needs, the same each time."""
    previews = page_data.Previews(None)
    return _page(
        "guard.html.j2",
        log,
        page_data.collect({}, previews),
        previews,
        kind="guard",
        actions=[],
        terms=TERMS,
        section_terms=SECTION_TERMS,
    )
