"""Advice of a lint or an audit, as a plan of what to change in the training set, and the change itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from copyscope.data.corpus import Corpus
from copyscope.detection.dedup.same_picture import Agreements, compare_pixels
from copyscope.errors import InputError

from .results import load_result, read_schema

__all__ = ["Agreements", "Plan", "carried_out", "plan"]
SCHEMAS = ("copyscope.lint/1", "copyscope.audit/1")
COLUMNS = ("id", "action", "does", "kept_id", "group", "reason")
DOES = ("drop", "down-weight", "recaption", "keep", "left to you")
"""What becomes of an image: "keep" is the one that stays of its group, "left to you" needs a person to look."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a result advises about the images of a training set.

    Args:
        result: folder of the result.
        rows: one an image, by COLUMNS: its id, the action of the risk card, what is done (DOES), the image kept
            instead, its group, and why.
        n_unmatched: images of the result that the training set does not have.
    """

    result: str
    rows: tuple[dict[str, Any], ...]
    n_unmatched: int

    def counts(self) -> dict[str, int]:
        """Images by what is done."""
        return {does: sum(row["does"] == does for row in self.rows) for does in DOES}

    def ids(self, does: str) -> list[str]:
        """Images of which this is done."""
        return [row["id"] for row in self.rows if row["does"] == does]

    def sentence(self) -> str:
        """The plan in a sentence."""
        said = [f"{does} {n}" for does, n in self.counts().items() if n]
        absent = f" {self.n_unmatched} images of it are not in the training set." if self.n_unmatched else ""
        return f"{self.result} advises: {', '.join(said) or 'nothing to be changed'}.{absent}"


def plan(corpus: Corpus, folder: str | Path, how: str = "keep-one", **options: Any) -> Plan:
    """What a lint or audit in `folder` advises about the images of `corpus`, by their risk cards.

    A card to deduplicate is about its whole near-duplicate group: one image of it is kept, and those that are the same
    picture as the kept one by their own pixels are dropped; the others are left to a person.

    Args:
        corpus: the training set that was looked at, or part of it.
        folder: of the result.
        how: of a group, "keep-one" drops the others, "remove" all, "down-weight" none and divides their weights.
        options: cache, workers and progress of `embed`.

    Raises:
        InputError: there is no such result in the folder, or none of its images is in the corpus.
    """
    if (schema := read_schema(folder)) not in SCHEMAS:
        raise InputError(f"{folder} holds {schema!r}.\nName a folder that lint or audit wrote with -o")
    _, tables = load_result(folder, schema)
    place = {name: row for row, name in enumerate(corpus.ids)}
    cards = tables["risk"].select(["id", "action", "reason"]).to_pylist()
    groups = tables["groups"].to_pylist()
    group_of = {row["id"]: row["group"] for row in groups}
    members: dict[int, list[dict[str, Any]]] = {}
    for row in groups:
        members.setdefault(row["group"], []).append(row)
    rows: list[dict[str, Any]] = []
    absent, done = set[str](), set[int]()
    for card in cards:
        about = {"action": card["action"], "kept_id": "", "group": None, "reason": card["reason"]}
        if card["action"] == "deduplicate" and card["id"] in group_of:
            group = group_of[card["id"]]
            if group in done:
                continue
            done.add(group)
            there = [row["id"] for row in members[group] if row["id"] in place]
            absent |= {row["id"] for row in members[group]} - set(there)
            kept_id = next((row["id"] for row in members[group] if row.get("kept") and row["id"] in place), "")
            kept_id = kept_id or (there[0] if there else "")
            rows += [{"id": name} | about | {"does": "", "kept_id": kept_id, "group": group} for name in there]
        elif card["id"] not in place:
            absent.add(card["id"])
        else:
            does = {"recaption": "recaption", "drop": "drop", "review": "left to you"}.get(card["action"])
            rows += [{"id": card["id"]} | about | {"does": does}] if does else []
    if absent and not rows:
        raise InputError(
            f"None of the images that {folder} advises about is in {corpus.origin}.\nName the training set it looked at"
        )
    _deduplicate(corpus, rows, place, how, options)
    return Plan(str(folder), tuple({name: row[name] for name in COLUMNS} for row in rows), len(absent))


def carried_out(corpus: Corpus, plan: Plan) -> Corpus:
    """The corpus without the images to drop, and with the weights of those to down-weight divided.

    By the images of their group. New captions are another's work.
    """
    place = {name: row for row, name in enumerate(corpus.ids)}
    weight = corpus.table["weight"].to_pylist()
    lighter = [row for row in plan.rows if row["does"] == "down-weight"]
    sizes = _sizes(lighter)
    for row in lighter:
        weight[place[row["id"]]] /= sizes[row["group"]]
    dropped = {place[name] for name in plan.ids("drop")}
    return corpus.with_column("weight", weight).take([row for row in range(len(corpus)) if row not in dropped])


def _deduplicate(
    corpus: Corpus, rows: list[dict[str, Any]], place: dict[str, int], how: str, options: dict[str, Any]
) -> None:
    """Fill in what becomes of the images of groups."""
    grouped = [row for row in rows if row["action"] == "deduplicate"]
    if how != "keep-one":
        for row in grouped:
            row |= {"does": "drop" if how == "remove" else how, "kept_id": ""}
        return
    others = [row for row in grouped if row["id"] != row["kept_id"]]
    for row in grouped:
        row |= {"does": "keep"} if row["id"] == row["kept_id"] else {}
    used = sorted({place[name] for row in others for name in (row["id"], row["kept_id"])})
    at = {row: position for position, row in enumerate(used)}
    pairs = np.array([[at[place[row["id"]]], at[place[row["kept_id"]]]] for row in others], np.int64).reshape(-1, 2)
    same = compare_pixels(corpus, np.array(used, np.intp), pairs, **options).same
    for row, is_same in zip(others, same, strict=True):
        if is_same:
            row |= {"does": "drop", "reason": f"the same picture as {row['kept_id']}, which is kept"}
        else:
            row |= {"does": "left to you", "reason": f"near {row['kept_id']}, and not the same picture by its pixels"}


def _sizes(rows: Iterable[dict[str, Any]]) -> dict[int, int]:
    found: dict[int, int] = {}
    for row in rows:
        found[row["group"]] = found.get(row["group"], 0) + 1
    return found
