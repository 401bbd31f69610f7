"""Pictures that are partly covered or recoloured: found by their edges, and how surely."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from copyscope import parts
from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.embed import embed
from copyscope.detection.matching.edges import Edges
from copyscope.detection.matching.match import match
from copyscope.detection.matching.ncc import Verify
from copyscope.imaging import images
from tests import worlds

EDGES = Edges()


def scenes(n, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([images.resize(worlds.picture(rng)[0], (32, 32)) for _ in range(n)])


def covered(picture, share, seed=0):
    """A square of that share of the area, in one colour, anywhere."""
    rng = np.random.default_rng(seed)
    side = round(32 * share**0.5)
    top, left = rng.integers(33 - side, size=2)
    found = picture.copy()
    found[top : top + side, left : left + side] = rng.integers(256, size=3)
    return found


@pytest.mark.parametrize(
    "alter",
    [
        lambda picture: covered(picture, 0.2),
        lambda picture: covered(picture, 0.3, 1),
        lambda picture: np.repeat(images.luma(picture)[:, :, None], 3, axis=2),
        lambda picture: picture // 2 + 40,
    ],
    ids=["a fifth covered", "three tenths covered", "grey", "half the contrast"],
)
def test_the_source_of_an_altered_picture_is_found(alter):
    train = scenes(40)
    queries = np.stack([alter(picture) for picture in train])
    index, score = EDGES.nearest(queries, train)
    _, of_strangers = EDGES.nearest(scenes(40, 1), train)
    assert (index == np.arange(40)).mean() > 0.9
    assert np.median(score) > of_strangers.max()


def test_strong_edges_of_a_cover_do_not_outweigh_faint_ones_of_the_picture():
    """Checks in black and white over a tenth of pictures of an eighth of the contrast."""
    train = scenes(40) // 8 + 110
    queries = train.copy()
    queries[:, 10:20, 10:20] = np.kron(np.indices((5, 5)).sum(axis=0) % 2, np.ones((2, 2)))[..., None] * 255
    index, _ = EDGES.nearest(queries, train)
    linear, _ = Edges(strength=1e4).nearest(queries, train)
    assert (index == np.arange(40)).mean() > 0.9
    assert (linear == np.arange(40)).mean() < 0.5


def test_the_same_picture_agrees_wholly_and_a_flat_one_not_at_all():
    train = scenes(5)
    index, score = EDGES.nearest(np.concatenate([train, np.full((1, 32, 32, 3), 90, np.uint8)]), train)
    assert index[:5].tolist() == [0, 1, 2, 3, 4]
    assert np.allclose(score[:5], 1, atol=1e-5)
    assert score[5] == 0


def test_agreement_is_the_trimmed_mean_over_blocks():
    """Block by block, and the share that agrees least taken off by hand."""
    train, query = scenes(1), scenes(1, 3)
    _, (score,) = EDGES.nearest(query, train)
    one, other = (EDGES._slopes(each)[0].astype(np.float64) for each in (query, train))
    cuts = np.linspace(0, one.shape[1], EDGES.blocks + 1).round().astype(int)
    found = []
    for top, bottom in itertools.pairwise(cuts):
        for left, right in itertools.pairwise(cuts):
            a, b = (each[:, top:bottom, left:right] for each in (one, other))
            strength = np.sqrt((a**2).sum() * (b**2).sum())
            found.append(((a * b).sum() / max(strength, 0.5), np.sqrt(max((a**2).sum(), (b**2).sum()))))
    left_out, total, weights = EDGES.left_out * sum(weight for _, weight in found), 0.0, 0.0
    for agreed, weight in sorted(found):
        spared = min(left_out, weight)
        left_out -= spared
        total, weights = total + agreed * (weight - spared), weights + weight - spared
    assert score == pytest.approx(total / weights, abs=1e-4)


def test_members_of_the_own_group_do_not_count():
    train = scenes(6)
    labels = np.array([0, 0, 1, 1, 2, 2])
    index, _ = EDGES.nearest(train, train, own=labels, labels=labels)
    assert (labels[index] != labels).all()
    index, score = EDGES.nearest(train[:1], train[:2], own=labels[:1], labels=labels[:2])
    assert index.tolist() == [-1]
    assert score.tolist() == [-1]
    assert EDGES.nearest(train, train[:0])[0].tolist() == [-1] * 6


def test_pieces_and_workers_change_nothing(monkeypatch):
    train, queries = scenes(30), scenes(20, 1)
    whole = EDGES.nearest(queries, train, workers=1)
    monkeypatch.setattr("copyscope.detection.matching.edges.CHUNK", 7)
    for found, expected in zip(EDGES.nearest(queries, train, workers=2), whole, strict=True):
        assert np.allclose(found, expected, atol=1e-6)


@pytest.fixture
def described(tmp_path):
    """Forty pictures, and ten of them in other colours with a fifth covered."""
    pictures = {f"train/{n:02d}": picture for n, picture in enumerate(scenes(40))}
    pictures |= {f"made/{n:02d}": covered(255 - pictures[f"train/{n:02d}"] // 2, 0.2, n) for n in range(10)}
    for name, picture in pictures.items():
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(images.encode(picture, "png"))
    descriptor = parts.load("descriptors", "pdq")
    return [embed(Corpus.open(tmp_path / name), descriptor, cache=tmp_path / "cache") for name in ("made", "train")]


def test_a_match_knows_the_nearest_by_edges(described):
    """It stands last where the descriptor does not find it, with all scores; nothing else moves."""
    made, train = described
    without = match(made, train, Verify(top=2), k=3)
    found = match(made, train, Verify(top=2), k=3, edges=Edges(strength=3))
    assert found.nearest.index.shape == (10, 4)
    assert np.array_equal(found.by_descriptor.index, without.nearest.index)
    assert np.array_equal(found.by_descriptor.score, without.nearest.score)
    assert found.table(3).select(["query_id", "reference_id", "score"]) == without.table(3).select(
        ["query_id", "reference_id", "score"]
    )
    there = ~np.isnan(found.edged)
    assert (there.sum(axis=1) == 1).all()
    last = there[:, 3]
    assert last.any()
    rows = np.flatnonzero(last)
    similarity = np.einsum("nd,nd->n", made.vectors[rows], train.vectors[found.nearest.index[rows, 3]])
    assert np.allclose(found.nearest.score[rows, 3], similarity, atol=1e-6)
    assert np.isfinite(found.verified[there]).all()
    assert np.array_equal(found.evidence[:, 2], found.edged[there])
    assert np.isnan(found.verified[~last, 3]).all()


def test_edges_are_left_out_where_there_are_too_many(described):
    found = match(*described, edges=Edges(most=39))
    assert found.edged is None
    assert found.evidence.shape[1] == 2
