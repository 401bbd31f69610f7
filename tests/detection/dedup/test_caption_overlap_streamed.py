"""Caption sharing of some of very many images is that of all, whatever the pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope.detection.dedup import caption_overlap, caption_overlap_streamed
from copyscope.detection.dedup.caption_overlap import caption_sharing
from copyscope.detection.dedup.caption_overlap_streamed import sharing_of

# Long enough to be nearly equal, of few enough words to be it often.
words = st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=9)
caption = st.one_of(words.map(" ".join), st.sampled_from(["", "...", "A, b c", "a b c", "c b a", "\u0130stanbul x"]))


def ask(captions: list[list[str]], asked: Any, progress: Any = None) -> Any:
    return sharing_of(lambda at: [captions[row] for row in at.tolist()], len(captions), np.asarray(asked), progress)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(caption, max_size=3), max_size=25), st.randoms(use_true_random=False), st.sampled_from([1, 7]))
def test_what_is_asked_about_is_as_among_all(captions: list[list[str]], random: Any, piece: int) -> None:
    asked = np.array(sorted(random.sample(range(len(captions)), random.randint(0, len(captions)))), np.int64)
    every = caption_sharing(captions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_overlap_streamed, "PIECE", piece)
        patch.setattr(caption_overlap_streamed, "_PAIRS", piece)
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


def test_below_the_limit_the_count_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_overlap, "NEAR_LIMIT", 5000)
    n = 600
    found = ask([[f"a photo of a small thing number{row} on the white table"] for row in range(n)], np.arange(300))
    assert (found.near_shared == n - 1).all()


def test_images_without_captions_are_none_and_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_overlap_streamed, "PIECE", 2)
    told: list[tuple[str, int, int]] = []
    captions: list[Any] = [None, [], ["a"], ["!"], ["a"]]
    found = ask(captions, np.arange(5), lambda *said: told.append(said))
    assert found.shared.tolist() == [0, 0, 1, 0, 1]
    assert told == [("captions", 2, 5), ("captions", 4, 5), ("captions", 5, 5)]
