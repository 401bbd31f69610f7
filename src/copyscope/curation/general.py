"""More general captions: details go, and nouns become the word for their kind: "a person" for "woman: dark skin"."""

from __future__ import annotations

import functools
import re

from copyscope.data.table import distinct

from .captions import NOUN_PHRASE, WORD, wordnet

# Words for kinds of things that pictures show, as WordNet has them; _MASS has neither plural nor article.
_KINDS = {
    "person",
    "animal",
    "insect",
    "bird",
    "fish",
    "reptile",
    "amphibian",
    "dog",
    "cat",
    "bear",
    "plant",
    "flower",
    "tree",
    "fruit",
    "vegetable",
    "dish",
    "vehicle",
    "aircraft",
    "truck",
    "car",
    "boat",
    "ship",
    "bicycle",
    "building",
    "structure",
    "bridge",
    "tower",
    "room",
    "road",
    "musical_instrument",
    "tool",
    "ball",
    "weapon",
    "machine",
    "toy",
    "sign",
    "symbol",
    "shape",
    "utensil",
    "timepiece",
    "publication",
    "book",
    "computer",
    "seat",
    "bed",
    "hat",
    "shoe",
    "garment",
    "body_part",
    "mountain",
    "lake",
    "river",
    "beverage",
    "dessert",
    "cake",
    "bread",
    "telephone",
    "camera",
}
_MASS = {"food", "furniture", "clothing", "equipment", "jewelry", "footwear", "water", "headdress"}
_SEEN = {"publication": "book", "timepiece": "clock", "beverage": "drink", "headdress": "headgear"}
# What tells in a picture who somebody is. (Of people, WordNet's other names are often slurs.)
_WITH = {
    "artist": "with a brush", "astronaut": "in a space suit", "chef": "with a pan", "cook": "with a pan",
    "cyclist": "with a bicycle", "doctor": "in a white coat", "farmer": "with a rake", "firefighter": "in a helmet",
    "fireman": "in a helmet", "golfer": "with a golf club", "guitarist": "with a guitar", "judge": "in a robe",
    "king": "with a crown", "mechanic": "with a wrench", "musician": "with an instrument", "nurse": "in a white coat",
    "painter": "with a brush", "photographer": "with a camera", "pianist": "at a piano", "pilot": "in a uniform",
    "queen": "with a crown", "scientist": "with a microscope", "singer": "with a microphone", "skier": "on skis",
    "soldier": "in a uniform", "student": "with a book", "surfer": "with a surfboard", "teacher": "at a blackboard",
}  # fmt: skip
_DETAIL = re.compile(r"\s*(?::|\(|\[|;| - | – ).*", re.DOTALL)
_ARTICLES = ("a", "an", "the", "one", "this", "that", "some")


def generalised(caption: str, n: int, kind: str = "", *, nouns: bool = True) -> list[str]:
    """Up to `n` captions more general than `caption`, the nearest to it first, none of them the caption itself.

    Details behind a colon or in brackets go first. Then every noun becomes the word for its kind: the nearest, then the
    most general of those that a picture shows; at last the kind of the first noun alone, and a picture of it.

    Args:
        caption: of an image.
        n: how many captions at most.
        kind: class of the image, from its data set; "" where there is none.
        nouns: look up nouns in WordNet; else only details are left out and `kind` is used.

    Raises:
        MissingExtra: `nouns`, and WordNet is not installed.
    """
    plain = _DETAIL.sub("", caption.strip()).strip().removesuffix(".")
    found = [plain]
    spans = _nouns(plain) if nouns else []
    if spans:
        found += [_replaced(plain, spans, level) for level in (0, -1)]
        start, end, kinds = spans[0]
        seen = _WITH.get(plain[start:end].lower().split()[-1], "") if kinds[0] == "person" else ""
        if seen:
            found.insert(1, f"a person {seen}")
        found += [text for each in kinds for text in (_with_article(each), f"a picture of {_with_article(each)}")]
    if kind:
        found += [f"a picture of {kind.replace('_', ' ')}"]
    return [text for text in distinct(found) if text and text != caption.strip()][:n]


