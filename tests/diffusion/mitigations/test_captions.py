"""Mitigations of captions, and the words they put in: what the descriptions say, computed again by other means."""

from __future__ import annotations

import collections
import functools
import gc
import itertools
import math
import pickle
import types
import weakref

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

pytest.importorskip("torch")
pytest.importorskip("transformers")

from copyscope import parts
from copyscope.diffusion import applied
from copyscope.diffusion.mitigations import SAMPLING, TRAINING, OnCaption
from copyscope.diffusion.mitigations.generalised_captions import GeneralisedCaptions
from copyscope.diffusion.mitigations.multiple_captions import MultipleCaptions
from copyscope.diffusion.mitigations.random_caption import RandomCaption
from copyscope.diffusion.mitigations.random_numbers import RandomNumbers
from copyscope.diffusion.mitigations.random_tokens import RandomTokens
from copyscope.diffusion.mitigations.word_repetition import WordRepetition
from copyscope.diffusion.text.vocabulary import _KNOWN, vocabulary
from copyscope.errors import InputError, PartError

CAPTION = "TWO DOGS SIT ON A RED SOFA"
"""In capitals, which the tokenizers here do not have."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@functools.cache
def bert():
    """The packaged MiniLM's: whole words, and pieces of words with ##."""
    from transformers import AutoTokenizer

    from copyscope.diffusion.text.encoder import _packaged

    return AutoTokenizer.from_pretrained(_packaged(), local_files_only=True)


def clip_style():
    """Bytes, and what merges of them make: pieces of words, words (</w>), and tokens that no text is read as."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    merges = ["d o", "do g</w>", "do g", "dog s</w>", "a t</w>", "c at</w>", "d o</w>", "2 0", "20 2", "202 3</w>"]
    merges += ["! !</w>", "' s</w>", "Ã ©</w>", "D O</w>"]
    made = [merge.replace(" ", "") for merge in merges]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *made, "cow</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[tuple(merge.split()) for merge in merges])
    tokenizer.add_tokens(["toyword"])
    return tokenizer


# "é" is a letter of two bytes that merge; a byte beyond ASCII alone is no text, and "DO" is read as "do".
CLIP_WORDS = {chr(code) for code in range(33, 127)} - set(LETTERS.upper())
CLIP_WORDS |= {"dog", "dogs", "at", "cat", "do", "!!", "'s", "é"}


def t5_style(**options):
    """Pieces with ▁ at a word's start: words, pieces, one that is cheaper in two, one across words."""
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -5.0)]
    pieces += [(letter, -10.0) for letter in LETTERS]
    pieces += [("▁a", -2.0), ("▁dog", -3.0), ("dog", -3.0), ("▁dogs", -9.0), ("▁cat", -3.0), ("▁catfish", -6.0)]
    pieces += [("fish", -2.0), ("▁ab", -50.0), ("▁dog▁cat", -1.0), ("▁,", -4.0), ("▁a▁dog", -1.0)]
    pieces += [(f"<extra_id_{number}>", 0.0) for number in (1, 0)]
    return T5TokenizerFast(vocab=pieces, extra_ids=2)


T5_WORDS = {"a", "dog", "dogs", "cat", ","}


def word_level(*words):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: number for number, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


STYLES = {"bert": bert, "clip": functools.cache(clip_style), "t5": functools.cache(t5_style)}


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def is_within(some, others):
    """Whether all of `some` are in `others`, in their order."""
    left = iter(others)
    return all(one in left for one in some)


# The words of a tokenizer


def test_words_of_a_clip_tokenizer():
    tokenizer = clip_style()
    assert set(vocabulary(tokenizer)) == CLIP_WORDS
    # What the draw from all ids, decoded, puts in instead: other tokens than those drawn.
    read = {token: ids(tokenizer, tokenizer.decode([token])) for token in tokenizer.get_vocab().values()}
    assert sum(found != [token] for token, found in read.items()) > 256


def test_words_of_a_t5_tokenizer():
    assert set(vocabulary(t5_style())) == T5_WORDS


