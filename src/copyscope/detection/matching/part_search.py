"""Find training images inside parts of pictures: sample grids, collages, insets.

The index looks at nine windows of a picture, a run of the descriptor each; an audit looks at many more pictures, and so
it looks by pixels first. Every training image, shrunk to SIDE x SIDE pixels, is laid over every place of the picture at
several sizes (template matching by normalised correlation; Lewis 1995), in one matrix product. The few that fit best
are looked for at a higher resolution, and the descriptor is run once, on the part that fits best of all.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import threading
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from copyscope.detection.descriptors import Descriptor
from copyscope.detection.embedding.compute import compute
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.fill import Feature
from copyscope.detection.search.exact import one_blas_thread
from copyscope.engine import CacheOptions
from copyscope.errors import InputError
from copyscope.files import cache_folder
from copyscope.imaging import images
from copyscope.imaging.images import Image
from copyscope.machine import Progress

from .match import combine
from .ncc import Verify
from .partial_copies import CORE, places
from .templates import inverse_norms, shrinking, summed_areas, unit_templates
from .windows import canvases

VERSION = 1
"""Changes whenever the search finds other parts, so that nothing cached of the old ones is used."""
SIDE = 6
"""Training images are shrunk to so many pixels a side to be laid over every place of a picture."""
COARSE = (18, 15, 12, 10, 9)
"""The picture's shorter side in those pixels: a training image then fills 1/3, .4, 1/2, .6 or 2/3 of it."""
SHARES = (0.33, 0.36, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
"""Sides of the training images that are laid over the picture at the higher resolution, as shares of its shorter."""
CANDIDATES = 8
CANVAS = 64
"""The picture's shorter side in pixels then. The longer is at most LONGEST; longer pictures are squeezed."""
LONGEST = 128
SQUARE = 1.1
"""Training images longer than so many times their height, or the reverse, are looked for squeezed to a square too."""
MOST = 20_000
"""Training images up to which parts are searched unless asked for."""
WISHES = ("auto", "on", "off")
STRANGERS = 32
"""Training images that tell what a template correlates by chance."""
BLOCK = 4096
NOTHING = -np.inf
VALUES = 7


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """The part of each picture [n] that is most like a training image.

    Attributes:
        similarity: float32 [n], of the descriptor, of the part and the training image; 0 where nothing fits.
        verified: float32 [n], pixel score of the two in [-1, 1].
        match: int64 [n], position among the readable training images; -1 where nothing fits at all.
        box: float32 [n 4], the part: x, y, width, height as shares of the picture.
    """

    similarity: NDArray[np.float32]
    verified: NDArray[np.float32]
    match: NDArray[np.int64]
    box: NDArray[np.float32]

    @property
    def score(self) -> NDArray[np.float32]:
        """Score that a verdict weighs [n]: both scores combined as of whole pictures; -1 where nothing fits."""
        return np.where(self.match < 0, np.float32(-1), combine(self.similarity, self.verified))


@dataclasses.dataclass(eq=False)
class PartSearch:
    """Looks for the training images in parts of pictures. What was found is kept in the cache by content.

    Attributes:
        train: the training images.
        descriptor: what described them.
        verify: whose thumbnails are laid over the pictures.
        labels: int64 [N], groups of the training images; those of a picture's own group do not count, if it is a
            training image itself. None = all count.
        cache: folder of the content store; None = the user's cache.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.
    """

    train: Embeddings
    descriptor: Descriptor
    verify: Verify
    labels: NDArray[np.int64] | None = None
    cache: str | Path | None = None
    workers: int | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._prepared: _Templates | None = None

    def __call__(self, queries: Embeddings) -> Parts:
        """Best part of every readable query; pictures that are gone by now have none."""
        with one_blas_thread():
            _, found, values = compute(queries.corpus, self.work, rows=queries.rows, **self._options)
        whole = np.zeros((len(queries.rows), VALUES), np.float32)
        whole[:, 1:3] = -1
        whole[np.isin(queries.rows, found)] = values
        return Parts(whole[:, 0], whole[:, 1], np.rint(whole[:, 2]).astype(np.int64), whole[:, 3:])

    @classmethod
    def for_audit(
        cls, wish: str, train: Embeddings, descriptor: Descriptor, verify: Verify, **options: Unpack[CacheOptions]
    ) -> tuple[PartSearch | None, str]:
        """Part search of an audit, or None where it is left out, and why.

        Args:
            wish: "on", "off", or "auto": on up to MOST training images. Each is laid over each picture, so that the
                time grows with their number.
            train: the training images.
            descriptor: what described them.
            verify: whose thumbnails are laid over the pictures.
            options: `cache`, `workers` and `progress`.

        Returns:
            (the search or None, why).

        Raises:
            InputError: the wish is none of the three.
        """
        n = len(train.rows)
        if wish not in WISHES:
            raise InputError(f"parts is one of {', '.join(WISHES)}, not {wish!r}.\nThe default is 'auto'")
        if wish == "off":
            return None, "Parts of pictures were not looked at, as asked."
        if wish == "auto" and n > MOST:
            return None, (
                f"Parts of pictures were not looked at: {n:,} training images are more than {MOST:,}. "
                "Ask for it with --parts on, or make an index, which looks at parts."
            )
        return cls(train, descriptor, verify, **options), f"Each of the {n:,} training images was looked for in parts."

    @property
    def work(self) -> Feature:
        """Feature of a picture's best part: similarity, pixel score, position of the training image, box."""
        digest = hashlib.sha256()
        digest.update("".join(self.train.corpus.pick("sha256", self.train.rows).to_pylist()).encode())
        digest.update(b"" if self.labels is None else self.labels.astype("<i8").tobytes())
        facts = (VERSION, self.train.descriptor, self.train.fingerprint, str(self.verify), digest.hexdigest())
        return Feature("parts", repr(facts), VALUES, np.float32, self._look, folder=cache_folder(self.cache))

    @property
    def _options(self) -> dict[str, Any]:
        return {"cache": self.cache, "workers": self.workers, "progress": self.progress}

    def _look(self, pictures: list[Image]) -> NDArray[np.float32]:
        with self._lock:  # made when the first picture that the cache does not know is looked at
            if self._prepared is None:
                self._prepared = _Templates.of(self)
        prepared = self._prepared
        found = np.zeros((len(pictures), VALUES), np.float32)
        found[:, 1:3] = -1
        parts, rows = [], []
        for row, picture in enumerate(pictures):
            small = _canvas(picture)
            best = prepared.candidates(prepared.best(small), self._excluded(picture, prepared))
            if not len(best):
                continue
            scores, where, fit = _fit(small, prepared.pixels(best))
            at = int(fit.argmax())
            box = _box(where[at], small.shape)
            found[row, 1:] = (scores[at], prepared.owner[best[at]], *box)
            part = _cut(picture, box)
            parts.append(np.ascontiguousarray(part[:, ::-1]) if where[at, 3] else part)
            rows.append(row)
        if rows:
            theirs = np.asarray(self.train.vectors[found[rows, 2].astype(np.int64)])
            found[rows, 0] = np.einsum("nd,nd->n", self.descriptor.describe(parts), theirs)
        return found

    def _excluded(self, picture: Image, prepared: _Templates) -> NDArray[np.bool_] | None:
        """Training images [N] that do not count for a picture: the groups of those that look as it does."""
        if self.labels is None:
            return None
        own = prepared.by_pixels.get(self.verify.shrink([picture])[0].tobytes(), [])
        return np.isin(self.labels, self.labels[own])


@dataclasses.dataclass(frozen=True, eq=False)
class _Templates:
    """Training images [N] as they are laid over pictures.

    The central square and, of oblong ones, the whole squeezed to a square.

    Attributes:
        squares: uint8 [N s s 3].
        squeezed: uint8 [M s s 3].
        owner: int64 [N + M], the training image of each template.
        even: float32 [N + M, d], half of the unit template that stays when mirrored.
        odd: float32 [N + M, d], half that changes sign.
        chance: float32 [N + M], what each template correlates at best with pictures that do not show it: a smooth one
            fits everywhere.
    """

    squares: NDArray[np.uint8]
    squeezed: NDArray[np.uint8]
    owner: NDArray[np.int64]
    even: NDArray[np.float32]
    odd: NDArray[np.float32]
    chance: NDArray[np.float32]

    @functools.cached_property
    def by_pixels(self) -> dict[bytes, list[int]]:
        """Training images by the bytes of their squares."""
        found: dict[bytes, list[int]] = {}
        for row, square in enumerate(self.squares):
            found.setdefault(square.tobytes(), []).append(row)
        return found

    @classmethod
    def of(cls, search: PartSearch) -> _Templates:
        train, size = search.train, search.verify.size
        squares = search.verify.thumbnails(train.corpus, train.rows, **search._options)
        width, height = (train.corpus.table[name].to_numpy()[train.rows] for name in ("width", "height"))
        oblong = np.flatnonzero(np.maximum(width, height) > SQUARE * np.minimum(width, height))
        squeezed = np.zeros((len(oblong), size, size, 3), np.uint8)
        if len(oblong):
            fitted = canvases(train.corpus, train.rows[oblong], **search._options)
            for at, (row, picture) in enumerate(zip(oblong, fitted, strict=True)):
                shares = np.array([height[row], width[row]]) / max(height[row], width[row])
                rows, columns = np.maximum(np.rint(shares * len(picture)), 1).astype(int)
                squeezed[at] = images.resize(picture[:rows, :columns], (size, size))
        owner = np.concatenate([np.arange(len(squares)), oblong]).astype(np.int64)
        shrink = shrinking(size, SIDE)
        halves = []
        for start in range(0, len(owner), BLOCK):
            some = _rows(squares, squeezed, np.arange(start, min(start + BLOCK, len(owner))))
            small = shrink @ some.astype(np.float32).transpose(0, 3, 1, 2) @ shrink.T
            halves.append(_halves(unit_templates(np.asarray(small, np.float32))))
        even, odd = (np.concatenate(each) for each in zip(*halves, strict=True))
        plain = cls(squares, squeezed, owner, even, odd, np.zeros(len(owner), np.float32))
        some = squares[np.linspace(0, len(squares) - 1, min(STRANGERS, len(squares))).round().astype(int)]
        by_chance = np.median([plain.best(picture) for picture in some], axis=0)
        return dataclasses.replace(plain, chance=np.minimum(by_chance, np.float32(0.99)))

    def pixels(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Pictures uint8 [k s s 3] of some templates."""
        return _rows(self.squares, self.squeezed, rows)

    def best(self, picture: Image) -> NDArray[np.float32]:
        """Correlation of every template [N + M] where it fits best in a picture [h w 3], at least 0."""
        even, odd = _halves(_unit_windows(picture))
        best = np.empty(len(self.owner), np.float32)
        for start in range(0, len(best), BLOCK):
            piece = slice(start, start + BLOCK)
            # The score of the mirrored template is even - odd.
            score, turned = even @ self.even[piece].T, odd @ self.odd[piece].T
            score += np.abs(turned, out=turned)
            best[piece] = score.max(axis=0, initial=0)
        return best

    def candidates(self, best: NDArray[np.float32], excluded: NDArray[np.bool_] | None) -> NDArray[np.intp]:
        """Templates of the CANDIDATES training images [N] that stand out most anywhere in a picture, the best first.

        What counts is how much of what chance leaves unexplained the template explains.

        Args:
            best: of every template [N + M] in the picture, as the method of that name gives it.
            excluded: training images [N] that do not count; None = all do.
        """
        best = np.where(best > 0, 1 - (1 - best) / (1 - self.chance), NOTHING)
        if excluded is not None:
            best[excluded[self.owner]] = NOTHING
        few = min(2 * CANDIDATES, len(best))
        found = np.flatnonzero((best >= np.partition(best, -few)[-few]) & (best > NOTHING))
        found = found[np.argsort(-best[found], kind="stable")]
        _, first = np.unique(self.owner[found], return_index=True)
        chosen: NDArray[np.intp] = found[np.sort(first)][:CANDIDATES]
        return chosen


def _rows(squares: NDArray[np.uint8], squeezed: NDArray[np.uint8], rows: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Rows [k] of two arrays as if one were laid below the other."""
    found = np.empty((len(rows), *squares.shape[1:]), np.uint8)
    later = rows >= len(squares)
    found[~later], found[later] = squares[rows[~later]], squeezed[rows[later] - len(squares)]
    return found


def _halves(templates: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Templates [n 3 s s] as two vectors [n d]: what stays, and what changes sign, when they are mirrored."""
    left, right = templates[..., : SIDE // 2], templates[..., ::-1][..., : SIDE // 2]
    half = np.float32(0.5**0.5)
    even, odd = (half * each for each in (left + right, left - right))
    return even.reshape(len(templates), -1), odd.reshape(len(templates), -1)


def _unit_windows(picture: Image) -> NDArray[np.float32]:
    """All places of a picture at all sizes, as unit templates [p 3 SIDE SIDE]."""
    found = []
    for shorter in COARSE:
        rows, columns = (max(SIDE, round(side * shorter / min(picture.shape[:2]))) for side in picture.shape[:2])
        down, across = (shrinking(old, new) for old, new in zip(picture.shape[:2], (rows, columns), strict=True))
        planes = np.asarray(down @ picture.astype(np.float32).transpose(2, 0, 1) @ across.T, np.float32)
        windows = sliding_window_view(planes, (SIDE, SIDE), axis=(1, 2)).transpose(1, 2, 0, 3, 4)
        centred = windows - windows.mean(axis=(3, 4), keepdims=True)
        norms = inverse_norms(summed_areas(planes[None]), SIDE)[0]
        found.append((centred * norms[:, :, None, None, None]).reshape(-1, 3, SIDE, SIDE))
    return np.concatenate(found)


def _canvas(picture: Image) -> Image:
    """A picture [h w 3] with its shorter side at CANVAS pixels, the longer at LONGEST at most."""
    shorter = min(picture.shape[:2])
    height, width = (min(LONGEST, max(CANVAS, round(side * CANVAS / shorter))) for side in picture.shape[:2])
    return images.resize(picture, (height, width))


def _fit(
    picture: Image, references: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Fit references into a picture where they fit best.

    Args:
        picture: uint8 [h w 3].
        references: uint8 [k s s 3].

    Returns:
        Scores [k]; places [k 4] as `partial_copies.places` gives them; and what decides between the references [k]:
        smooth pictures correlate by chance, their edges do not.
    """
    scores, where = places(picture, references, SHARES)
    return scores, where, scores + _detail(picture, references, where)


def _detail(picture: Image, references: NDArray[np.uint8], where: NDArray[np.int64]) -> NDArray[np.float32]:
    """Correlations [k] of the edges of references [k s s 3] and of the picture where they fit best, to a pixel."""
    size = references.shape[1]
    margin = round(size * (1 - CORE) / 2)
    padded = np.pad(picture.astype(np.float32).transpose(2, 0, 1), ((0, 0), (1, 1), (1, 1)), mode="edge")
    found = np.empty(len(where), np.float32)
    for at, (left, top, side, mirrored) in enumerate(where.tolist()):
        core = references[at, margin : size - margin, margin : size - margin].astype(np.float32).transpose(2, 0, 1)
        shrink = shrinking(core.shape[-1], side)
        template = _edges(np.asarray(shrink @ core @ shrink.T, np.float32))[..., :: -1 if mirrored else 1]
        # Of a mirrored picture the differences from left to right change sign.
        template = np.stack([template[0], -template[1] if mirrored else template[1]])
        around = _edges(padded[:, top : top + side + 2, left : left + side + 2])
        windows = sliding_window_view(around, template.shape[2:], axis=(2, 3))
        norms = np.sqrt(np.einsum("dcyxij,dcyxij->yx", windows, windows) * np.square(template).sum())
        products = np.einsum("dcyxij,dcij->yx", windows, template)
        found[at] = (products / np.maximum(norms, 1)).max()
    return found


def _edges(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Differences downwards and to the right [2 c h-1 w-1] of planes [c h w]."""
    return np.stack([np.diff(planes, axis=1)[:, :, :-1], np.diff(planes, axis=2)[:, :-1, :]])


def _box(place: NDArray[np.int64], shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """x, y, width, height in shares of the picture of left, top and side of a core in pixels of a canvas."""
    margin = place[2] * (1 / CORE - 1) / 2
    left, top = max(place[0] - margin, 0.0), max(place[1] - margin, 0.0)
    right, bottom = min(place[0] + place[2] + margin, shape[1]), min(place[1] + place[2] + margin, shape[0])
    return left / shape[1], top / shape[0], (right - left) / shape[1], (bottom - top) / shape[0]


def _cut(picture: Image, box: tuple[float, float, float, float]) -> Image:
    """The part of a picture [h w 3] in a box; at least one pixel."""
    (height, width), (x, y, w, h) = picture.shape[:2], box
    left, top = min(round(x * width), width - 1), min(round(y * height), height - 1)
    right, bottom = max(left + 1, round((x + w) * width)), max(top + 1, round((y + h) * height))
    return np.ascontiguousarray(picture[top:bottom, left:right])
