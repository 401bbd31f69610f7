"""In-memory cache of encoded captions and of latents of other images."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from copyscope.data.corpus import Corpus
from copyscope.errors import ImageError, InputError
from copyscope.imaging import images
from copyscope.machine import Progress

from .conditioning import Conditioning
from .models import Trainable


class TextEmbeddingCache:
    """In-memory cache of conditioning by caption, for `train`.

    Of captions that are in neither list, such as a mitigation makes anew at every draw, those used last are kept, up to
    an eighth of KEPT_BYTES.

    Args:
        model: what encodes.
        captions: encoded at once.
        others: kept like these once they come, all of them up to KEPT_BYTES.
        cache: keep any.
        progress: called with a label, the number done and the total.
    """

    def __init__(
        self,
        model: Trainable,
        captions: Iterable[str],
        others: Iterable[str] = (),
        *,
        cache: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self._model, own = model, set(captions)
        self._room = KEPT_BYTES if cache else 0
        self._own, self._made = _Kept(self._room, own.union(others)), _Kept(self._room // 8)
        self.keep(own, progress)

    def keep(self, captions: Iterable[str], progress: Progress | None = None) -> None:
        """Encode the captions that are not kept yet, as long as there is room: many at once take less time than few."""
        coming = set(captions)
        self._made.expect(coming)
        missing = sorted(caption for caption in coming if caption not in self._store(caption).found)
        for start in range(0, len(missing), 64):
            self._encoded([each for each in missing[start : start + 64] if not self._store(each).full])
            if progress:
                progress("encoding captions", min(start + 64, len(missing)), len(missing))

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """Conditioning of captions [n]."""
        if not self._room:
            return self._model.condition(captions)
        unique = dict.fromkeys(captions)
        # Taken before others are encoded, which may push them out.
        found = {each: self._store(each).use(each) for each in unique if each in self._store(each).found}
        found |= self._encoded([each for each in unique if each not in found])
        return Conditioning.join([found[each] for each in captions])

    def _store(self, caption: str) -> _Kept:
        return self._own if caption in self._own.needed else self._made

    def _encoded(self, captions: Sequence[str]) -> dict[str, Conditioning]:
        """The conditioning of each, kept where there is room."""
        if not captions:
            return {}
        told = self._model.condition(captions).to("cpu")
        found = {caption: told.take([row]) for row, caption in enumerate(captions)}
        for caption, one in found.items():
            self._store(caption).put(caption, one)
        return found


class _Kept:
    """Conditioning by caption, up to `room` bytes; then what was used longest ago makes way, if it is not `needed`."""

    def __init__(self, room: int, needed: Iterable[str] = ()) -> None:
        self.found: dict[str, Conditioning] = {}
        self._room, self._bytes = room, 0
        self.expect(set(needed))

    def expect(self, needed: set[str]) -> None:
        """From now on these are needed, and not those of before."""
        self.needed, self.full = needed, self._room == 0
        for caption in [each for each in self.found if each in needed]:
            self.use(caption)

    def use(self, caption: str) -> Conditioning:
        """That of a caption that is kept, which is thereby the one used last."""
        one = self.found[caption] = self.found.pop(caption)
        return one

    def put(self, caption: str, one: Conditioning) -> None:
        """Keeps one more, where there is room or can be."""
        size = one.text.nbytes
        while not self.full and self._bytes + size > self._room:
            oldest = next(iter(self.found), None)
            if oldest is None or oldest in self.needed:
                self.full = True
            else:
                self._bytes -= self.found.pop(oldest).text.nbytes
        if not self.full:
            self.found[caption] = one
            self._bytes += size


class FusionImages:
    """In-memory cache of images of another corpus and their captions, encoded when they are first drawn.

    The middle square of an image is taken. Latents and texts are kept up to KEPT_BYTES each.

    Args:
        corpus: the images.
        model: what encodes.
    """

    def __init__(self, corpus: Corpus, model: Trainable) -> None:
        self._corpus, self._model, self._texts = corpus, model, TextEmbeddingCache(model, [], corpus.prompts)
        self._latent = functools.lru_cache(KEPT_BYTES // (4 * math.prod(model.shape)))(self._encoded)

    def draw(self, rngs: Sequence[np.random.Generator]) -> tuple[Tensor, Conditioning]:
        """Draw an image for each generator [n], all equally likely: latents [n c h w] and conditioning [n].

        The next image is taken instead of one that cannot be read.

        Raises:
            InputError: none can be read.
        """
        rows, latents = zip(*map(self._drawn, rngs), strict=True)
        return torch.stack(latents), self._texts([self._corpus.prompts[row] for row in rows])

    def _drawn(self, rng: np.random.Generator) -> tuple[int, Tensor]:
        n = len(self._corpus)
        first = int(rng.integers(n))
        for row in itertools.chain(range(first, n), range(first)):
            if (latent := self._latent(row)) is not None:
                return row, latent
        raise InputError(f"None of the {n} images of {self._corpus.origin} can be read.\nName other images")

    def _encoded(self, row: int) -> Tensor | None:
        """Its latent, None if it cannot be read. One at a time, so that it is the same to the last bit at any time."""
        side = self._model.image_size
        try:
            picture = images.crop(images.resize_short(images.decode(self._corpus.read(row)), side), side)
        except ImageError:
            return None
        with torch.no_grad():
            return self._model.encode([picture])[0].float().cpu()


KEPT_BYTES = 2 * 2**30
"""Latents, pictures and text states are kept in memory up to this many bytes each, beyond it made anew at each step."""
