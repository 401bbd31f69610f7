"""Caption overlap is that of brute force, also for some of many images, whatever the pieces."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope.detection.dedup import caption_overlap
from copyscope.detection.dedup.caption_overlap import caption_sharing, normalise

# Long enough to be nearly equal, of few enough words to be it often.
near_words = st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=9)
near_caption = st.one_of(
    near_words.map(" ".join), st.sampled_from(["", "...", "A, b c", "a b c", "c b a", "\u0130stanbul x"])
)


def ask(captions: list[list[str]], asked: Any = None, progress: Any = None) -> Any:
    """Sharing of the images at `asked`; None = of all."""
    asked = np.arange(len(captions)) if asked is None else asked
    return caption_sharing(
        lambda at: [captions[row] for row in at.tolist()], len(captions), np.asarray(asked), progress
    )


def brute_force(captions: list[list[str]]) -> tuple[list[int], list[int]]:
    rows = [{normalise(caption) for caption in row} - {""} for row in captions]

    def near(a: str, b: str) -> bool:
        one, two = set(a.split()), set(b.split())
        return 5 * len(one & two) >= 4 * len(one | two)

    shared, near_shared = [], []
    for i, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        shared.append(sum(bool(row & other) for other in others))
        near_shared.append(sum(not row & other and any(near(a, b) for a in row for b in other) for other in others))
    return shared, near_shared


words = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"])
# Long captions over few words: many pairs lie right at the line of 4/5.
caption = st.one_of(
    st.lists(words, max_size=12).map(" ".join),
    st.lists(st.sampled_from("abcdefghij"), min_size=7, max_size=10, unique=True).map(" ".join),
    st.sampled_from(["", "!!", "An image", "an  IMAGE.", "A, b; c: d! e", "fixed"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(caption, max_size=3), max_size=25))
def test_caption_sharing_is_that_of_brute_force(captions: list[list[str]]) -> None:
    found = ask(captions)
    shared, near_shared = brute_force(captions)
    assert found.shared.tolist() == shared
    assert found.near_shared.tolist() == near_shared


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(caption, max_size=2), max_size=15), st.randoms(use_true_random=False))
def test_caption_sharing_moves_with_its_rows(captions: list[list[str]], random: Any) -> None:
    order = list(range(len(captions)))
    random.shuffle(order)
    found, moved = ask(captions), ask([captions[row] for row in order])
    assert moved.shared.tolist() == found.shared[order].tolist()
    assert moved.near_shared.tolist() == found.near_shared[order].tolist()


def test_small_blocks_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(np.random.SeedSequence(0))
    vocabulary = [f"w{index}" for index in range(12)]
    captions = [
        [" ".join(rng.choice(vocabulary, rng.integers(4, 10), replace=False)) for _ in range(rng.integers(0, 3))]
        for _ in range(120)
    ]
    monkeypatch.setattr(caption_overlap, "_BLOCK", 10)
    found = ask(captions)
    assert (found.shared.tolist(), found.near_shared.tolist()) == brute_force(captions)


def test_one_caption_for_all_is_no_quadratic_work() -> None:
    n = 30_000
    found = ask([["An image", f"number{row}"] for row in range(n)])
    assert (found.shared == n - 1).all()
    assert (found.near_shared == 0).all()


def test_a_template_for_all_stops_at_the_limit() -> None:
    """Past NEAR_LIMIT distinct near captions the count is a lower bound, and the work and memory are bounded."""
    n = 1000
    found = ask([[f"a photo of a small thing number{row} on the white table"] for row in range(n)])
    assert (found.near_shared >= caption_overlap.NEAR_LIMIT).all()
    assert (found.near_shared < n).all()


def test_below_the_limit_the_count_of_all_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_overlap, "NEAR_LIMIT", 5000)
    n = 1000
    found = ask([[f"a photo of a small thing number{row} on the white table"] for row in range(n)])
    assert (found.near_shared == n - 1).all()


@settings(deadline=None)
@given(st.text(max_size=30))
def test_normalise_is_idempotent_and_leaves_no_punctuation(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert once == once.strip()
    assert not any(unicodedata.category(letter).startswith("P") for letter in once)


def test_normalise() -> None:
    assert normalise("  A  RED, fox—straße! ") == "a red fox strasse"
    assert normalise("ｆｕｌｌ width") == "full width"
    assert normalise("...") == ""
    assert normalise("❤️ 5 $") == "❤️ 5 $"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(near_caption, max_size=3), max_size=25),
    st.randoms(use_true_random=False),
    st.sampled_from([1, 7]),
)
def test_what_is_asked_about_is_as_among_all(captions: list[list[str]], random: Any, piece: int) -> None:
    asked = np.array(sorted(random.sample(range(len(captions)), random.randint(0, len(captions)))), np.int64)
    every = ask(captions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_overlap, "PIECE", piece)
        patch.setattr(caption_overlap, "_PAIRS", piece)
        found = ask(captions, asked)
    assert found.shared.tolist() == every.shared[asked].tolist()
    assert found.near_shared.tolist() == every.near_shared[asked].tolist()


def test_one_caption_for_all_is_not_quadratic_beside_captions_of_their_own() -> None:
    n = 30_000
    found = ask([["An image", f"number{row}"] for row in range(n)], np.arange(0, n, 2))
    assert (found.shared == n - 1).all()
    assert (found.near_shared == 0).all()


def test_a_template_for_all_stops_at_the_limit_and_its_captions_still_count_for_who_found_them() -> None:
    """Of captions that differ in words nobody asked about each counts; of those asked about, NEAR_LIMIT."""
    n = 3000
    captions = [[f"a photo of a small thing number{row} on the white table"] for row in range(n)] * 2
    found = ask(captions, np.arange(1000))
    # Its own caption again; those of 2,000 others, twice, that are one near caption; and of the rest of those asked
    # about as many as the limit leaves, twice.
    assert (found.shared == 1).all()
    assert (found.near_shared <= 2 * (n - 1000) + 2 * caption_overlap.NEAR_LIMIT).all()
    assert (found.near_shared >= 2 * (caption_overlap.NEAR_LIMIT - 1)).all()


def test_below_the_limit_the_count_of_some_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_overlap, "NEAR_LIMIT", 5000)
    n = 600
    found = ask([[f"a photo of a small thing number{row} on the white table"] for row in range(n)], np.arange(300))
    assert (found.near_shared == n - 1).all()


def test_images_without_captions_are_none_and_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_overlap, "PIECE", 2)
    told: list[tuple[str, int, int]] = []
    captions: list[Any] = [None, [], ["a"], ["!"], ["a"]]
    found = ask(captions, np.arange(5), lambda *said: told.append(said))
    assert found.shared.tolist() == [0, 0, 1, 0, 1]
    assert told == [("captions", 2, 5), ("captions", 4, 5), ("captions", 5, 5)]
