"""Compute values of every image of a corpus: cached by content, resumable at any moment."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.engine import Engine, open_engine
from copyscope.errors import CopyscopeError
from copyscope.files import cache_errors
from copyscope.machine import Progress, cores

from .batches import fill_by_engine
from .cache import ContentStore, DamagedRows
from .fill import Feature, fill
from .image_status import ImageStatus

LOT = 1_000_000


def compute(
    corpus: Corpus,
    work: Feature,
    *,
    rows: NDArray[np.intp] | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> tuple[Corpus, NDArray[np.intp], NDArray[Any]]:
    """Compute one feature of images: cached by content, resumable at any moment.

    Files are read once in storage order; those whose content the store knows are not decoded, and those whose sha256
    the corpus already carries are not even read.

    Args:
        corpus: the images.
        work: the feature; with an engine it must be picklable.
        rows: which images; None = all.
        cache: folder of the cache; None = the user's.
        workers: threads that decode and compute; None = one a core.
        engine: who computes; None = this process.
        progress: called with a label, the number done and the total.

    Returns:
        (corpus with its columns filled, readable rows [n], values [n dim]).

    Raises:
        CopyscopeError: the cache changes or breaks faster than it can be read.
    """
    store = work.store(cache)
    chosen = np.arange(len(corpus)) if rows is None else np.asarray(rows, dtype=np.intp)
    ledger = ImageStatus(corpus)
    missing = chosen[(ledger.places(store, chosen) < 0) & ~ledger.failed(chosen)]
    while True:
        if len(missing):
            _make(corpus, missing, [work], [store], ledger, workers, engine, progress)
        good = chosen[~ledger.failed(chosen)]
        store.refresh()
        found = ledger.places(store, good)
        if (found < 0).any():
            raise CopyscopeError(f"The cache {store.folder} was cleared while it was in use.\nRun the command again")
        missing = good[:0]
        try:
            values = store.values(found)
            break
        except FileNotFoundError:  # another process compacted the store just now: look again
            continue
        except DamagedRows as rotten:
            with cache_errors(store.folder):
                store.mend(rotten.rows)
            missing = good[ledger.places(store, good) < 0]
    ledger.widths[good], ledger.heights[good] = store.sizes(found)
    return ledger.filled(), good, values


def compute_ahead(
    corpus: Corpus,
    works: Sequence[Feature],
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Compute several things of every image in one pass, so that each file is read and decoded once.

    All is kept in the cache: `compute` of one of the works, on the corpus that is given back, then opens no file.

    Args:
        corpus: the images.
        works: what to compute; an image on which the first fails is an error.
        cache: folder of the cache; None = the user's.
        workers: threads that decode and compute; None = one a core.
        engine: who computes; the works must then be picklable. None = this process.
        progress: called with a label, the number done and the total.

    Returns:
        The corpus with `sha256` and `error` filled.
    """
    stores = [work.store(cache) for work in works]
    ledger, every = ImageStatus(corpus), np.arange(len(corpus))
    lacking = np.any([ledger.places(store, every) < 0 for store in stores], axis=0)
    missing = every[lacking & ~ledger.failed(every)]
    if len(missing):
        _make(corpus, missing, works, stores, ledger, workers, engine, progress)
    return ledger.filled()


def _make(
    corpus: Corpus,
    rows: NDArray[np.intp],
    works: Sequence[Feature],
    stores: Sequence[ContentStore],
    ledger: ImageStatus,
    workers: int | None,
    engine: Engine | str | None,
    progress: Progress | None,
) -> None:
    """Read `rows` and put into each store what it lacks."""
    if engine is None:
        for start in range(0, len(rows), LOT):
            onward = functools.partial(_onward, progress, start, len(rows)) if progress else None
            fill(corpus, rows[start : start + LOT], works, stores, ledger, workers or cores(), onward)
            # What a store has need not be remembered.
            for store in stores:
                store.refresh()
    else:
        fill_by_engine(open_engine(engine), corpus, rows, works, stores, ledger, progress)
    for store in stores:
        with cache_errors(store.folder):
            store.compact()


def _onward(progress: Progress, before: int, total: int, label: str, done: int, _: int) -> None:
    """Progress of one lot of rows, as that of all."""
    progress(label, before + done, total)
