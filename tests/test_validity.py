"""What benchmarks/validity.py draws and counts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from copyscope import parts
from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching.edges import Edges
from copyscope.detection.matching.match import match
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.part_search import PartSearch
from copyscope.detection.matching.registration import Register
from copyscope.detection.verdict import alterations
from copyscope.imaging import images
from tests import worlds

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import validity
    import validity_counts
    import validity_draws
    import validity_pools
    from validity_parts import Parts
finally:
    sys.path.remove(str(ROOT / "benchmarks"))
Cell, Outcome = validity_counts.Cell, validity_counts.Outcome


@pytest.fixture
def pool(tmp_path, monkeypatch) -> validity_pools.Pool:
    """Forty pictures in families of three, ten of them altered."""
    monkeypatch.setattr(validity_draws, "HELD_OUT", 13)
    monkeypatch.setattr(validity_draws, "UNSEEN", 8)
    rng, n, altered = np.random.default_rng(0), 40, np.arange(0, 40, 4)
    pictures = [images.resize(worlds.picture(rng)[0], (64, 64)) for _ in range(n)]
    pictures += [
        alterations.alter(pictures[row], kind, np.random.default_rng(version), pictures[row - 1])
        for row in altered
        for kind in validity_pools.KINDS
        for version in range(2)
    ]
    files = [tmp_path / f"{row}.png" for row in range(n)]
    for file, picture in zip(files, pictures, strict=False):
        file.write_bytes(images.encode(picture, "png"))
    pdq = parts.load("descriptors", "pdq")
    vectors = pdq.describe(pictures)
    corpus = validity_pools._corpus(tmp_path, files)
    embedded = Embeddings(corpus, np.arange(n), vectors[:n], str(pdq), "")
    return validity_pools.Pool(
        "made",
        "sscd-distilled",
        files,
        np.array([f"family {row // 3}" for row in range(n)]),
        altered,
        vectors,
        vectors[:n],
        vectors @ vectors[:n].T,
        {look: Verify(size=by.size).shrink(pictures) for look, by in validity_pools.LOOKS.items()},
        {look: np.full((len(pictures), n), np.nan, np.float32) for look in validity_pools.LOOKS},
        Parts(embedded, len(pictures), pictures.__getitem__, pdq, tmp_path),
        corpus,
        tmp_path,
    )


def test_no_family_is_on_two_sides_of_a_family_split(pool):
    for seed in range(10):
        one = validity_draws.draw(pool, "family", seed)
        sides = [set(pool.family[rows]) for rows in (one.train, one.rows["held-out"], one.rows["unseen"])]
        assert len(set.union(*sides)) == sum(map(len, sides))


def test_copies_of_a_draw_are_of_its_training_images(pool):
    one = validity_draws.draw(pool, "random", 0)
    train = set(one.train.tolist())
    for kind in validity_pools.KINDS:
        sources = pool.altered[(one.rows[kind] - len(pool.files)) // (len(validity_pools.KINDS) * 2)]
        assert len(sources)
        assert set(sources.tolist()) <= train
    assert not np.array_equal(one.copies["light"], one.sensitivity["light"])


def test_scores_are_those_of_a_match(pool):
    """Compared pair by pair and kept, a score is what comparing all at once gives."""
    one = validity_draws.draw(pool, "random", 1)
    descriptor, options = parts.load("descriptors", "pdq"), {"cache": pool.folder / "again", "workers": 1}
    asked = pool.folder / "asked"
    asked.mkdir()
    for row in one.rows["part"]:
        (asked / f"{row:04d}.png").write_bytes(images.encode(pool.parts.pictures[row], "png"))
    chosen = embed(pool.corpus.take(one.train), descriptor, **options)
    looks = {"register": Register(), "edges": Edges(), "parts": PartSearch(chosen, descriptor, Verify(), **options)}
    found = match(embed(Corpus.open(asked), descriptor, **options), chosen, **looks, **options)
    assert np.allclose(one.copies["part"], found.evidence, atol=1e-5)
    assert found.evidence[:, -1].max() > 0.5


def test_every_cell_is_judged_once_a_draw(pool, monkeypatch):
    monkeypatch.setattr(validity, "SIZES", (5, 12))
    monkeypatch.setattr(validity, "GENERATED", 10)
    one = validity_draws.draw(pool, "random", 0)
    cells = [cell for cell, _ in validity.Audits.of(pool, one, "held-out").outcomes()]
    assert len(cells) == len(set(cells)) == 2 * (1 + 2 * (len(validity_pools.KINDS) + 1))


def test_a_row_holds_the_worst_cell():
    def outcome(answer: str, covered: bool = True) -> Outcome:
        return Outcome(answer, 0.5, 0.1, covered, 0.2, False)

    base = ("made", "sscd-distilled", "random", "held-out", 100)
    cells = {
        Cell(*base, 0.0, ""): [outcome("no copies found")] * 4,
        Cell(*base, 0.3, "light"): [outcome("copies")] * 4,
        Cell(*base, 0.3, "crop"): [outcome("copies", False), *[outcome("copies")] * 2, outcome("no copies found")],
    }
    (row,) = validity_counts.rows_of_tables(cells)
    assert row["highest_share_of_no_copies_found"] == 0.25
    assert row["lowest_coverage"] == 0.75
    assert row["answers"]["0"] == {"no copies found": 1.0}
    assert row["answers"]["0.3"] == {"copies": 0.875, "no copies found": 0.125}
    found = validity_counts.counted(cells)
    assert found["cells_with_copies"] == 2
    assert found["cells_with_copies_where_more_than_5_percent_say_no_copies_found"] == 1
