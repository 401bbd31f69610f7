"""Curate: planted duplicates, added captions, near-duplicates dropped or down-weighted, subsets."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope.curation import curate
from copyscope.data.corpus import Corpus
from copyscope.errors import ImageError, InputError
from tests.pictures import fill, picture, write


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twenty images."""
    return Corpus.open(fill(tmp_path_factory.mktemp("data"), *(f"{number:02d}.png" for number in range(20))))


def column(corpus, name):
    return corpus.table[name].to_pylist()


def chosen(corpus):
    return {id for id, is_so in zip(corpus.ids, column(corpus, "duplicated"), strict=True) if is_so}


@pytest.mark.parametrize("style", ["full", "partial"])
def test_duplicates_are_weight(corpus, style):
    found = curate.duplicate(corpus.with_column("weight", [2.0] * 20), style, rate=0.25, factor=3, seed=1)
    assert found.ids == corpus.ids
    assert collections.Counter(column(found, "weight")) == {2.0: 15, 6.0: 5}
    for weight, duplicated, kind in zip(
        *(column(found, name) for name in ("weight", "duplicated", "duplication")), strict=True
    ):
        assert (duplicated, kind) == ((True, style) if weight == 6 else (False, ""))


def test_none_changes_no_weight_and_has_the_columns(corpus):
    found = curate.duplicate(corpus.with_column("weight", list(range(20))), "none", rate=1.0)
    assert column(found, "weight") == list(range(20))
    assert column(found, "duplicated") == [False] * 20
    assert column(found, "duplication") == [""] * 20
    assert column(found, "duplication_factor") == [1.0] * 20


@pytest.mark.parametrize("style", ["full", "partial"])
def test_none_leaves_planted_duplicates_as_they_are(corpus, style):
    planted = curate.duplicate(corpus.with_column("weight", [2.0] * 20), style, rate=0.25, factor=3)
    assert curate.duplicate(planted).table.equals(planted.table)


def test_planting_takes_the_place_of_what_was_planted_before(corpus):
    weighted = corpus.with_column("weight", [float(n + 1) for n in range(20)])
    once = curate.duplicate(weighted, "full", rate=0.25, factor=5)
    assert curate.duplicate(once, "full", rate=0.25, factor=5).table.equals(once.table)
    other = curate.duplicate(once, "partial", rate=0.5, factor=2, seed=3)
    expected = curate.duplicate(weighted, "partial", rate=0.5, factor=2, seed=3)
    assert other.table.equals(expected.table)


def test_duplicates_of_an_unknown_factor_stay_and_nothing_is_planted_over_them(corpus):
    old = curate.duplicate(corpus, "partial", rate=0.25)
    old = dataclasses.replace(old, table=old.table.drop_columns("duplication_factor"))
    assert column(curate.duplicate(old), "weight") == column(old, "weight")
    assert column(curate.duplicate(old), "duplication") == column(old, "duplication")
    with pytest.raises(InputError, match="by which factor"):
        curate.duplicate(old, "full")


def test_duplicated_images_are_the_same_for_both_styles_any_order_and_a_higher_rate(corpus):
    one = chosen(curate.duplicate(corpus, "full", rate=0.3, seed=4))
    assert len(one) == 6
    assert chosen(curate.duplicate(corpus, "partial", rate=0.3, seed=4)) == one
    assert chosen(curate.duplicate(corpus.take(list(range(20))[::-1]), "full", rate=0.3, seed=4)) == one
    assert chosen(curate.duplicate(corpus, "full", rate=0.5, seed=4)) > one
    assert chosen(curate.duplicate(corpus, "full", rate=0.3, seed=5)) != one


def test_every_image_is_duplicated_as_often(corpus):
    times = collections.Counter(id for seed in range(400) for id in chosen(curate.duplicate(corpus, "full", seed=seed)))
    assert set(times) == set(corpus.ids)
    assert sum(times.values()) == 400
    assert max(times.values()) < 45  # 20 on average, deviation 4.4


