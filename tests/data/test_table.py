"""Rows: identifiers become unique without losing or reordering any, columns keep what they hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope.data import table as rows_module
from copyscope.data.table import TableBuilder, captions_of, unique


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
    rows = TableBuilder()
    rows.add("a", "p")
    rows.add("b", "q", ["x"], extras={"seed": 1, "id": "theirs", "weight": "heavy"})
    rows.add("c", None, error="gone", extras={"weight": 0})
    table = rows.table()
    assert table["seed"].to_pylist() == [None, 1, None]
    assert table["listed_id"].to_pylist() == [None, "theirs", None]
    assert table["listed_weight"].to_pylist() == [None, "heavy", None]
    assert table["weight"].to_pylist() == [1, 1, 0]
    assert table["error"].to_pylist() == [None, "its weight is not a number from 0: 'heavy'", "gone"]


def _number(text: str | None) -> float | str | None:
    try:
        return float(text or "")
    except ValueError:
        return text


VALUES = st.one_of(
    st.none(), st.integers(-3, 3), st.just(2**60 + 1), st.floats(0, 1), st.booleans(), st.text(max_size=2)
)


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("abc"), st.one_of(st.none(), st.just("p")), st.lists(st.text(max_size=2), max_size=2),
            st.one_of(st.none(), st.just("bad")), st.dictionaries(st.sampled_from(["x", "y", "weight"]), VALUES),
        ),
        max_size=14,
    ),
    piece=st.integers(1, 5),
)  # fmt: skip
def test_rows_in_pieces_are_the_rows(rows, piece) -> None:
    def made(size):
        found = TableBuilder()
        rows_module.PIECE, before = size, rows_module.PIECE
        try:
            for id, image, captions, error, extras in rows:
                found.add(id, image, captions, error=error, extras=extras)
            return found, found.table()
        finally:
            rows_module.PIECE = before

    (whole, wanted), (pieces, table) = made(1000), made(piece)
    assert table.column_names == wanted.column_names
    for name in wanted.column_names:
        one, other = wanted[name].to_pylist(), table[name].to_pylist()
        # Where numbers and texts are in one column, a number is written as in its own piece.
        if name in ("x", "y") and wanted[name].type == "string":
            one, other = ([_number(text) for text in each] for each in (one, other))
        assert one == other
    assert (len(whole), whole.first_error, whole.any_image()) == (
        len(pieces), pieces.first_error, pieces.any_image()
    )  # fmt: skip
    assert whole.first_error == next((error for error in wanted["error"].to_pylist() if error), None)
    assert [error for error in wanted["error"].to_pylist() if error and not error.startswith("its weight")] == [
        row[3] for row in rows if row[3]
    ]
    if len(rows) > piece:
        assert table["id"].num_chunks > 1 or len({row[0] for row in rows}) < len(rows)


def test_captions_of_a_record() -> None:
    assert captions_of({"Text": " a ", "captions": ["b", "", "a", None], "prompt": "p"}) == ["b", "a"]
    assert captions_of({"prompt": "p"}) == ["p"]
    assert captions_of({"caption": None, "prompt": "p"}) == []
