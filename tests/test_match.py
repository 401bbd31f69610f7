"""Matches: both scores, and the next best from another near-duplicate group however often a picture is duplicated."""

from __future__ import annotations

import numpy as np
import pytest

from copyscope import images, worlds
from copyscope.copying.descriptors.sscd_distilled import SscdDistilled
from copyscope.copying.embed import embed
from copyscope.copying.match import match
from copyscope.copying.verify import Verify
from copyscope.corpus import Corpus


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
