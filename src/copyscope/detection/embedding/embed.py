"""`embed`: descriptor vectors of a corpus."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from copyscope.data.corpus import Corpus
from copyscope.detection.descriptors import Descriptor
from copyscope.engine import Engine
from copyscope.machine import Progress

from .compute import compute
from .embeddings import Embeddings
from .fill import Feature, FingerprintCheck
from .protocols import protocol


def embed(
    corpus: Corpus | str | Path,
    descriptor: Descriptor | str = "sscd-288",
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Describe every readable image of `corpus`; what cannot be read gets an `error` and no vector.

    corpus: a Corpus, or what `Corpus.open` takes. descriptor: a part, or the name of a protocol or a descriptor spec.
    cache: folder of the content store (None = the user's cache). workers: threads that decode and describe (None = one
    a core). A run killed at any moment and started again repeats at most the group of 128 images it was in and the
    batches its workers held, and gives the same bytes.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    descriptor = protocol(descriptor).load() if isinstance(descriptor, str) else descriptor
    work = vectors_work(descriptor, engine)
    filled, rows, vectors = compute(corpus, work, cache=cache, workers=workers, engine=engine, progress=progress)
    return Embeddings(filled, rows, vectors, str(descriptor), descriptor.fingerprint())


def vectors_work(descriptor: Descriptor, engine: Engine | str | None = None) -> Feature:
    """What describes images. engine: who will; its workers check that their weights are the same."""
    fingerprint = descriptor.fingerprint()
    return Feature(
        name=str(descriptor).partition("(")[0].replace(":", "."),
        key=f"{descriptor}\n{fingerprint}",
        dim=descriptor.dim,
        dtype=np.float32,
        function=descriptor.describe if engine is None else FingerprintCheck(descriptor, fingerprint),
        device=descriptor.device,
    )


def without_unreadable(described: Embeddings, work: Feature, **options: Any) -> Embeddings:
    """The embeddings without images that cannot be read again for `work`: these have an error, as if they could never
    be read. What the work makes of the others is kept by content, so that no step reads them for it once more.

    options: `cache`, `workers` and `progress` of `compute`.
    """
    filled, rows, _ = compute(described.corpus, work, rows=described.rows, **options)
    if len(rows) == len(described.rows):
        return described
    vectors = described.vectors[np.isin(described.rows, rows)]
    return dataclasses.replace(described, corpus=filled, rows=rows, vectors=vectors, cells=None)
