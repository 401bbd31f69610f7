"""Transparent training images are found over any background, and are one image each in what is said."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from copyscope import Guard, Index, Policy, audit
from copyscope.data.corpus import Corpus
from copyscope.detection.dedup.backgrounds import over_all, plain_id
from copyscope.detection.descriptors.sscd_distilled import SscdDistilled
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.protocols import protocol
from copyscope.detection.match_sentences import match_sets

FAST = "sscd-distilled"


def drawing(seed):
    """Some shapes in colours on transparency, under which lies a colour for every second one."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGBA", (96, 96), (*(rng.integers(256, size=3) * (seed % 2)).tolist(), 0))
    draw = ImageDraw.Draw(picture)
    for _ in range(7):
        x, y = rng.integers(4, 60, 2).tolist()
        w, h = rng.integers(10, 34, 2).tolist()
        colour = (*rng.integers(30, 226, 3).tolist(), 255)
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)([x, y, x + w, y + h], fill=colour)
    return picture


def over(picture, colour):
    ground = Image.new("RGB", picture.size, colour)
    ground.paste(picture, mask=picture.getchannel("A"))
    return ground


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """train: 24 transparent drawings and an opaque one. held-out: 24 others. black, bare: ten of train, opaque."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("train", "held-out", "black", "bare", "grey", "unseen"):
        (folder / name).mkdir()
    for seed in range(24):
        drawing(seed).save(folder / "train" / f"{seed:02d}.png")
        drawing(100 + seed).save(folder / "held-out" / f"{seed:02d}.png")
    over(drawing(50), "grey").save(folder / "train" / "opaque.png")
    for seed in range(10):
        over(drawing(seed), "black").save(folder / "black" / f"{seed}.png")
        over(drawing(seed), "grey").save(folder / "grey" / f"{seed}.png")
        drawing(seed).convert("RGB").save(folder / "bare" / f"{seed}.png")
        over(drawing(200 + seed), "black").save(folder / "unseen" / f"{seed}.png")
    return folder


def test_transparent_images_have_further_rows_where_these_differ_and_opaque_ones_none(sets, tmp_path):
    described = embed(Corpus.open(sets / "train"), SscdDistilled(), cache=tmp_path)
    both, source = over_all(described, SscdDistilled(), cache=tmp_path)
    assert source[:25].tolist() == [*range(25)]
    assert [name.partition(" (") for name in both.corpus.ids[:25]] == [(name, "", "") for name in described.ids]
    kinds = [name.partition(" (")[2].split(" ")[0] for name in both.corpus.ids[25:]]
    # Under every second drawing lies black, which is the other background.
    assert (kinds.count("other"), kinds.count("bare")) == (24, 12)
    assert kinds.count("grey") > 12
    np.testing.assert_array_equal(both.vectors[:25], described.vectors)
    assert [plain_id(name) for name in both.corpus.ids] == [described.ids[at] for at in source]
    black = embed(Corpus.open(sets / "black"), SscdDistilled(), cache=tmp_path)
    np.testing.assert_allclose((black.vectors * both.vectors[25:35]).sum(axis=1), 1, atol=1e-4)
    assert over_all(black, SscdDistilled(), cache=tmp_path)[0] is black


def test_rows_of_shards_are_read_over_the_other_background(sets, tmp_path):
    files = sorted((sets / "train").iterdir())
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    pq.write_table(pa.table({"image": images}), tmp_path / "train.parquet")
    shards = embed(Corpus.open(tmp_path / "train.parquet"), SscdDistilled(), cache=tmp_path / "cache")
    folder = embed(Corpus.open(sets / "train"), SscdDistilled(), cache=tmp_path / "cache")
    one, other = (over_all(each, SscdDistilled(), cache=tmp_path / "cache")[0] for each in (shards, folder))
    np.testing.assert_array_equal(one.vectors, other.vectors)


@pytest.mark.parametrize("kind", ["black", "bare", "grey"])
def test_an_audit_finds_copies_over_another_background_and_names_the_image(kind, sets, tmp_path):
    found = audit(sets / kind, sets / "train", sets / "held-out", FAST, sensitivity=0, cache=tmp_path)
    assert found.summary["verdict"]["answer"] == "copies"
    table = found.tables["generated"]
    assert sum(table["copied"].to_pylist()) == 10
    assert table["match"].to_pylist() == [f"{seed:02d}.png" for seed in range(10)]
    assert (found.summary["n_train"], found.summary["n_missing_train"]) == (25, 0)
    assert found.summary["duplicates"]["n_groups"] == 0
    unseen = audit(sets / "unseen", sets / "train", sets / "held-out", FAST, sensitivity=0, cache=tmp_path)
    assert sum(unseen.tables["generated"]["copied"].to_pylist()) == 0


def test_matches_name_the_image_itself(sets):
    said, table = match_sets(Corpus.open(sets / "black"), Corpus.open(sets / "train"), protocol(FAST), 1)
    assert (said["n_identical"], said["n_missing"], said["n_blank"]) == (10, [0, 0], [0, 0])
    assert table["reference_id"].to_pylist() == [f"{seed:02d}.png" for seed in range(10)]


@pytest.mark.parametrize("colour", ["white", "black", "grey", None])
def test_no_transparent_training_image_passes_the_guard(colour, sets, tmp_path):
    index = Index.build(sets / "train", tmp_path / "index", FAST, held_out=sets / "held-out", cache=tmp_path / "cache")
    pictures = [drawing(seed) for seed in range(10)]
    made = [picture.convert("RGB") if colour is None else over(picture, colour) for picture in pictures]
    guarded = Guard(index, Policy(tries=1, refuse="none"))(lambda prompt: made)
    assert guarded(["a drawing"] * 10) == [None] * 10


def test_what_is_removed_is_gone_over_either_background(sets, tmp_path):
    index = Index.build(sets / "train", tmp_path / "index", FAST, cache=tmp_path / "cache")
    n = len(index)
    assert index.remove(["03.png (other background)", "04.png"]) == 2
    assert len(index) <= n - 6
    index.compact()
    assert not [hit for hits in index.match(sets / "black", k=60) for hit in hits if hit.id[:2] in ("03", "04")]
