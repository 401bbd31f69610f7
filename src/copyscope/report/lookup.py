"""HTML page of a lookup: each picture beside its matches, with boxes."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from . import STATIC_ROWS, Result, _page, page_data, wording

SHOWN = 3
"""Matches of a picture that the page shows."""

BLANK = "one colour to within noise: it copies nothing"
Box = Sequence[float]
TERMS = {
    "p-value": "how often a real image that is no copy has a match that scores as high, looked up in the same way. It "
    "is of one picture: of a hundred that copy nothing, about one has 0.01 or less. For many, an audit controls that.",
    "box": "the part of a picture that the match fits best, found by laying the training image over every place of it, "
    "mirrored too. A box is of use where the p-value is small; every picture has some place that fits best.",
    "small picture": "what an index keeps of a training image: its middle square at 32 x 32 pixels, shown enlarged.",
    "calibration": "the real images that p-values rest on.",
}
TERMS |= {name: wording.TERMS[name] for name in ("similarity", "pixel score", "score")}
SECTION_TERMS = {"pictures": [
    "p-value", "box", "small picture", "similarity", "pixel score", "score", "calibration",
]}  # fmt: skip


def render(found: Result) -> str:
    """Render a look-up as an HTML page: text that holds everything the page needs, the same each time."""
    previews = page_data.Previews(found.tables.get("thumbnails"))
    pictures = _pictures(found.tables, previews, found.summary.get("level"))
    static = zip(*(pictures[name][:STATIC_ROWS] for name in ("id", "error", "hits")), strict=True)
    return _page(
        "lookup.html.j2",
        found,
        page_data.collect({}, previews) | {"pictures": pictures},
        previews,
        kind="look-up",
        actions=[],
        static=[{"id": one, "error": error, "hit": hits[0] if hits else None} for one, error, hits in static],
        shown=SHOWN,
        n_shown=sum(place is not None for place in pictures["img"]),
        terms=TERMS,
        section_terms=SECTION_TERMS,
    )


def _pictures(
    tables: Mapping[str, pa.Table], previews: page_data.Previews, level: float | None
) -> dict[str, list[Any]]:
    """One row a picture: what is most likely a copy first, what cannot be read last."""
    names = ["query_id", "reference_id", "rank", "score", "verified", "combined", "p_value", "box", "source_box"]
    names += ["caption", "identical"]
    hits: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for values in zip(*(page_data.column(tables.get("matches"), name) for name in names), strict=True):
        hit = dict(zip(names, values, strict=True))
        if hit["rank"] <= SHOWN:
            hits[hit["query_id"]].append(hit)
    order = sorted(hits, key=lambda one: -(hits[one][0]["combined"] or -1.0))
    failures = tables.get("failures")
    errors = dict(zip(page_data.column(failures, "id"), page_data.column(failures, "error"), strict=True))
    blank = dict.fromkeys(page_data.column(tables.get("blank"), "id"), BLANK)
    sizes = _sizes(tables.get("thumbnails"))
    ids = [*order, *blank, *errors]
    first = [hits[one][0] if one in hits else {} for one in ids]
    return {
        "id": ids,
        "error": [errors.get(one, blank.get(one)) for one in ids],
        "blank": [int(one in blank) for one in ids],
        "img": [previews.place("pictures", one) for one in ids],
        "size": [sizes.get(("pictures", one)) for one in ids],
        "p_value": [hit.get("p_value") for hit in first],
        "combined": [hit.get("combined") for hit in first],
        "flagged": [int(bool(hit.get("identical")) or _at_most(hit.get("p_value"), level)) for hit in first],
        "identical": [int(bool(hit.get("identical"))) for hit in first],
        "boxed": [int(bool(hit.get("box"))) for hit in first],
        "hits": [[_shown(hit, previews, sizes) for hit in hits.get(one, [])] for one in ids],
    }


def _at_most(p_value: Any, level: Any) -> bool:
    return wording.is_number(p_value) and wording.is_number(level) and p_value <= level


def _sizes(table: pa.Table | None) -> dict[tuple[str, str], tuple[int, int]]:
    """(width, height) of the image that each preview was made of, where it is known."""
    columns = (page_data.column(table, name) for name in ("corpus", "id", "width", "height"))
    return {
        (corpus, one): (width, height) for corpus, one, width, height in zip(*columns, strict=True) if width and height
    }


def _shown(
    hit: Mapping[str, Any], previews: page_data.Previews, sizes: Mapping[tuple[str, str], tuple[int, int]]
) -> dict[str, Any]:
    kept = ("score", "verified", "combined", "p_value", "box", "caption")
    reference, source = hit["reference_id"], hit["source_box"]
    size, whole = sizes.get(("train", reference)), reference in previews.whole
    return {name: hit[name] for name in kept} | {
        "id": reference,
        "img": previews.place("train", reference),
        "placed": wording.placed(hit["box"]),
        "size": size if whole else None,
        "source": (source if whole else in_square(source, size)) if source else None,
        "source_placed": wording.placed(source),
    }


def in_square(box: Box, size: tuple[int, int] | None) -> list[float] | None:
    """Box in shares of an image as one in shares of its middle square, which cuts it off.

    Args:
        box: x, y, width, height in shares of the image.
        size: (width, height) of the image; None = not known.

    Returns:
        None where the size is not known, or nothing of the box lies in the square.
    """
    if size is None:
        return None
    found: list[tuple[float, float]] = []
    for start, length, side in zip(box[:2], box[2:], size, strict=True):
        scale = side / min(size)
        low, high = ((end - 0.5) * scale + 0.5 for end in (start, start + length))
        found.append((max(low, 0.0), min(high, 1.0)))
    (left, right), (top, bottom) = found
    return [left, top, right - left, bottom - top] if left < right and top < bottom else None
