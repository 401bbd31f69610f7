"""Rows: identifiers become unique without losing or reordering any, columns keep what they hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from copyscope.rows import Rows, captions_of, unique


@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#3", "a#2#2", ""])))
def test_unique(ids: list[str]) -> None:
    made = unique(ids)
    assert len(set(made)) == len(ids)
    seen: set[str] = set()
    for before, after in zip(ids, made, strict=True):
        assert after == before or (before in seen and after.startswith(before + "#"))
        seen.add(before)


def test_the_first_of_equal_ids_keeps_its_own() -> None:
    assert unique(["a", "a", "a#2", "a"]) == ["a", "a#3", "a#2", "a#4"]


def test_columns_that_only_some_rows_have() -> None:
    rows = Rows()
    rows.add("a", "p")
    rows.add("b", "q", ["x"], extras={"seed": 1, "id": "theirs", "weight": "heavy"})
    rows.add("c", None, error="gone", extras={"weight": 0})
    table = rows.table()
    assert table["seed"].to_pylist() == [None, 1, None]
    assert table["listed_id"].to_pylist() == [None, "theirs", None]
    assert table["listed_weight"].to_pylist() == [None, "heavy", None]
    assert table["weight"].to_pylist() == [1, 1, 0]
    assert table["error"].to_pylist() == [None, None, "gone"]


def test_captions_of_a_record() -> None:
    assert captions_of({"Text": " a ", "captions": ["b", "", "a", None], "prompt": "p"}) == ["b", "a"]
    assert captions_of({"prompt": "p"}) == ["p"]
    assert captions_of({"caption": None, "prompt": "p"}) == []
