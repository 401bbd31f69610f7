"""Pictures made again and again: found among others, and nothing else taken for one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from copyscope.data.corpus import Corpus
from copyscope.detection.descriptors.sscd_distilled import SscdDistilled
from copyscope.detection.embedding.embed import embed
from copyscope.detection.verdict import repeated_outputs as module
from copyscope.detection.verdict.repeated_outputs import repeated_outputs
from copyscope.imaging import images
from copyscope.stats import proportion
from tests import worlds
from tests.worlds import write_metadata

THRESHOLD = 0.75
SIDE = 96


def scene(seed):
    """Rectangles at random: no two scenes are near-duplicates."""
    rng = np.random.default_rng([seed, 7])
    picture = np.full((SIDE, SIDE, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(10):
        top, left = rng.integers(0, SIDE - 16, 2)
        height, width = rng.integers(12, 60, 2)
        picture[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return picture


def described(folder, pictures, **columns):
    """Embeddings of pictures written to a folder; columns: of the metadata, a list each."""
    folder.mkdir()
    for number, picture in enumerate(pictures):
        (folder / f"g{number:03d}.png").write_bytes(images.encode(picture, "png"))
    if columns:
        names = [f"g{number:03d}.png" for number in range(len(pictures))]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        write_metadata(folder, [{"file_name": name} | row for name, row in zip(names, rows, strict=True)])
    return embed(Corpus.open(folder), SscdDistilled(), cache=folder.parent / "cache")


def none_of(embeddings):
    return np.zeros(len(embeddings.rows), dtype=bool)


@pytest.fixture
def find(tmp_path):
    def find(embeddings, has_source=None, **options):
        source = none_of(embeddings) if has_source is None else np.asarray(has_source)
        return repeated_outputs(embeddings, source, THRESHOLD, cache=tmp_path / "cache", **options)

    return find


def again(seed, times):
    rng = np.random.default_rng([seed, 8])
    return [worlds.light_copy(scene(seed), rng) for _ in range(times)]


@pytest.fixture
def made(tmp_path):
    """Twelve scenes, then five versions of one picture and three of another, all from prompts of their own."""
    pictures = [*(scene(seed) for seed in range(12)), *again(50, 5), *again(51, 3), *again(52, 2)]
    return described(tmp_path / "made", pictures, prompt=[f"prompt {number}" for number in range(len(pictures))])


def test_repeated_pictures_are_listed_the_largest_group_first(made, find):
    found = find(made)
    assert [sorted(group.rows.tolist()) for group in found.groups] == [[12, 13, 14, 15, 16], [17, 18, 19]]
    plain = found.as_dict()
    json.dumps(plain, allow_nan=False)
    assert (plain["n_groups"], plain["n_images"]) == (2, 8)
    assert plain["share"] == proportion(8, 22).as_dict()
    first = plain["groups"][0]
    assert (first["size"], first["n_prompts"], first["n_generations"]) == (5, 5, 5)
    assert first["share"] == proportion(5, 22).as_dict()
    assert sorted(first["ids"]) == [f"g{number:03d}.png" for number in range(12, 17)]
    assert sorted(first["prompts"]) == [f"prompt {number}" for number in range(12, 17)]
    assert THRESHOLD <= first["similarity_least"] <= first["similarity"] <= 1
    assert module.SAME <= first["verified_least"] <= first["verified"] <= 1
    assert "2 pictures again and again, in 8 images" in plain["sentence"]


def test_a_group_with_a_source_is_left_out_as_a_whole(made, find):
    source = none_of(made)
    source[13] = True
    assert [sorted(group.rows.tolist()) for group in find(made, source).groups] == [[17, 18, 19]]
    assert "one picture" in find(made, source).sentence


def test_blank_images_are_left_out(made, find):
    blank = none_of(made)
    blank[12:17] = True
    assert [sorted(group.rows.tolist()) for group in find(made, blank=blank).groups] == [[17, 18, 19]]
    assert find(made, blank=np.ones(22, dtype=bool)).groups == ()
    # What is left out moves no flag to another image.
    blank = none_of(made)
    blank[:3] = True
    source = none_of(made)
    source[17] = True
    assert [sorted(group.rows.tolist()) for group in find(made, source, blank=blank).groups] == [[12, 13, 14, 15, 16]]


def test_the_least_number_of_generations_may_be_chosen(made, find):
    assert [len(group.rows) for group in find(made, least=2).groups] == [5, 3, 2]
    assert [len(group.rows) for group in find(made, least=4).groups] == [5]


def test_nothing_repeated_is_no_finding(tmp_path, find):
    found = find(described(tmp_path / "made", [scene(seed) for seed in range(6)]))
    assert found.groups == ()
    assert found.sentence is None
    assert found.as_dict() == {
        "n_groups": 0,
        "n_images": 0,
        "share": proportion(0, 6).as_dict(),
        "sentence": None,
        "groups": [],
    }


def test_no_images_are_no_finding(tmp_path, find):
    few = described(tmp_path / "made", [scene(1)])
    assert find(few).groups == ()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"prompt": ["a dog"] * 4}, 0),
        ({"prompt": ["a dog", "A dog.", "a  dog", "a DOG!"]}, 0),
        ({"prompt": ["a dog", "a dog", "a dog", "a cat"]}, 1),
        ({"prompt": ["", "", "", ""]}, 1),
        ({"prompt": ["a dog", "a dog", "a cat", "a cat"], "seed": [1, 1, 2, 2]}, 0),
        ({"prompt": ["a dog", "a dog", "a cat", "a cat"], "seed": [1, 2, 2, 2]}, 1),
    ],
)
def test_one_prompt_and_re_runs_are_no_finding(tmp_path, find, columns, expected):
    found = find(described(tmp_path / "made", [*again(50, 4), scene(1)], **{k: [*v, v[0]] for k, v in columns.items()}))
    assert len(found.groups) == expected


@pytest.mark.parametrize(("prompts", "expected"), [(None, 0), (["a dog", "a dog", "a cat"], 0), (["a", "b", "c"], 1)])
def test_equal_files_count_once_a_prompt(tmp_path, find, prompts, expected):
    pictures = [scene(50)] * 3 + [scene(1)]
    columns = {} if prompts is None else {"prompt": [*prompts, "other"]}
    assert len(find(described(tmp_path / "made", pictures, **columns)).groups) == expected


def test_a_collapsed_model_is_one_group_and_one_comparison_an_image(tmp_path, find, monkeypatch):
    embeddings = described(tmp_path / "made", again(50, 30), prompt=[f"prompt {number}" for number in range(30)])
    compared = []
    plain = module.Verify.compare

    def compare(self, queries, references, candidates, **options):
        compared.append((len(queries), len(references)))
        return plain(self, queries, references, candidates, **options)

    monkeypatch.setattr(module.Verify, "compare", compare)
    (group,) = find(embeddings).groups
    assert len(group.rows) == 30
    assert group.n_prompts == 30
    assert compared[-1] == (30, 1)
    plain_dict = find(embeddings).as_dict()["groups"][0]
    assert (len(plain_dict["ids"]), len(plain_dict["prompts"])) == (20, 5)
    assert plain_dict["share"]["value"] == 1


def test_pictures_that_the_descriptor_alone_takes_for_one_are_kept_apart(tmp_path, find):
    """Vectors made nearly equal: only the pixels tell the pictures apart, and both families are found."""
    pictures = [*again(50, 4), *again(51, 3), scene(1), scene(2)]
    embeddings = described(tmp_path / "made", pictures, prompt=[f"prompt {number}" for number in range(9)])
    near = 0.98 * embeddings.vectors[0] + 0.02 * embeddings.vectors
    embeddings.vectors[:] = near / np.linalg.norm(near, axis=1, keepdims=True)
    assert [sorted(group.rows.tolist()) for group in find(embeddings).groups] == [[0, 1, 2, 3], [4, 5, 6]]


def test_an_unreadable_image_moves_no_rows(tmp_path, find):
    folder = tmp_path / "made"
    described(folder, [scene(1), scene(2), *again(50, 3)])
    (folder / "a.png").write_bytes(b"no image")
    embeddings = embed(Corpus.open(folder), SscdDistilled(), cache=tmp_path / "cache")
    (group,) = find(embeddings).groups
    assert sorted(embeddings.corpus.ids[row] for row in group.rows) == ["g002.png", "g003.png", "g004.png"]