def _nouns(text: str) -> list[tuple[int, int, tuple[str, ...]]]:
    """Start, end and kinds of each noun of a text that has any, the nearest kind first.

    The last noun of a compound says what it is ("woman photographer").
    """
    words = list(WORD.finditer(text))
    found: list[tuple[int, int, tuple[str, ...]]] = []
    place = 0
    while place < len(words):
        length = 1
        for length in range(min(NOUN_PHRASE, len(words) - place), 0, -1):
            start, end = words[place].start(), words[place + length - 1].end()
            kinds = _kinds(text[start:end].lower()) if re.fullmatch(r"[A-Za-z -]+", text[start:end]) else ()
            if kinds:
                if found and not text[found[-1][1] : start].strip():
                    start = found.pop()[0]
                found.append((start, end, kinds))
                break
        place += length
    return found


def _replaced(text: str, spans: list[tuple[int, int, tuple[str, ...]]], level: int) -> str:
    """The text with each noun, and its article, as the kind of this level."""
    parts, done = [], 0
    for start, end, kinds in spans:
        before = text[done:start]
        article = re.search(rf"(?i)(?:^|\s)({'|'.join(_ARTICLES)})\s$", before)
        kind = kinds[level]
        if article and article[1].lower() in ("a", "an"):
            before = before[: article.start(1)]
            kind = _with_article(kind)
        elif not before.strip() and not done:
            kind = _with_article(kind)
        parts += [before, kind]
        done = end
    found = "".join([*parts, text[done:]])
    return found[0].lower() + found[1:]


def _with_article(kind: str) -> str:
    if kind in _MASS or kind in ("headgear", "people") or kind.endswith("s"):
        return kind
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


@functools.cache
def _kinds(noun: str) -> tuple[str, ...]:
    """Kinds of what a noun names in most texts, the nearest first; none if it names nothing that pictures show."""
    net, name = wordnet(), re.sub("[ -]", "_", noun)
    if len(name) < 3:
        return ()
    singular = name
    senses = net.synsets(name, "n")
    if senses and not any(name in sense.lemma_names() for sense in senses):
        singular = name.removesuffix("s")
    counts = {
        kind: sum(
            lemma.count() for sense in net.synsets(name, kind) for lemma in sense.lemmas() if lemma.name() == name
        )
        for kind in "nvar"
    }
    if counts["n"] < max(counts.values()):  # "in" is an inch, "open" a noun too
        return ()

    def rank(sense: object) -> tuple[int, bool]:
        count = sum(lemma.count() for lemma in sense.lemmas() if lemma.name() == singular)  # type: ignore[attr-defined]
        # Where no text tells, a word is no name for people: a taco is a dish.
        return -count, sense.lexname() == "noun.person"  # type: ignore[attr-defined]

    for sense in sorted((sense for sense in senses if singular in sense.lemma_names()), key=rank)[:1]:
        path, kinds = [sense], list[str]()
        while path[-1].hypernyms():
            path.append(path[-1].hypernyms()[0])
        for each in path[1:] if sense.lemma_names()[0] != "person" else path:
            kinds += [word for word in each.lemma_names()[:2] if word in _KINDS or word in _MASS][:1]
        said = (_SEEN.get(kind, kind).replace("_", " ") for kind in kinds)
        return tuple(distinct(map(_plural, said) if singular != name else said))
    return ()


def _plural(kind: str) -> str:
    if kind in _MASS or kind == "headgear":
        return kind
    irregular = {"person": "people", "fish": "fish", "body part": "body parts"}
    return irregular.get(kind) or (f"{kind}es" if kind.endswith(("sh", "ch", "x")) else f"{kind}s")
