"""Near-duplicate groups: transitive closure, chains split, exact pixels, full and partial duplication."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope.data.corpus import Corpus
from copyscope.detection.dedup import components as components_module
from copyscope.detection.dedup import groups as module
from copyscope.detection.dedup.components import components
from copyscope.detection.dedup.groups import duplicates
from copyscope.detection.descriptors.sscd_distilled import SscdDistilled
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.search import ivf as ivf_module
from copyscope.detection.search.exact import search
from copyscope.detection.search.ivf import IVF
from copyscope.errors import InputError
from copyscope.imaging import images
from tests import worlds


def closure(adjacent):
    reach = adjacent | np.eye(len(adjacent), dtype=bool)
    for middle in range(len(adjacent)):
        reach |= reach[:, middle, None] & reach[None, middle]
    return reach


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 30), block=st.integers(1, 9), bar=st.sampled_from([0.3, 0.6, 0.9]), seed=st.integers(0, 2**32 - 1)
)
def test_components_are_the_transitive_closure(n, block, bar, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    components_module.BLOCK, before = block, components_module.BLOCK
    try:
        label = components(vectors, bar, workers=2)
    finally:
        components_module.BLOCK = before
    scores = vectors @ vectors.T
    # Pairs within rounding of the bar may fall either way.
    if (np.abs(scores - bar) < 1e-5).any():
        return
    np.testing.assert_array_equal(label[:, None] == label[None, :], closure(scores >= bar))


def test_permuting_the_images_permutes_the_groups():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = rng.permutation(200)
    plain, permuted = components(vectors, 0.9), components(vectors[order], 0.9)
    np.testing.assert_array_equal(
        (plain[:, None] == plain[None, :])[np.ix_(order, order)], permuted[:, None] == permuted[None, :]
    )


def test_a_chain_is_split_so_that_every_member_reaches_its_centre_and_a_star_is_left_whole():
    angles = np.deg2rad([0, 20, 40, 60, 80, 100, 200, 205, 210])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    bar = float(np.cos(np.deg2rad(22)))
    joined = components(vectors, bar)
    assert len(set(joined[:6])) == 1
    label, n_chained = module._split(module._Rows(vectors), joined, bar)
    assert n_chained == 1
    assert len(set(label[:6])) > 1
    assert len(set(label[6:])) == 1
    for group in set(label):
        mine = vectors[label == group]
        assert (mine @ mine.T >= bar - 1e-6).all(axis=1).any()


def test_a_thousand_copies_of_one_image_are_one_group_without_a_million_edges(monkeypatch):
    vectors = np.tile(np.array([[1.0, 0.0]], np.float32), (5000, 1))
    assert len(set(components(vectors, 0.9))) == 1


@pytest.mark.sscd
def test_a_worlds_groups_are_found_with_their_kind(world, tmp_path):
    described = embed(Corpus.open(world.train), SscdDistilled())
    groups = duplicates(described, 0.75)
    table = groups.table()
    found: dict[int, set[str]] = {}
    for name, group in zip(table["id"].to_pylist(), table["group"].to_pylist(), strict=True):
        found.setdefault(group, set()).add(name)
    true: dict[int, set[str]] = {}
    for name, group in world.group.items():
        true.setdefault(group, set()).add(name)
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, true.values()))
    kinds = {frozenset(names): world.duplication[group] for group, names in true.items()}
    for group, names in found.items():
        assert groups.kind[group] == kinds[frozenset(names)]
    assert table["size"].to_pylist() == sorted(table["size"].to_pylist(), reverse=True)
    summary = groups.summary()
    assert summary["n_groups"] == len(true)
    assert (summary["full"], summary["partial"]) == (2, 1)


def test_a_hard_recompression_joins_its_source_by_its_pixels(tmp_path):
    """At a threshold that the descriptor does not reach, the second look does; and strangers stay apart."""
    rng = np.random.default_rng(0)
    for index in range(4):
        picture, _ = worlds.picture(rng)
        (tmp_path / f"{index}-a.png").write_bytes(images.encode(picture, "png"))
        (tmp_path / f"{index}-b.jpg").write_bytes(images.encode(picture, "jpeg", 30))
    described = embed(Corpus.open(tmp_path), SscdDistilled())
    assert ((described.vectors[::2] * described.vectors[1::2]).sum(axis=1) < 0.97).all()
    assert len(duplicates(described, 0.97, verify=None).kind) == 8
    groups = duplicates(described, 0.97)
    assert sorted(map(tuple, np.sort(groups.label.reshape(4, 2), axis=1))) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_a_hash_gets_the_second_look_only_where_few_bits_differ(tmp_path):
    """Of 64 bits, strangers have 16 that differ often enough in a large set; ten are still a reason to look."""
    for name in ("a", "b", "c"):
        picture, _ = worlds.picture(np.random.default_rng(0))
        (tmp_path / f"{name}.png").write_bytes(images.encode(picture, "png"))
    bits = np.ones((3, 64), np.float32)
    bits[1, :10], bits[2, 40:54] = -1, -1
    described = Embeddings(Corpus.open(tmp_path), np.arange(3), bits / 8, "phash", "")
    assert duplicates(described, 0.9).label.tolist() == [0, 0, 1]
    assert duplicates(described, 0.9, verify=None).label.tolist() == [0, 1, 2]


def test_exact_duplicates_are_told_by_pixels_not_by_file(tmp_path):
    rng = np.random.default_rng(0)
    first, _ = worlds.picture(rng)
    other, _ = worlds.picture(rng)
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(images.encode(first, "png"))
    bmp = folder / "b.bmp"
    from PIL import Image

    Image.fromarray(first).save(bmp)
    (folder / "c.jpg").write_bytes(images.encode(first, "jpeg", 95))
    (folder / "d.png").write_bytes(images.encode(other, "png"))
    groups = duplicates(embed(Corpus.open(folder), SscdDistilled()), 0.75)
    exact = dict(zip(groups.table()["id"].to_pylist(), groups.table()["exact"].to_pylist(), strict=True))
    assert exact == {"a.png": 2, "b.bmp": 2, "c.jpg": 1}
    assert groups.kind[0] == "uncaptioned"
    summary = groups.summary()
    assert (summary["n_groups"], summary["n_images_in_groups"], summary["n_exact_groups"]) == (1, 3, 1)
    assert summary["largest"] == 3


@pytest.mark.parametrize(
    ("captions", "kind"),
    [
        ([["a cat"], ["A  cat!"]], "full"),
        ([["a cat"], ["a dog"]], "partial"),
        ([["a cat", "a dog"], ["a dog"], ["a bird"]], "full"),
        ([["a cat", "a cat"], ["a dog"]], "partial"),
        ([[], []], "uncaptioned"),
        ([["!!"], ["!!"]], "partial"),
    ],
)
def test_whether_captions_repeat_with_the_image(captions, kind):
    assert module._kind(captions) == kind


def test_the_summary_is_plain_json(world):
    groups = duplicates(embed(Corpus.open(world.train), SscdDistilled()), 0.75)
    json.dumps(groups.summary(), allow_nan=False)


def chain(folder, angles):
    """Embeddings of as many greys, their vectors at the given angles."""
    for number in range(len(angles)):
        (folder / f"{number}.png").write_bytes(images.encode(np.full((4, 5, 3), 9 * number, np.uint8), "png"))
    angles = np.deg2rad(angles)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return Embeddings(Corpus.open(folder), np.arange(len(angles)), vectors, "by hand", "")


def test_chains_are_split_unless_asked_not_to_and_the_summary_says_which(tmp_path):
    described, bar = chain(tmp_path, [0, 20, 40, 60, 80, 100]), float(np.cos(np.deg2rad(22)))
    split = duplicates(described, bar, verify=None)
    whole = duplicates(described, bar, split_chains=False, verify=None)
    assert len(whole.kind) == 1 < len(split.kind)
    assert (split.n_chained, whole.n_chained) == (1, 0)
    assert split.summary()["chains"].startswith("loose chains split: 1;")
    assert whole.summary()["chains"] == "no loose chains"


def test_an_image_gone_since_has_no_exact_duplicates(tmp_path):
    described = chain(tmp_path, [0, 1, 2, 3])
    (tmp_path / "1.png").write_bytes((tmp_path / "3.png").read_bytes())
    (tmp_path / "0.png").unlink()
    assert duplicates(described, 0.9, verify=None).exact.tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize("threshold", [float("nan"), 75, -2])
def test_a_threshold_that_is_no_similarity_is_told(tmp_path, threshold):
    with pytest.raises(InputError, match="between -1 and 1"):
        duplicates(chain(tmp_path, [0, 1]), threshold)


def test_a_pair_at_the_threshold_is_a_pair_and_a_star_at_it_no_chain():
    half = np.array([[1, 0], [0.5, 0.75**0.5], [0.5, -(0.75**0.5)]], np.float32)
    label = components(half, 0.5)
    assert len(set(label)) == 1
    assert module._split(module._Rows(half), label, 0.5)[1] == 0


def test_a_centre_belongs_to_its_star_even_where_rounding_has_it_below_the_threshold():
    short = np.full((3, 1), 0.999, np.float32)
    label, n_chained = module._split(module._Rows(short), np.zeros(3, np.int64), 1.0)
    assert len(set(label)) == 3
    assert n_chained == 1


def test_groups_are_numbered_by_size_then_by_their_first_image():
    assert module._by_size(np.array([7, 5, 5, 3, 7, 9, 9, 9])).tolist() == [1, 2, 2, 3, 1, 0, 0, 0]


def test_the_same_bytes_in_another_shape_are_not_the_same_pixels():
    wide, high = np.full((2, 8, 3), 50, np.uint8), np.full((8, 2, 3), 50, np.uint8)
    digests = module._pixel_digests([(each, None) for each in (wide, high, wide.copy())])
    assert not np.array_equal(digests[0], digests[1])
    assert np.array_equal(digests[0], digests[2])


@pytest.mark.parametrize(("score", "joined"), [(0.97, True), (np.nextafter(0.97, 0), False)])
def test_an_image_joins_its_nearest_from_a_pixel_score_of_97_percent_on(tmp_path, monkeypatch, score, joined):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(images.encode(worlds.picture(np.random.default_rng(0))[0], "png"))
    bits = np.ones((2, 64), np.float32)
    bits[1, :10] = -1
    monkeypatch.setattr(module.Verify, "compare", lambda *given, **options: np.full(given[3].shape, score))
    described = Embeddings(Corpus.open(tmp_path), np.arange(2), bits / 8, "phash", "")
    assert (len(duplicates(described, 0.9).kind) == 1) is joined


@pytest.mark.parametrize("stars", [1, 2, 3])
def test_a_component_in_cells_may_fall_into_any_number_of_stars(stars, monkeypatch):
    monkeypatch.setattr(module, "STARS", stars)
    apart = np.repeat(np.eye(4, 64, dtype=np.float32), 3, axis=0)
    cells = IVF.build(apart, 2)
    label, n_chained = module._split(module._Rows(cells.halves, cells), np.zeros(12, np.int64), 0.9)
    assert sorted(np.bincount(label)[-4:].tolist()) == [3, 3, 3, 3]
    assert n_chained == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_one_comparison_gives_the_components_and_the_nearest_rows(monkeypatch, workers):
    monkeypatch.setattr(components_module, "BLOCK", 7)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((90, 8)).astype(np.float32)
    vectors[60:75] = vectors[:15]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    own = np.arange(90)
    for threshold in (0.6, 0.8, 0.999):
        label, nearest = components_module.components_and_nearest(vectors, threshold, 2, workers=workers)
        np.testing.assert_array_equal(label, components(vectors, threshold, workers=workers))
        wanted = search(vectors, vectors, 2, query_labels=own, reference_labels=own, workers=workers)
        np.testing.assert_array_equal(nearest.index, wanted.index)
        np.testing.assert_array_equal(nearest.score, wanted.score)


def test_duplicates_compares_every_pair_once(world, tmp_path, monkeypatch):
    described = embed(Corpus.open(world.train), SscdDistilled(), cache=tmp_path)
    real, pairs = components_module.search, []

    def counted(queries, references, *given, **more):
        pairs.append(len(queries) * len(references))
        return real(queries, references, *given, **more)

    monkeypatch.setattr(components_module, "search", counted)
    monkeypatch.setattr(ivf_module, "search", counted)
    monkeypatch.setattr(module, "components", None)  # would be a second comparison
    groups = duplicates(described, 0.75, cache=tmp_path)
    n = len(described.rows)
    assert sum(pairs) == n * n
    assert groups.closest.index.shape == (n, 2)
