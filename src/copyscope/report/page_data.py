"""Tables of a result as compact JSON for the page's script.

The script only ever puts these values into the page as text, and `embed` keeps them from closing their element.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from .wording import ACTIONS, NEAR, VISIBLE, is_number, placed

#: Characters of base64 that all previews together may take; the rest of the rows say "no preview". Large pictures that
#: the user asked for (`--embed full`) have a bound of their own.
PREVIEW_BUDGET = 24_000_000
LARGE_BUDGET = 100_000_000

#: Gallery rows, and members of each group, whose previews are kept before all others.
GALLERY_FIRST = 500
GROUP_FIRST = 10

_MIME = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"RIFF", "image/webp"))


class Previews:
    """Previews by (corpus, id) as `data:` URIs: each stored once, in the order first asked for, within a budget."""

    def __init__(self, table: pa.Table | None, budget: int = PREVIEW_BUDGET) -> None:
        self.uris: list[str | None] = []
        self.left_out = 0
        self._budget = {"image": budget, "large": LARGE_BUDGET}
        self._place: dict[tuple[str, str, str], int | None] = {}
        keys = list(zip(column(table, "corpus"), column(table, "id"), strict=True))
        self._image = dict(zip(keys, column(table, "image"), strict=True))
        self._large = dict(zip(keys, column(table, "large"), strict=True))
        squares = zip(keys, column(table, "square"), strict=True)
        self.whole = {name for (corpus, name), square in squares if corpus == "train" and square is False}
        self._sha256 = dict(zip(keys, column(table, "sha256"), strict=True))

    def has(self, corpus: str) -> bool:
        """Whether there is a preview of some image of this corpus."""
        return any(one == corpus for one, _ in self._image)

    def place(self, corpus: str, image_id: str | None, size: str = "image") -> int | None:
        """Index into `uris` of an "image" or a "large" one, or None where there is no preview."""
        if image_id is None:
            return None
        key = (corpus, image_id)
        if (*key, size) not in self._place:
            image = (self._image if size == "image" else self._large).get(key)
            self._place[*key, size] = self._add(image, size)
        return self._place[*key, size]

    def sha256(self, corpus: str, image_id: str | None) -> str | None:
        """Digest of the image's file, where it is known."""
        return self._sha256.get((corpus, image_id or ""))

    def shown(self, place: int | None) -> str | None:
        """The URI at a place, for an image that stands in the page itself."""
        return None if place is None else self.uris[place]

    def take(self, place: int | None) -> str | None:
        """As `shown`; the page's script looks for it in the page, so that it is not there twice."""
        uri = self.shown(place)
        if place is not None:
            self.uris[place] = None
        return uri

    def _add(self, image: bytes | None, size: str) -> int | None:
        mime = next((mime for start, mime in _MIME if image and image.startswith(start)), None)
        if image is None or mime is None:
            return None
        uri = f"data:{mime};base64,{base64.b64encode(image).decode()}"
        if len(uri) > self._budget[size]:
            self.left_out += size == "image"
            return None
        self._budget[size] -= len(uri)
        self.uris.append(uri)
        return len(self.uris) - 1


def column(table: pa.Table | None, name: str) -> list[Any]:
    """A column as Python values; all None where the table lacks it."""
    if table is None:
        return []
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)


def collect(tables: Mapping[str, pa.Table], previews: Previews, threshold: float | None = None) -> dict[str, Any]:
    """Lists of the page: `gallery`, `groups`, `risk`, `failures`, as columns of equal length by name."""
    captions = _captions(tables)
    risk = _risk(tables.get("risk"), captions)
    gallery = _gallery(tables.get("generated"), captions)
    gallery["near"] = _near(gallery, threshold)
    groups = _groups(tables.get("groups"))
    # Asking in this order gives the budget to what is looked at first.
    _place_gallery(gallery, previews, GALLERY_FIRST)
    look_alikes = _look_alikes(tables.get("look_alikes"), previews)
    risk["img"] = [previews.place("train", image_id) for image_id in risk["id"]]
    groups["sha"] = [_known_digests([previews.sha256("train", one) for one in ids]) for ids in groups["ids"]]
    groups["img"] = [_shown([previews.place("train", one) for one in ids[:GROUP_FIRST]]) for ids in groups["ids"]]
    _place_gallery(gallery, previews, len(gallery["id"]))
    failures = tables.get("failures")
    return {
        "gallery": gallery,
        "look_alikes": look_alikes,
        "groups": groups,
        "risk": risk,
        "failures": {name: column(failures, name) for name in ("corpus", "id", "error")},
    }


