"""`embed`: descriptor vectors of a corpus."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

import numpy as np

from copyscope.data.corpus import Corpus
from copyscope.detection.descriptors import Descriptor
from copyscope.engine import CacheOptions, Engine
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
    """Describe every readable image of a corpus; an image that cannot be read gets an `error` and no vector.

    A run killed at any moment and started again repeats at most the group of 128 images it was in and the batches its
    workers held, and gives the same bytes.

    Args:
        corpus: a Corpus, or what `Corpus.open` takes.
        descriptor: a part, the name of a protocol, or a descriptor spec.
        cache: folder of the cache; None = the user's.
        workers: threads that decode and describe; None = one a core.
        engine: who describes, a spec or an Engine; None = this process.
        progress: called with a label, the number done and the total.

    Returns:
        Vectors of the readable rows, and the corpus with sha256, size and error of each row.

    Raises:
        InputError: the corpus cannot be opened, or the cache cannot be written.
        PartError: there is no such descriptor.
        MissingExtra: its weights are not installed.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    descriptor = protocol(descriptor).load() if isinstance(descriptor, str) else descriptor
    work = vectors_work(descriptor, engine)
    filled, rows, vectors = compute(corpus, work, cache=cache, workers=workers, engine=engine, progress=progress)
    return Embeddings(filled, rows, vectors, str(descriptor), descriptor.fingerprint())


def vectors_work(descriptor: Descriptor, engine: Engine | str | None = None) -> Feature:
    """Feature of a descriptor's vectors.

    Args:
        descriptor: the part.
        engine: who will compute; its workers check that their weights are the same.
    """
    fingerprint = descriptor.fingerprint()
    return Feature(
        name=str(descriptor).partition("(")[0].replace(":", "."),
        key=f"{descriptor}\n{fingerprint}",
        dim=descriptor.dim,
        dtype=np.float32,
        function=descriptor.describe if engine is None else FingerprintCheck(descriptor, fingerprint),
        device=descriptor.device,
    )


def without_unreadable(described: Embeddings, work: Feature, **options: Unpack[CacheOptions]) -> Embeddings:
    """Embeddings without the images that cannot be read again for `work`; these have an error.

    The values that the work gives of the others are cached, so that no step reads them for it once more.

    Args:
        described: the embeddings.
        work: the feature.
        options: `cache`, `workers` and `progress` of `compute`.
    """
    filled, rows, _ = compute(described.corpus, work, rows=described.rows, **options)
    if len(rows) == len(described.rows):
        return described
    vectors = described.vectors[np.isin(described.rows, rows)]
    return dataclasses.replace(described, corpus=filled, rows=rows, vectors=vectors, cells=None)