def test_the_number_is_the_floor_of_the_share_of_readable_images(corpus):
    errors = ["empty file"] * 7 + [None] * 13
    found = curate.duplicate(corpus.with_column("error", errors), "full", rate=0.5)
    assert len(chosen(found)) == 6
    assert not chosen(found) & set(corpus.ids[:7])
    assert len(chosen(curate.duplicate(corpus.take(list(range(10))), "full", rate=0.3))) == 3  # 0.3 * 10 is 3 exactly
    assert len(chosen(curate.duplicate(corpus, "full", rate=0.049))) == 0


def test_a_share_that_floating_point_makes_smaller_is_still_whole(tmp_path):
    corpus = Corpus.open(fill(tmp_path, *(f"{number}.png" for number in range(100))))
    assert len(chosen(curate.duplicate(corpus, "full", rate=0.29))) == 29


@pytest.mark.parametrize(
    ("values", "named"),
    [({"style": "both"}, "none, full, partial"), ({"rate": 1.5}, "rate"), ({"rate": float("nan")}, "rate")]
    + [({"factor": factor}, "factor") for factor in (0.5, float("inf"), float("nan"))],
)
def test_impossible_duplication_is_refused(corpus, values, named):
    with pytest.raises(InputError, match=named):
        curate.duplicate(corpus, **{"style": "full", **values})


def test_captions_are_added_behind_the_own_ones_and_once(corpus):
    some = corpus.take([0, 1]).with_column("captions", [["a"], []])
    found = curate.add_captions(some, lambda row, captions, rng: ["b", "a", " ", f"row {row}", "b"], seed=0)
    assert found.captions == [["a", "b", "row 0"], ["b", "a", "row 1"]]


def test_each_image_draws_from_a_generator_of_its_own(corpus):
    def make(row, captions, rng):
        return [str(rng.integers(10**9))]

    drawn = curate.add_captions(corpus, make, seed=0).captions
    assert len({text for some in drawn for text in some}) == 20
    assert curate.add_captions(corpus.take([7, 3]), make, seed=0).captions == [drawn[7], drawn[3]]
    assert curate.add_captions(corpus, make, seed=1).captions != drawn


def test_an_image_that_cannot_be_captioned_is_a_row_with_an_error(corpus):
    some = corpus.take([0, 1, 2]).with_column("error", ["no such file", None, None])
    asked = []

    def make(row, captions, rng):
        asked.append(row)
        if row == 1:
            raise ImageError("truncated PNG")
        return ["seen"]

    found = curate.add_captions(some, make, seed=0)
    assert asked == [1, 2]
    assert column(found, "error") == ["no such file", "truncated PNG", None]
    assert found.captions == [[], [], ["seen"]]


def test_rows_are_removed(corpus):
    assert curate.remove(corpus, np.array([0, 19, 5])).ids == [f"{n:02d}.png" for n in range(20) if n not in (0, 5, 19)]


# Rows 1, 4 and 6 are one group, 2 and 3 another; 0 is alone, and 5 could not be read.
ROWS, LABEL = np.array([0, 1, 2, 3, 4, 6]), np.array([2, 0, 1, 1, 0, 0])


def test_the_largest_of_a_group_is_kept_or_else_the_first(corpus):
    seven = corpus.take(range(7)).with_column("error", [None] * 5 + ["empty file", None])
    assert curate.keep_one(seven, ROWS, LABEL).ids == ["00.png", "01.png", "02.png", "05.png"]
    sized = seven.with_column("width", [9, 3, 5, 5, 4, None, 4]).with_column("height", [9, 4, 5, 5, 4, None, 3])
    assert curate.keep_one(sized, ROWS, LABEL).ids == ["00.png", "02.png", "04.png", "05.png"]
    assert curate.keep_one(sized, ROWS[::-1], LABEL[::-1]).ids == ["00.png", "02.png", "04.png", "05.png"]


def test_a_captioned_image_is_kept_before_a_larger_one(corpus):
    seven = corpus.take(range(7)).with_column("error", [None] * 7)
    sized = seven.with_column("width", [9, 3, 5, 5, 4, None, 4]).with_column("height", [9, 4, 5, 5, 4, None, 3])
    some = sized.with_column("captions", [[], [], [], ["three"], [" "], [], ["six"]])
    assert curate.keep_one(some, ROWS, LABEL).ids == ["00.png", "03.png", "05.png", "06.png"]
    assert curate.kept_because(some, [(4, 6), (1, 4), (2, 3), (1, 1)]) == [
        "it has a caption",
        "it has more pixels",
        "it has a caption",
        "it comes first",
    ]


