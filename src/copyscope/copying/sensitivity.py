"""Planted copies: altered training images matched as generated images are, to measure how many copies would be seen.

A model that copies nothing and a verdict that sees nothing look alike. What tells them apart is how many of the copies
that were planted are called copies, at the line that the verdict used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from copyscope import images
from copyscope.assets import cache_folder
from copyscope.corpus import Corpus
from copyscope.errors import ImageError, InputError
from copyscope.files import told, write_file
from copyscope.images import Image
from copyscope.machine import cores

from .alterations import KINDS, VERSION, alter
from .answer import MUST_SEE
from .blank import blank_rows
from .causes import representatives
from .descriptors import Descriptor
from .duplicates import Groups
from .embed import Embeddings, embed
from .match import Matches, match
from .part_search import PartSearch
from .registration import Register
from .verify import Verify

GROUPS = 200
"""So many training groups get a planted copy of each kind in MUST_SEE, unless told otherwise."""
LEAST = 60
"""Small training sets get several planted copies an image, until there are so many of a kind."""
QUALITY = 95
AT_ONCE = 64
"""Training images that are held in memory while copies of them are made."""


def planted_copies(
    train: Embeddings,
    groups: Groups,
    descriptor: Descriptor,
    verify: Verify,
    *,
    n_groups: int = GROUPS,
    register: Register | None = None,
    parts: PartSearch | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int | None = None,
    **options: Any,
) -> dict[str, Matches]:
    """Matches of altered training images against the training set, by kind of alteration (`alterations.KINDS`).

    Copies are made of one image a near-duplicate group, and take the same way as generated images. What is known of
    them is kept in the cache by the content of the training images: the next audit of the same set makes none.

    Args:
        train: the training images.
        groups: their near-duplicate groups.
        descriptor: what describes them; that of `train`.
        verify: the pixel comparison of the audit.
        register: the fine registration of the audit; None = pairs are not registered.
        parts: looks for the training images in parts of the copies too.
        n_groups: how many training groups to draw at most, at least 1. Kinds outside MUST_SEE get half as many.
        seed: of the sample and of the alterations, at least 0.
        cache: folder of the content store; None = the user's cache.
        workers: threads; None = one a core.
        options: `engine` and `progress` of `match`.

    Raises:
        InputError: n_groups is below 1, or no training image of the sample can be read.
    """
    if n_groups < 1:
        raise InputError(f"Sensitivity needs at least one training group, not {n_groups}.\nLeave it out with 0")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 5]))
    sample = np.sort(rng.permutation(representatives(groups))[:n_groups])
    some = dataclasses.replace(train, rows=train.rows[sample], vectors=train.vectors[sample], cells=None)
    progress = options.get("progress")
    # A blank picture has no copies.
    blank = blank_rows(some, cache=cache, workers=workers, progress=progress)
    corpus = train.corpus.take(some.rows[~blank])
    if not len(corpus):
        return {}
    facts = (VERSION, LEAST, seed, n_groups, str(descriptor), descriptor.fingerprint(), str(verify), str(register))
    key = hashlib.sha256(repr((facts, corpus.table["sha256"].to_pylist())).encode()).hexdigest()[:24]
    compared_by: list[Verify | Register] = [verify, register] if register else [verify]
    root = cache_folder(cache)
    file = root / "planted" / f"{key}.parquet"
    if not file.is_file() or (parts and not parts.knows(_described(pq.read_table(file), train, corpus.origin))):
        made = _made(corpus, descriptor, compared_by, seed, parts, workers, progress)
        with told(root):
            write_file(file, lambda path: pq.write_table(made, path))
    table = pq.read_table(file)
    found = {}
    for kind in KINDS:
        rows = table.filter(pa.compute.equal(table["kind"], kind))
        thumbnails = {
            each.size: np.frombuffer(b"".join(rows[f"thumbnail_{each.size}"].to_pylist()), np.uint8).reshape(
                len(rows), each.size, each.size, 3
            )
            for each in compared_by
        }
        if len(rows):
            found[kind] = match(
                _described(rows, train, f"{kind} copies of {corpus.origin}"),
                train,
                verify,
                labels=groups.label,
                register=register,
                thumbnails=thumbnails,
                parts=parts,
                cache=cache,
                workers=workers,
                **options,
            )
    return found


def _described(table: pa.Table, train: Embeddings, origin: str) -> Embeddings:
    """Planted copies as generated images are; their files are gone."""
    vectors = np.array(table["vector"].to_pylist(), np.float32).reshape(len(table), -1)
    corpus = Corpus(table, origin, "planted").settled()
    return Embeddings(corpus, np.arange(len(table)), vectors, train.descriptor, train.fingerprint)


def _made(
    corpus: Corpus,
    descriptor: Descriptor,
    compared_by: Sequence[Verify | Register],
    seed: int,
    parts: PartSearch | None,
    workers: int | None,
    progress: Any,
) -> pa.Table:
    """Planted copies of the images of a corpus: its columns, `kind`, `source`, `vector`, a `thumbnail_SIZE` each."""
    with tempfile.TemporaryDirectory(prefix="copyscope-planted-") as folder:
        # Described by a cache of their own, which goes with them: nobody else will ask for these pictures.
        settings: dict[str, Any] = {"cache": Path(folder) / "cache", "workers": workers, "progress": progress}
        file = Path(folder) / "planted.parquet"
        schema = pa.schema({"id": pa.string(), "kind": pa.string(), "source": pa.string(), "image": pa.binary()})
        with pq.ParquetWriter(file, schema) as writer:
            for piece in _pictures(corpus, seed, workers):
                writer.write_table(pa.Table.from_pylist(piece, schema))
        described = embed(Corpus.open(file), descriptor, **settings)
        thumbnails = {each.size: each.thumbnails(described.corpus, described.rows, **settings) for each in compared_by}
        if parts:
            parts(described)  # kept by content for the match to come
    if not len(described.rows):
        raise InputError(f"No image of {corpus.origin} can be read again.\nMake it readable, or take --sensitivity 0")
    table = described.corpus.take(described.rows).table
    table = table.append_column("vector", pa.array(list(described.vectors), pa.list_(pa.float32())))
    for size, each in thumbnails.items():
        column = pa.array([thumbnail.tobytes() for thumbnail in each], pa.binary())
        table = table.append_column(f"thumbnail_{size}", column)
    return table


def _pictures(corpus: Corpus, seed: int, workers: int | None) -> Iterator[list[dict[str, Any]]]:
    """Planted copies of the images of a corpus, as JPEG of QUALITY, a batch of images at a time."""
    n = len(corpus)
    rounds = -(-LEAST // n)
    # Of the kinds that need not be seen every second image is enough, where there are many.
    every = 2 if n > LEAST else 1

    def copies(task: tuple[int, bytes, bytes]) -> list[dict[str, Any]]:
        row, content, other = task
        image, background = _decoded(content), _decoded(other)
        if image is None:  # gone or changed since it was described
            return []
        found = []
        for number, kind in enumerate(KINDS):
            if (kind not in MUST_SEE and row % every) or (kind == "part" and background is None):
                continue
            for turn in range(rounds):
                rng = np.random.default_rng(np.random.SeedSequence([seed, 6, row, number, turn]))
                picture = images.encode(
                    alter(image, kind, rng, image if background is None else background), "jpeg", QUALITY
                )
                name = corpus.id_of(row)
                found.append({"id": f"{kind}/{turn}/{name}", "kind": kind, "source": name, "image": picture})
        return found

    with ThreadPoolExecutor(workers or cores()) as pool:
        for start in range(0, n, AT_ONCE):
            batch = [
                (row, content)
                for row, content in corpus.stream(range(start, min(start + AT_ONCE, n)))
                if isinstance(content, bytes)
            ]
            # The picture that a part is set into is the next one of the sample.
            tasks = [(row, content, batch[place - 1][1]) for place, (row, content) in enumerate(batch)]
            yield [each for found in pool.map(copies, tasks) for each in found]


def _decoded(content: bytes) -> Image | None:
    try:
        return images.decode(content)
    except ImageError:
        return None
