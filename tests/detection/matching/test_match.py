"""Matches: both scores, and the next best from another near-duplicate group however often a picture is duplicated."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from copyscope.data.corpus import Corpus
from copyscope.detection.descriptors.sscd_distilled import SscdDistilled
from copyscope.detection.embedding.embed import embed
from copyscope.detection.matching.match import Matches, match
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.search.exact import Nearest
from copyscope.imaging import images
from tests import worlds


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A training folder in which one picture stands 60 times among ten others, and one copy of it."""
    root = tmp_path_factory.mktemp("crowd")
    rng = np.random.default_rng(0)
    pictures = [worlds.picture(rng)[0] for _ in range(11)]
    for name in ("train", "generated"):
        (root / name).mkdir()
    for index in range(60):
        (root / "train" / f"same{index:02d}.png").write_bytes(images.encode(pictures[0], "png"))
    for index, picture in enumerate(pictures[1:]):
        (root / "train" / f"other{index}.png").write_bytes(images.encode(picture, "png"))
    copy = worlds.light_copy(pictures[0], rng)
    (root / "generated" / "copy.png").write_bytes(images.encode(copy, "png"))
    return root


@pytest.mark.parametrize("k", [1, 10, 70])
def test_the_next_best_is_from_another_group_even_beyond_k(crowd, k):
    train, generated = (embed(Corpus.open(crowd / name), SscdDistilled()) for name in ("train", "generated"))
    label = np.array([0 if name.startswith("same") else 1 + int(name[5:-4]) for name in train.ids])
    found = match(generated, train, Verify(), k=k, labels=label)
    assert train.ids[found.match[0]].startswith("same")
    assert train.ids[found.next_index[0]].startswith("other")
    scores = (generated.vectors @ train.vectors.T)[0]
    others = np.array([name.startswith("other") for name in train.ids])
    assert found.next_score[0] == pytest.approx(scores[others].max(), abs=1e-6)
    assert found.similarity[0] == pytest.approx(scores.max(), abs=1e-6)


def test_without_another_group_there_is_no_next_best(crowd):
    train, generated = (embed(Corpus.open(crowd / name), SscdDistilled()) for name in ("train", "generated"))
    found = match(generated, train, Verify(), k=5, labels=np.zeros(len(train.rows), dtype=np.int64))
    assert found.next_index[0] == -1
    assert np.isnan(found.next_score[0])


def test_an_image_does_not_match_its_own_group(crowd):
    train = embed(Corpus.open(crowd / "train"), SscdDistilled())
    label = np.array([0 if name.startswith("same") else 1 + int(name[5:-4]) for name in train.ids])
    found = match(train, train, Verify(), k=3, labels=label, own=label)
    assert (label[found.match] != label).all()


def test_fewer_references_than_k_and_fewer_than_candidates(crowd, tmp_path):
    generated = embed(Corpus.open(crowd / "generated"), SscdDistilled())
    found = match(generated, generated, Verify(), k=20)
    assert found.match[0] == 0
    assert found.nearest.index[0, 1] == -1
    table = found.table(20)
    assert table.num_rows == 1
    assert table["verified"][0].as_py() == pytest.approx(1, abs=1e-3)


def test_the_table_holds_both_scores_by_id(crowd):
    train, generated = (embed(Corpus.open(crowd / name), SscdDistilled()) for name in ("train", "generated"))
    table = match(generated, train, Verify(), k=12).table(12)
    assert table.column_names == ["query_id", "reference_id", "rank", "score", "verified", "combined"]
    assert table["rank"].to_pylist() == list(range(1, 13))
    scores = dict(zip(train.ids, (generated.vectors @ train.vectors.T)[0], strict=True))
    for row in table.to_pylist():
        assert row["score"] == pytest.approx(scores[row["reference_id"]], abs=1e-6)
        assert (row["verified"] is None) == (row["rank"] > Verify().top)
        if row["verified"] is not None:
            assert row["combined"] == pytest.approx(
                1 - np.sqrt(max(1 - row["score"], 0) * max(1 - row["verified"], 0)), abs=1e-4
            )


def by_hand(index, score, verified):
    """Matches with nothing behind them but these numbers."""
    index, score = np.array(index, np.int64), np.array(score, np.float32)
    return Matches(None, None, Nearest(index, score), np.array(verified, np.float32), index[:, 0], score[:, 0])


def test_the_match_is_the_highest_combined_and_the_similarity_the_highest_score():
    found = by_hand(
        [[4, 7, 9], [1, 2, -1]], [[0.9, 0.8, 0.7], [0.6, 0.5, -2]], [[0.1, 0.9, np.nan], [0.3, 0.2, np.nan]]
    )
    assert found.match.tolist() == [7, 1]
    assert found.similarity.tolist() == pytest.approx([0.9, 0.6])
    assert found.of_best(found.nearest.score).tolist() == pytest.approx([0.8, 0.6])
    assert found.of_best(found.combined).tolist() == pytest.approx([1 - np.sqrt(0.2 * 0.1), 1 - np.sqrt(0.4 * 0.7)])
    assert np.isneginf(found.combined[:, 2]).all()


def test_scores_beyond_one_by_rounding_are_one():
    assert by_hand([[0]], [[1.0000002]], [[1.0000002]]).combined.tolist() == [[1]]


def test_the_next_best_of_a_training_image_is_never_of_its_own_group_nor_of_the_matchs(crowd):
    train = embed(Corpus.open(crowd / "train"), SscdDistilled())
    # Three groups, the last image alone in the last.
    label = np.array([0 if name.startswith("same") else 1 for name in train.ids])
    label[-1] = 2
    for k in (1, 2, 70):
        found = match(train, train, Verify(), k=k, labels=label, own=label)
        there = found.next_index >= 0
        assert (label[found.next_index[there]] != label[there]).all()
        assert (label[found.next_index[there]] != label[found.match[there]]).all()
        assert np.isnan(found.next_score[~there]).all()
        assert (found.next_score[there] > -1).all()
    # With all of the others among its k, each of the images has a next best but for those with one other group.
    assert there.all()
    two = np.minimum(label, 1)
    found = match(train, train, Verify(), k=70, labels=two, own=two)
    assert (found.next_index == -1).all()
    assert np.isnan(found.next_score).all()


def test_pixels_are_those_of_the_match_where_the_first_rows_cannot_be_read(crowd, tmp_path):
    for name in ("train", "generated"):
        shutil.copytree(crowd / name, tmp_path / name)
        (tmp_path / name / "!bad.png").write_bytes(b"")
    (tmp_path / "generated" / "0.png").write_bytes((crowd / "train" / "other9.png").read_bytes())
    train, generated = (embed(Corpus.open(tmp_path / name), SscdDistilled()) for name in ("train", "generated"))
    found = match(generated, train, Verify(), k=3)
    assert [train.ids[row] for row in found.match] == ["other9.png", train.ids[found.match[1]]]
    assert found.of_best(found.verified)[0] == pytest.approx(1, abs=1e-3)
    assert found.of_best(found.verified)[1] > 0.9
    assert found.table(3)["query_id"].to_pylist() == ["0.png"] * 3 + ["copy.png"] * 3
