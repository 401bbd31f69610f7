"""Detect blank images: one colour to within noise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.compute import compute
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.fill import Feature
from copyscope.engine import CacheOptions
from copyscope.imaging import images
from copyscope.imaging.blank import is_blank, may_be_blank
from copyscope.machine import Progress

from .ncc import Verify

PIECE_ROWS = 65536
RULE = "cells within 3 + (12 + 8 noise) / side of the median, noise <= 5"
"""What `imaging.blank.is_blank` decides by: results are kept under it."""


def blank_rows(
    described: Embeddings,
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.bool_]:
    """Detect the blank images (`imaging.blank.is_blank`) among readable ones, bool [n]; cached by content.

    An image is decoded only if its thumbnail, which re-ranking needs anyway, leaves doubt: one in hundreds of
    photographs.

    Args:
        described: the images asked about.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.
    """
    options: CacheOptions = {"cache": cache, "workers": workers, "progress": progress}
    found = np.zeros(len(described.rows), bool)
    for start in range(0, len(found), PIECE_ROWS):
        rows = described.rows[start : start + PIECE_ROWS]
        thumbnails = Verify().thumbnails(described.corpus, rows, **options)
        found[start : start + len(rows)] = blank_among(described.corpus, rows, thumbnails, **options)
    return found


def without_rows(described: Embeddings, some: NDArray[np.bool_]) -> Embeddings:
    """Embeddings without some rows; `n_missing` then counts these too.

    Args:
        described: the embeddings [n].
        some: bool [n], rows to leave out.
    """
    if not some.any():
        return described
    return dataclasses.replace(described, rows=described.rows[~some], vectors=described.vectors[~some], cells=None)


def blank_among(
    corpus: Corpus, rows: NDArray[np.intp], thumbnails: NDArray[np.uint8], **options: Unpack[CacheOptions]
) -> NDArray[np.bool_]:
    """Detect the blank images as `blank_rows`, where thumbnails are at hand.

    Args:
        corpus: the images.
        rows: corpus rows [n].
        thumbnails: uint8 [n s s 3].
        options: `cache`, `workers` and `progress` of `compute`.
    """
    return blank_or_gone(corpus, rows, thumbnails, **options)[0]


def blank_or_gone(
    corpus: Corpus, rows: NDArray[np.intp], thumbnails: NDArray[np.uint8], **options: Unpack[CacheOptions]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """As `blank_among`; and which images cannot be read again, where the thumbnail left doubt.

    Args:
        corpus: the images.
        rows: corpus rows [n].
        thumbnails: uint8 [n s s 3].
        options: `cache`, `workers` and `progress` of `compute`.

    Returns:
        (blank, gone), bool [n] each.
    """
    blank, gone = np.zeros((2, len(rows)), bool)
    doubtful = np.flatnonzero(may_be_blank(thumbnails))
    if len(doubtful):
        work = Feature("blank", RULE, 1, np.uint8, _blank)
        _, readable, values = compute(corpus, work, rows=rows[doubtful], **options)
        blank[doubtful] = np.isin(rows[doubtful], readable[values[:, 0] > 0])
        gone[doubtful] = ~np.isin(rows[doubtful], readable)
    return blank, gone


def _blank(pictures: list[images.Image]) -> NDArray[np.uint8]:
    return np.array([[is_blank(picture)] for picture in pictures], np.uint8)