def test_of_one_size_the_least_compressed_and_then_the_best_captioned_is_kept(corpus, tmp_path):
    folder = write(tmp_path, {name: picture(0, "JPEG") for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg")})
    (folder / "c.jpg").write_bytes(picture(0, "JPEG") + b"0" * 100)
    four = Corpus.open(folder).with_column("width", [5] * 4).with_column("height", [4] * 4)
    four = four.with_column("captions", [["dog"], ["a dog on a sofa"], ["dog"], ["a dog"]])
    rows, label = np.arange(4), np.zeros(4, int)
    assert curate.keep_one(four, rows, label).ids == ["c.jpg"]
    assert curate.keep_one(four.take([0, 1, 3]), rows[:3], label[:3]).ids == ["b.jpg"]
    assert curate.kept_because(four, [(0, 2), (0, 3), (3, 0)]) == [
        "it is less compressed",
        "its captions say more",
        "it comes first",
    ]


def test_a_group_weighs_as_much_as_one_image(corpus):
    seven = corpus.take(range(7)).with_column("weight", [1, 3, 1, 1, 3, 7, 6])
    found = column(curate.down_weight(seven, ROWS, LABEL), "weight")
    assert found == [1, 1, 0.5, 0.5, 1, 7, 2]


def test_the_groups_of_the_other_tower_fit(world):
    """Plain arrays, as `duplicates` gives them."""
    from copyscope.detection.dedup.groups import duplicates
    from copyscope.detection.embedding.embed import embed
    from copyscope.parts import load

    groups = duplicates(embed(Corpus.open(world.train), load("descriptors", "phash")), 0.9)
    kept = curate.keep_one(groups.corpus, groups.rows, groups.label)
    assert len(kept) == len(set(groups.label.tolist())) < len(groups.corpus)
    weight = column(curate.down_weight(groups.corpus, groups.rows, groups.label), "weight")
    assert sum(weight) == pytest.approx(len(kept))


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 1000))
def test_a_subset_is_part_of_a_larger_one_and_in_order(corpus, n, seed):
    found = curate.subset(corpus, n, seed=seed).ids
    assert len(found) == n
    assert found == sorted(set(found))
    assert set(found) <= set(curate.subset(corpus, min(n + 3, 20), seed=seed).ids)
    other_order = corpus.take(np.random.default_rng(seed).permutation(20))
    assert set(curate.subset(other_order, n, seed=seed).ids) == set(found)


def test_subsets_differ_by_seed_and_leave_no_image_out(corpus):
    drawn = [tuple(curate.subset(corpus, 5, seed=seed).ids) for seed in range(100)]
    assert len(set(drawn)) > 90
    assert {id for ids in drawn for id in ids} == set(corpus.ids)


@settings(deadline=None)
@given(st.lists(st.sampled_from([*"aaaaaabbbcd", None]), min_size=20, max_size=20), st.integers(1, 20))
def test_values_keep_their_shares(corpus, values, n):
    found = curate.subset(corpus.with_column("class", values), n, seed=0, by="class")
    there, drawn = collections.Counter(values), collections.Counter(column(found, "class"))
    assert drawn.total() == n
    for value, count in there.items():
        assert abs(drawn[value] - n * count / 20) < 2


def test_what_cannot_be_drawn_is_refused(corpus):
    errors = [None] * 8 + ["empty file"] * 12
    with pytest.raises(InputError, match=r"9 images .* the 8 readable"):
        curate.subset(corpus.with_column("error", errors), 9, seed=0)
    with pytest.raises(InputError, match="0 images"):
        curate.subset(corpus, 0, seed=0)
    with pytest.raises(InputError, match=r"no column 'class'[^\n]*\nThere are: id, "):
        curate.subset(corpus, 2, seed=0, by="class")
