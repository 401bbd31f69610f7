"""Words that a tokenizer keeps whole, and captions with words inserted."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from copyscope.errors import InputError
from copyscope.model_folders import refuse_code

from .encoder import _packaged

_KNOWN: dict[int, tuple[str, ...]] = {}


def vocabulary(tokenizer: Any = "") -> tuple[str, ...]:
    """Words that are one token wherever they stand between other words, in the order of their tokens' ids.

    Left out are pieces of words, whatever the tokenizer reads as other tokens than the one it writes (with CLIP "2023",
    which it splits into digits), special and added tokens, and what cannot be printed. Found once a tokenizer, which
    takes about a second.

    Args:
        tokenizer: of transformers, or a local folder with one; "" = that of the packaged MiniLM-L6.

    Raises:
        InputError: no word is left, or the folder holds no tokenizer.
    """
    if isinstance(tokenizer, str):
        return _of_folder(tokenizer or _packaged())
    # By identity: a tokenizer need not be hashable. Forgotten with it, before another can have its identity.
    key = id(tokenizer)
    if key not in _KNOWN:
        _KNOWN[key] = _words(tokenizer)
        weakref.finalize(tokenizer, _KNOWN.pop, key, None)
    return _KNOWN[key]


def inserted(caption: str, words: Sequence[str], rng: np.random.Generator) -> str:
    """Insert words into a caption one after the other, each at any of the gaps there are then, ends included."""
    there = caption.split()
    for word in words:
        there.insert(int(rng.integers(len(there) + 1)), word)
    return " ".join(there)


def drawn(words: Sequence[str], n: int, rng: np.random.Generator) -> list[str]:
    """Draw `n` words, uniformly and with replacement."""
    return [words[place] for place in rng.integers(len(words), size=n)]


@functools.cache
def _of_folder(folder: str) -> tuple[str, ...]:
    from transformers import AutoTokenizer

    refuse_code(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} holds no tokenizer: {str(error).splitlines()[0]}.\n"
            "Name a folder that transformers' save_pretrained wrote"
        ) from None
    return _words(tokenizer)


def _words(tokenizer: Any) -> tuple[str, ...]:
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    ids = sorted(set(tokenizer.get_vocab().values()) - added)
    # A CLIP tokenizer that was copied or pickled no longer takes the mark of a word's end off by itself.
    texts = [(token, tokenizer.decode([token]).strip().removesuffix("</w>")) for token in ids]
    written = [(token, text) for token, text in texts if _is_word(text)]
    lines = ["a", "a a", *(f"a {text} a" for _, text in written)]
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    before, both, *found = tokenizer(lines, **options)["input_ids"]
    after = both[len(before) :]
    words = tuple(text for (token, text), line in zip(written, found, strict=True) if line == [*before, token, *after])
    if not words:
        raise InputError(
            f"{type(tokenizer).__name__} has no token that is a word of its own.\n"
            "Use another tokenizer, or a mitigation that needs none"
        )
    return words


def _is_word(text: str) -> bool:
    # Of spaces only " " is printable.
    return bool(text) and text.isprintable() and " " not in text