def embed(data: Any) -> str:
    """Write JSON that can stand inside a `<script type="application/json">` whatever its strings hold."""
    text = json.dumps(_short(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _gallery(table: pa.Table | None, captions: Mapping[str, list[str]]) -> dict[str, list[Any]]:
    names = ["id", "prompt", "match", "score", "verified", "combined", "p_value", "copied", "group_size", "next_match"]
    names += ["next_score", "why", "error", "match_captions", "likeness", "blank", "box"]
    rows = {name: column(table, name) for name in names}
    order = sorted(range(len(rows["id"])), key=lambda row: _worst_first(rows, row))
    rows = {name: [values[row] for row in order] for name, values in rows.items()}
    rows["captions"] = _known(rows.pop("match_captions"), rows["match"], captions)
    rows["placed"] = [placed(box) for box in rows.pop("box")]
    for name in ("copied", "likeness", "blank"):
        rows[name] = [int(bool(flag)) for flag in rows[name]]
    return rows


def _worst_first(rows: Mapping[str, Sequence[Any]], row: int) -> tuple[bool, bool, float, str]:
    value = next((rows[name][row] for name in ("combined", "score") if is_number(rows[name][row])), -math.inf)
    return rows["error"][row] is not None, not rows["copied"][row], -value, str(rows["id"][row])


def _near(gallery: Mapping[str, list[Any]], threshold: float | None) -> list[int]:
    """1 for an image that is not flagged, and yet more alike than most that copy nothing."""

    def near(row: int) -> bool:
        if any(gallery[name][row] for name in ("copied", "likeness", "blank")) or gallery["error"][row] is not None:
            return False
        p_value, score = gallery["p_value"][row], gallery["score"][row]
        return bool(
            (is_number(p_value) and p_value <= NEAR)
            or (is_number(score) and is_number(threshold) and score >= threshold)
        )

    return [int(near(row)) for row in range(len(gallery["id"]))]


def _place_gallery(gallery: dict[str, list[Any]], previews: Previews, first: int) -> None:
    places = zip(gallery["id"][:first], gallery["match"], gallery["next_match"], strict=False)
    found = [
        (previews.place("generated", one), previews.place("train", match), previews.place("train", other))
        for one, match, other in places
    ]
    gallery["img"], gallery["match_img"], gallery["next_img"] = (
        [three[index] for three in found] for index in range(3)
    )
    pairs = list(zip(gallery["id"][:first], gallery["match"], strict=False))
    gallery["img_large"] = [previews.place("generated", one, "large") for one, _ in pairs]
    gallery["match_large"] = [previews.place("train", match, "large") for _, match in pairs]
    gallery["sha"] = [[previews.sha256("generated", one), previews.sha256("train", match)] for one, match in pairs]


def _look_alikes(table: pa.Table | None, previews: Previews) -> dict[str, list[Any]]:
    """One row a calibration image that scores as a light copy does, the most alike first, as the table has them."""
    found = {name: column(table, name) for name in ("id", "match", "score", "verified", "combined")}
    corpus = "control" if previews.has("control") else "held-out"
    found["img"] = [previews.place(corpus, one) for one in found["id"]]
    found["match_img"] = [previews.place("train", one) for one in found["match"]]
    return found


def repeated(summary: Mapping[str, Any], previews: Previews, groups: int, images: int) -> dict[str, list[Any]]:
    """Previews of the first images of the first groups of repeated outputs, a row a group."""
    found = ((summary.get("repeated_outputs") or {}).get("groups") or [])[:groups]
    shown = [[previews.place("generated", one) for one in group["ids"][:images]] for group in found]
    return {"id": list(range(len(found))), "ids": [group["ids"][:images] for group in found], "img": shown}


def _known(own: Sequence[list[str] | None], ids: Sequence[str | None], captions: Mapping[str, list[str]]) -> list[Any]:
    """A row's own captions, or those another table has for the training image of that id."""
    return [texts if texts else captions.get(name or "", []) for texts, name in zip(own, ids, strict=True)]


def _known_digests(digests: list[str | None]) -> list[str | None]:
    """Nothing where none is known, to keep the page small."""
    return digests if any(digests) else []


def _shown(places: list[int | None]) -> list[int | None]:
    """Up to the last one that has a preview."""
    return places[: 1 + max((index for index, place in enumerate(places) if place is not None), default=-1)]


def _captions(tables: Mapping[str, pa.Table]) -> dict[str, list[str]]:
    """Captions of training images, from whichever table has them."""
    known: dict[str, list[str]] = {}
    for name in ("groups", "risk"):
        table = tables.get(name)
        for image_id, captions in zip(column(table, "id"), column(table, "captions"), strict=True):
            if captions:
                known.setdefault(image_id, captions)
    return known


def _groups(table: pa.Table | None) -> dict[str, list[Any]]:
    """One row a group of two or more images, largest first."""
    members: dict[Any, dict[str, Any]] = {}
    keys = ("id", "group", "size", "exact", "duplication", "captions")
    for image_id, group, size, exact, duplication, captions in zip(*(column(table, key) for key in keys), strict=True):
        if (size or 0) < 2:
            continue
        row = members.setdefault(
            group, {"size": size, "exact": 1, "duplication": duplication, "ids": [], "captions": {}}
        )
        row["ids"].append(image_id)
        row["exact"] = max(row["exact"], exact or 1)
        row["captions"] |= dict.fromkeys(captions or [])
    ordered = sorted(members.items(), key=lambda item: (-item[1]["size"], item[0]))
    found: dict[str, list[Any]] = {"id": [group for group, _ in ordered]}
    for key in ("size", "exact", "duplication", "ids", "captions"):
        found[key] = [list(row[key]) if key == "captions" else row[key] for _, row in ordered]
    return found


def _risk(table: pa.Table | None, captions: Mapping[str, list[str]]) -> dict[str, list[Any]]:
    """One row a training image: the most copied first, then by action and group size, else as the table has them."""
    names = ["id", "times_copied", "share_low", "share_high", "prompts", "group_size", "duplication", "shared_captions"]
    names += [
        "captions",
        "near_shared_captions",
        "caption_length",
        "entropy",
        "jpeg_size",
        "total_variation",
        "mixed",
        "action",
        "reason",
    ]
    rows = {name: column(table, name) for name in names}
    rows["captions"] = _known(rows["captions"], rows["id"], captions)
    actions = list(ACTIONS)
    order = sorted(
        range(len(rows["id"])),
        key=lambda row: (
            -(rows["times_copied"][row] or 0),
            actions.index(rows["action"][row]) if rows["action"][row] in ACTIONS else len(actions),
            -(rows["group_size"][row] or 0),
        ),
    )
    return {name: [values[row] for row in order] for name, values in rows.items()}


def _short(value: Any) -> Any:
    """The same data with four significant digits a number, None for what is not finite, and all characters visible."""
    if isinstance(value, str):
        return value.translate(VISIBLE)
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return value
