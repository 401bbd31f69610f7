"""Sets without images, and sets none of which can be read: an empty result or an InputError, never a crash."""

from __future__ import annotations

import pytest

from copyscope import Corpus, Index
from copyscope.curation import captions, curate
from copyscope.detection.audit import audit
from copyscope.detection.dedup.deduplicate import deduplicated
from copyscope.detection.embedding.protocols import protocol
from copyscope.detection.leaks import leaks
from copyscope.detection.lint import lint
from copyscope.detection.lookup import lookup
from copyscope.detection.match_sentences import match_sets
from copyscope.errors import InputError
from copyscope.guard.guard import Guard, Policy
from tests.pictures import write

FAST = "sscd-distilled"


@pytest.fixture(scope="module")
def images(world):
    return Corpus.open(world.train).take(range(4))


@pytest.fixture(scope="module", params=["no images", "none readable"])
def empty(request, images, tmp_path_factory):
    if request.param == "no images":
        return images.take([])
    return Corpus.open(write(tmp_path_factory.mktemp("empty") / "set", {"a.png": b"", "b.png": b"no picture"}))


@pytest.fixture(scope="module")
def index(images, tmp_path_factory):
    return Index.build(images, tmp_path_factory.mktemp("index") / "index", FAST)


@pytest.mark.parametrize("local", [True, False])
def test_an_index_finds_nothing_for_nothing(index, empty, local, tmp_path):
    assert index.match([], local=local) == []
    assert index.match(empty, local=local) == [[]] * len(empty)
    found = lookup(index, [empty], local=local)
    found.save(tmp_path / "out")
    assert (found.summary["n"], found.summary["n_missing"]) == (len(empty), len(empty))
    with pytest.raises(InputError, match="no pictures"):
        lookup(index, [])


def test_a_guard_judges_nothing(index):
    assert Guard(index, Policy(rate=0)).judge([]) == []


def test_matches_of_nothing_and_with_nothing(images, empty):
    for sets in ((empty, images), (images, empty), (empty, empty)):
        summary, table = match_sets(*sets, protocol(FAST), 3)
        assert len(table) == summary["n_identical"] == 0


def test_what_needs_images_says_so(images, empty, tmp_path):
    for call in (
        lambda: lint(empty, FAST),
        lambda: audit(images, empty, None, FAST),
        lambda: audit(images, images, empty, FAST),
        lambda: Index.build(empty, tmp_path / "index", FAST),
    ):
        with pytest.raises(InputError):
            call()


def test_what_goes_without_images_goes(images, empty):
    assert deduplicated(empty, "keep-one", FAST)[1] == []
    assert len(deduplicated(empty, "down-weight", FAST)[0]) == len(empty)
    assert len(curate.duplicate(empty, "full")) == len(empty)
    assert len(captions.conditioned(empty, "fixed", seed=0)) == len(empty)
    if empty.origin != images.origin:
        assert leaks([images, empty], FAST).summary["n_groups"] == 0