def test_words_of_the_packaged_bert_tokenizer():
    words, vocab = vocabulary(bert()), bert().get_vocab()
    assert not {"[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "[unused5]"} & set(words)
    assert not [word for word in words if word.startswith("##")]
    # Of whole lower-case words in ASCII, none is lost.
    assert {token for token in vocab if token.isascii() and token.isalpha() and token.islower()} <= set(words)
    assert vocabulary("") == vocabulary() == words


@pytest.mark.parametrize("style", STYLES)
def test_words_are_their_one_token_among_each_other_and_in_the_order_of_ids(style):
    tokenizer = STYLES[style]()
    words = vocabulary(tokenizer)
    own = [ids(tokenizer, f"a {word}")[-1] for word in words]
    assert own == sorted(set(own))
    order = np.random.default_rng(0).permutation(len(words))
    assert ids(tokenizer, " ".join(words[place] for place in order)) == [own[place] for place in order]
    assert not set(own) & {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    assert all(word.isprintable() and word.split() == [word] for word in words)


def test_a_word_that_its_neighbours_swallow_is_none():
    from tokenizers import pre_tokenizers

    tokenizer = t5_style()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    assert ids(tokenizer, "a dog a") == tokenizer.convert_tokens_to_ids(["▁a▁dog", "▁a"])
    assert set(vocabulary(tokenizer)) == T5_WORDS - {"dog"}


def test_copied_and_pickled_tokenizers_have_the_same_words():
    tokenizer = clip_style()
    assert vocabulary(pickle.loads(pickle.dumps(tokenizer))) == vocabulary(tokenizer)


def test_padding_and_cutting_that_a_tokenizer_was_used_with_change_nothing():
    tokenizer = clip_style()
    tokenizer(["a dog"], padding="max_length", truncation=True, max_length=3)
    assert set(vocabulary(tokenizer)) == CLIP_WORDS


def test_words_are_found_once_and_do_not_keep_the_tokenizer():
    tokenizer = word_level("a", "b")
    words, alive, key = vocabulary(tokenizer), weakref.ref(tokenizer), id(tokenizer)
    assert vocabulary(tokenizer) is words
    assert key in _KNOWN
    del tokenizer
    gc.collect()
    assert alive() is None
    assert key not in _KNOWN


def test_tokenizers_and_parts_that_have_one_need_no_hash():
    tokenizer = word_level("a", "b")
    tokenizer.__class__ = type("Unhashable", (type(tokenizer),), {"__eq__": lambda *_: True, "__hash__": None})
    with pytest.raises(TypeError):
        hash(tokenizer)
    assert vocabulary(tokenizer) == ("a", "b")
    part = RandomTokens(tokenizer=tokenizer)
    assert hash(part) == hash(RandomTokens(tokenizer=""))
    assert part == RandomTokens(tokenizer=tokenizer) != RandomCaption(tokenizer=tokenizer)


def test_a_tokenizer_may_be_a_folder(tmp_path):
    clip_style().save_pretrained(tmp_path)
    assert set(vocabulary(str(tmp_path))) == CLIP_WORDS
    part = parts.load("mitigations", f"random_caption(probability=1, tokens=3, tokenizer={str(tmp_path)!r})")
    assert set(part(CAPTION, 0).split()) <= CLIP_WORDS
    assert parts.load("mitigations", str(part)) == part


def test_no_tokenizer_and_no_words_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"nowhere holds no tokenizer: .*\nName a folder"):
        vocabulary(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"no token that is a word of its own\.\n"):
        vocabulary(word_level())


# What the parts do to a caption


def after_insertions(words, pool, n):
    """All captions that inserting n of the pool makes, each as often as it is likely."""
    made = [words]
    for _ in range(n):
        made = [[*each[:gap], new, *each[gap:]] for each in made for new in pool for gap in range(len(each) + 1)]
    return [" ".join(each) for each in made]


def after_replacements(words, pool, n):
    made = []
    for places in itertools.permutations(range(len(words)), min(n, len(words))):
        for new in itertools.product(pool, repeat=len(places)):
            there = dict(enumerate(words)) | dict(zip(places, new, strict=True))
            made.append(" ".join(there[place] for place in range(len(words))))
    return made


XYZ = ["X", "Y", "Z"]
AB = word_level("a", "b")
DRAWS = {
    "MC": (MultipleCaptions(), ["one", "two", "three", "two"], ["one", "two", "three", "two"]),
    "MC of one": (MultipleCaptions(), ["one"], ["one"]),
    "RC": (RandomCaption(1, 3, AB), ["X Y"], ["".join(three) for three in itertools.product("ab", repeat=3)]),
    "RT 1": (RandomTokens(1, 1, False, AB), ["X Y Z"], after_insertions(XYZ, ["a", "b"], 1)),
    "RT 2": (RandomTokens(2, 1, False, AB), ["X Y Z"], after_insertions(XYZ, ["a", "b"], 2)),
    "RT of nothing": (RandomTokens(2, 1, False, AB), [""], after_insertions([], ["a", "b"], 2)),
    "RT replaces 1": (RandomTokens(1, 1, True, AB), ["X Y Z"], after_replacements(XYZ, ["a", "b"], 1)),
    "RT replaces 2": (RandomTokens(2, 1, True, AB), ["X Y Z"], after_replacements(XYZ, ["a", "b"], 2)),
    "RT replaces all": (RandomTokens(5, 1, True, AB), ["X Y Z"], after_replacements(XYZ, ["a", "b"], 5)),
    "CWR 1": (WordRepetition(1, 1), ["X Y Z"], after_insertions(XYZ, XYZ, 1)),
    "CWR 2": (WordRepetition(2, 1), ["X Y Y"], after_insertions(["X", "Y", "Y"], ["X", "Y", "Y"], 2)),
    "RNA 1": (RandomNumbers(1, 1, 3), ["X Y Z"], after_insertions(XYZ, ["0", "1", "2"], 1)),
    "RNA 2": (RandomNumbers(2, 1, 2), ["X Y Z"], after_insertions(XYZ, ["0", "1"], 2)),
    "RNA of nothing": (RandomNumbers(2, 1, 2), [""], after_insertions([], ["0", "1"], 2)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_captions_come_as_often_as_the_description_says(name):
    part, captions, outcomes = DRAWS[name]
    if name == "RC":
        outcomes = [" ".join(each) for each in outcomes]
    likely = collections.Counter(outcomes)
    draws = 40 * len(likely)
    found = collections.Counter(part(captions, [7, seed]) for seed in range(draws))
    assert set(found) <= set(likely)
    if len(likely) > 1:
        expected = [draws * likely[each] / len(outcomes) for each in likely]
        assert stats.chisquare([found[each] for each in likely], expected).pvalue > 1e-3


@pytest.mark.parametrize(
    "part",
    [RandomTokens(1, 1), RandomTokens(1, 1, tokenizer=clip_style()), RandomNumbers(1, 1)],
    ids=["bert", "clip", "numbers"],
)
def test_gaps_are_alike_with_both_ends_among_them(part):
    words, draws = CAPTION.split(), 3000
    gaps = collections.Counter()
    for seed in range(draws):
        there = part(CAPTION, seed).split()
        (gap,) = [gap for gap in range(len(there)) if there[:gap] + there[gap + 1 :] == words]
        gaps[gap] += 1
    counts = [gaps[gap] for gap in range(len(words) + 1)]
    assert sum(counts) == draws
    assert stats.chisquare(counts).pvalue > 1e-3


def test_numbers_reach_from_0_to_below_100000():
    numbers = [int(RandomNumbers(1)("", seed)) for seed in range(3000)]
    assert stats.kstest(numbers, stats.uniform(0, 100_000).cdf).pvalue > 1e-3
    assert max(numbers) < 100_000
    assert {RandomNumbers(1, below=2**62)("", 0), RandomNumbers(1, below=1)("", 0)} > {"0"}


CAPTIONS = ["a red dog", "a blue cat", "a green cow that runs", "birds"]


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    ("spec", "share"),
    [
        ("multiple_captions(probability={})", 3 / 4),
        ("random_caption(probability={})", 1),
        ("random_tokens(probability={})", 1),
        ("random_tokens(n=2, probability={}, replace=True)", 1),
        ("word_repetition(probability={})", 1),
        ("random_numbers(probability={})", 1),
        ("generalised_captions(words=2, probability={})", 1),
    ],
)
def test_captions_change_as_often_as_the_probability_says(spec, share, probability):
    part = parts.load("mitigations", spec.format(probability))
    changed = sum(part(CAPTIONS, seed) != CAPTIONS[0] for seed in range(1500))
    low, high = stats.binom.interval(0.999, 1500, probability * share)
    assert low <= changed <= high or probability * share == changed / 1500 == 1


@pytest.mark.parametrize(
    "part",
    [
        MultipleCaptions(probability=0),
        RandomCaption(probability=0, tokenizer="no folder is looked for"),
        RandomTokens(probability=0, tokenizer="no folder is looked for"),
        RandomTokens(n=0, probability=1, tokenizer="no folder is looked for"),
        RandomTokens(n=0, probability=1, replace=True),
        WordRepetition(probability=0),
        WordRepetition(n=0, probability=1),
        RandomNumbers(probability=0),
        RandomNumbers(n=0),
        GeneralisedCaptions(probability=0),
    ],
)
def test_turned_down_to_nothing_the_caption_is_that_of_the_draw(part):
    captions = ["  a   red\tdog, sits on the sofa \n", "other"]
    assert all(part(captions, seed) is captions[0] for seed in range(50))


@given(st.lists(st.text(), min_size=1, max_size=4), st.integers(0, 2**32))
def test_any_captions_are_taken_and_left_as_they_are(captions, seed):
    before = list(captions)
    made = {
        part: part(captions, seed)
        for part in (
            MultipleCaptions(),
            RandomCaption(1, 4, AB),
            RandomTokens(3, 1, False, AB),
            RandomTokens(3, 1, True, AB),
            WordRepetition(3, 1),
            RandomNumbers(3),
            GeneralisedCaptions(2),
        )
    }
    assert captions == before
    assert made == {part: part.rewrite(tuple(captions), np.random.default_rng(seed)) for part in made}
    words = captions[0].split()
    multiple, random, inserting, replacing, repeating, numbers, short = (text.split() for text in made.values())
    assert " ".join(multiple) in {" ".join(caption.split()) for caption in captions}
    assert len(random) == 4
    assert set(random) <= {"a", "b"}
    assert len(inserting) == len(words) + 3
    assert is_within(words, inserting)
    assert len(replacing) == len(words)
    assert sum(a != b for a, b in zip(words, replacing, strict=True)) <= 3
    assert len(repeating) == len(words) + 3 * bool(words)
    assert is_within(words, repeating)
    assert set(repeating) == set(words)
    assert len(numbers) == len(words) + 3
    assert is_within(words, numbers)
    assert all(number.isdigit() for number in (collections.Counter(numbers) - collections.Counter(words)))
    assert len(short) <= max(2, len(words) * (len(words) <= 2))
    assert bool(short) == bool(words)


@pytest.mark.parametrize("style", STYLES)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    # Control characters are spaces to Python and nothing to some tokenizers.
    caption=st.one_of(
        st.text(st.characters(exclude_categories=["C"]), max_size=30),
        st.lists(st.sampled_from(["a", "dog", "dogs", "cat", "fish", "catfish", "2023", "'s", "!", "é", "DO"])).map(
            " ".join
        ),
    ),
    n=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_tokens_that_come_in_survive_and_the_others_stay(style, caption, n, seed):
    tokenizer = STYLES[style]()
    own = {ids(tokenizer, f"a {word}")[-1] for word in vocabulary(tokenizer)} if style != "bert" else known_to_bert()
    before = ids(tokenizer, caption)
    after = ids(tokenizer, RandomTokens(n, 1, False, tokenizer)(caption, seed))
    assert len(after) == len(before) + n
    assert is_within(before, after)
    assert set(collections.Counter(after) - collections.Counter(before)) <= own
    replaced = ids(tokenizer, RandomCaption(1, n, tokenizer)(caption, seed))
    assert len(replaced) == n
    assert set(replaced) <= own


@functools.cache
def known_to_bert():
    return set(bert().convert_tokens_to_ids(list(vocabulary(bert()))))


@pytest.mark.parametrize(
    ("caption", "words", "expected"),
    [
        ("A man riding a wave on top of a surfboard", 5, "A man riding a wave"),
        ("Two dogs sitting on a red couch", 5, "Two dogs sitting"),
        ("Two dogs, sitting on a couch", 2, "Two dogs"),
        ("Two dogs and cats", 3, "Two dogs"),
        ("a cat, with, the hat", 4, "a cat"),
        ("of the and of the end", 5, "of the and of the"),
        (", . ; , . ; !", 3, ", . ;"),
        ("Paris - The city of light", 3, "Paris"),
        ("three  spaced\twords and more", 3, "three spaced words"),
        ("a red cat on", 4, "a red cat on"),
        ("a red cat,", 3, "a red cat,"),
        ("a red", 5, "a red"),
        ("", 5, ""),
    ],
)
def test_generalised_captions_are_what_comes_first_and_end_where_a_phrase_may(caption, words, expected):
    assert GeneralisedCaptions(words)([caption, "other"], 0) == expected


# The shelf


@pytest.mark.parametrize(
    "spec",
    [
        f"{name}(probability={value})"
        for name in ("multiple_captions", "random_caption", "random_tokens", "word_repetition", "random_numbers")
        for value in ("-0.1", "1.1", "1e999", "'a'")
    ]
    + ["generalised_captions(probability=2)", "generalised_captions(words=0)", "generalised_captions(words=2.5)"]
    + ["random_caption(tokens=0)", "random_caption(tokens=1.5)", "random_numbers(below=0)", "random_numbers(below=0.5)"]
    + [f"random_numbers(below={2**63})"]
    + [
        f"{name}(n={n})"
        for name in ("random_tokens", "word_repetition", "random_numbers")
        for n in ("-1", "1.5", "'2'")
    ],
)
def test_values_out_of_range_are_refused(spec):
    with pytest.raises(PartError, match="does not fit its part"):
        parts.load("mitigations", spec)


def test_not_a_number_is_no_probability():
    for cls in (MultipleCaptions, RandomCaption, RandomTokens, WordRepetition, RandomNumbers, GeneralisedCaptions):
        with pytest.raises(ValueError, match="probability must be"):
            cls(probability=math.nan)


PRESETS = {
    TRAINING: {
        "MC": MultipleCaptions(1.0),
        "RC": RandomCaption(0.1, 4, AB),
        "RT": RandomTokens(2, 0.1, False, AB),
        "CWR": WordRepetition(2, 0.1),
    },
    SAMPLING: {
        "RT": RandomTokens(4, 1.0, False, AB),
        "CWR": WordRepetition(4, 1.0),
        "RNA": RandomNumbers(4, 1.0, 100_000),
    },
}


@pytest.mark.parametrize(
    "spec",
    [
        "multiple_captions(probability=1.0)",
        "random_caption(probability=0.1, tokens=4, tokenizer='')",
        "random_tokens(n=2, probability=0.1, replace=False, tokenizer='')",
        "word_repetition(n=2, probability=0.1)",
        "random_numbers(n=2, probability=1.0, below=100000)",
        "generalised_captions(words=5, probability=1.0)",
    ],
)
def test_defaults_are_those_of_the_authors(spec):
    assert str(parts.load("mitigations", spec)) == spec.partition("(")[0]


@pytest.mark.parametrize("stage", PRESETS)
def test_the_papers_letters_are_its_parts_with_the_tokenizer_of_the_model(stage):
    model = types.SimpleNamespace(tokenizer=AB)
    found = applied.load([f"dcr-2023:{letters}" for letters in PRESETS[stage]], stage, model)
    assert found.parts == tuple(PRESETS[stage].values())
    assert all(part.tokenizer is AB for part in found.parts if hasattr(part, "tokenizer"))
    rng_of = functools.partial(applied.training_rng, 0, 1)
    assert found.caption(["X Y", "Z"], rng_of) == found.caption(["X Y", "Z"], rng_of)


def test_a_model_without_a_tokenizer_leaves_the_packaged_one():
    (part,) = applied.load(["random_tokens(probability=1)"], TRAINING, types.SimpleNamespace(tokenizer="")).parts
    assert part == RandomTokens(probability=1)
    assert set(part("X Y", 0).split()) - {"X", "Y"} <= set(vocabulary(bert()))


def test_a_real_model_gives_its_tokenizer():
    model = parts.load("models", "small_unet")
    (part,) = applied.load(["dcr-2023:RT"], TRAINING, model).parts
    assert part.tokenizer is model.tokenizer
    assert (part.n, part.probability, part.replace) == (2, 0.1, False)
    assert vocabulary(part.tokenizer) == vocabulary("")


@pytest.mark.parametrize(
    ("spec", "stage"),
    [("multiple_captions", SAMPLING), ("random_caption", SAMPLING), ("random_numbers", TRAINING)],
)
def test_parts_of_one_stage_are_refused_in_the_other(spec, stage):
    with pytest.raises(InputError, match="acts in"):
        applied.load([spec], stage, types.SimpleNamespace(tokenizer=AB))


@pytest.mark.parametrize("stage", PRESETS)
@pytest.mark.parametrize("spec", ["dcr-2023:XX", "dcr-2023:", "dcr-2024:RT", "foo:GN"])
def test_presets_there_are_not_are_told_with_those_there_are(spec, stage):
    with pytest.raises(PartError) as caught:
        applied.load([spec], stage, types.SimpleNamespace(tokenizer=AB))
    first, second = str(caught.value).split("\n")
    assert spec.partition(":")[0] in first
    assert second.endswith(", ".join(f"dcr-2023:{letters}" for letters in applied.PRESETS["dcr-2023"][stage]))


def test_a_wrong_spec_of_ones_own_class_is_told_without_presets():
    with pytest.raises(PartError) as caught:
        applied.load(["foo:Part(n=1)"], TRAINING, types.SimpleNamespace(tokenizer=AB))
    assert "dcr-2023" not in str(caught.value)


# In loops of one's own

# Python 3.12 and later warn of whoever forks a process that has threads, as torch's has.
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

LOOPS = [
    MultipleCaptions(),
    RandomCaption(0.5),
    RandomCaption(0.5, tokenizer=clip_style()),
    RandomTokens(2, 0.5),
    RandomTokens(2, 0.5, tokenizer=clip_style()),
    RandomTokens(2, 0.5, True, t5_style()),
    WordRepetition(2, 0.5),
    RandomNumbers(2, 0.5),
    GeneralisedCaptions(2, 0.5),
]


def name_of(part):
    tokenizer = getattr(part, "tokenizer", "")
    return type(part).__name__ + (f"-{type(tokenizer).__name__}" if tokenizer else "")


@forks
@pytest.mark.parametrize("part", LOOPS, ids=name_of)
def test_parts_work_in_the_processes_of_a_dataset(part, monkeypatch):
    datasets = pytest.importorskip("datasets")
    # Else the tokenizers say, once a process, that they have been forked.
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    rows = datasets.Dataset.from_dict(
        {"captions": [[f"{number} is one", f"{number} is another"] for number in range(8)]}
    )
    part = pickle.loads(pickle.dumps(part))
    # What `map` knows a result by, which use must not change.
    fingerprint = datasets.fingerprint.Hasher.hash(part)
    expected = [part(captions, [3, number]) for number, captions in enumerate(rows["captions"])]
    assert isinstance(part, OnCaption)

    def drawn(row, number):
        return {"caption": part(row["captions"], [3, number])}

    found = rows.map(drawn, with_indices=True, num_proc=2)
    assert found["caption"] == expected
    assert rows.map(drawn, with_indices=True)["caption"] == expected
    assert datasets.fingerprint.Hasher.hash(part) == fingerprint


@forks
@pytest.mark.parametrize("part", LOOPS, ids=name_of)
def test_parts_work_in_a_collate_function_of_other_processes(part, monkeypatch):
    from torch.utils.data import DataLoader

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    rows = [(number, [f"{number} is one", f"{number} is another"]) for number in range(8)]
    collate = functools.partial(collated, part)
    expected = [part(captions, [3, number]) for number, captions in rows]
    for workers in (0, 2):
        loader = DataLoader(rows, batch_size=3, collate_fn=collate, num_workers=workers)
        assert list(itertools.chain.from_iterable(loader)) == expected
    assert pickle.loads(pickle.dumps(collate))(rows) == expected


def collated(part, rows):
    return [part(captions, [3, number]) for number, captions in rows]


def test_one_seed_makes_one_caption_whatever_the_state_of_the_global_generators():
    import random

    for part in LOOPS:
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        states = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        first = [part(CAPTIONS, seed) for seed in range(20)]
        assert (states[0] == np.random.get_state()[1]).all()  # noqa: NPY002
        assert states[1] == random.getstate()
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        assert [part(CAPTIONS, seed) for seed in range(20)] == first
