"""Sensitivity: share of planted copies that the verdict would see.

A model that copies nothing and a verdict that sees nothing look alike. What tells them apart is how many of the copies
that were planted are called copies, at the line that the verdict used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.data.parquet_pages import read_table
from copyscope.detection.dedup.groups import Groups, representatives
from copyscope.detection.descriptors import Descriptor
from copyscope.detection.embedding.compute import compute_ahead
from copyscope.detection.embedding.embed import embed, vectors_work
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching.blank import blank_rows
from copyscope.detection.matching.edges import Edges
from copyscope.detection.matching.match import Matches, match
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.part_search import PartSearch
from copyscope.detection.matching.registration import Register
from copyscope.detection.search.exact import one_blas_thread
from copyscope.engine import Engine
from copyscope.errors import ImageError, InputError
from copyscope.files import cache_errors, cache_folder, write_file, write_parquet
from copyscope.imaging import images
from copyscope.imaging.images import Image
from copyscope.machine import Progress, cores

from .alterations import KINDS, LONGEST, VERSION, alter
from .answer import MUST_SEE

GROUPS = 200
"""Copies are planted of so many training groups, unless told otherwise."""
SHARE = 0.6
"""So many of the groups get a copy of each kind in MUST_SEE; the other kinds take turns."""
LEAST = 50
"""Of up to so many groups, each gets a copy of every kind, and where these are all groups there are, several until
there are so many of a kind. Several copies of a few groups out of many would say nothing of the others."""
QUALITY = 95
AT_ONCE = 64
"""Training images that are held in memory while copies of them are made."""


@dataclasses.dataclass(frozen=True)
class PlantedCopies:
    """What is known of the planted copies of one kind.

    Attributes:
        sources: id of the training image that each is of [a].
        matches: id of the training image that each is most like [a].
        evidence: float32 [a d], as `Matches.evidence`.
        pixels: float32 [a], as `Matches.pixels`.
    """

    sources: list[str]
    matches: list[str]
    evidence: NDArray[np.float32]
    pixels: NDArray[np.float32]


def planted_copies(
    train: Embeddings,
    groups: Groups,
    descriptor: Descriptor,
    verify: Verify,
    *,
    n_groups: int = GROUPS,
    register: Register | None = None,
    edges: Edges | None = None,
    parts: PartSearch | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    engine: Engine | str | None = None,
) -> dict[str, PlantedCopies]:
    """Match altered training images against the training set, by kind of alteration (`alterations.KINDS`).

    Copies are made of one image a near-duplicate group, and take the same way as generated images. What is found is
    kept in the cache by the content of the training images: the next audit of the same set makes and compares none.

    Args:
        train: the training images.
        groups: their near-duplicate groups.
        descriptor: what describes them; that of `train`.
        verify: the pixel comparison of the audit.
        n_groups: how many training groups to draw at most, at least 1.
        register: the fine registration of the audit; None = pairs are not registered.
        edges: the comparison of edges of the audit; None = there is none.
        parts: looks for the training images in parts of the copies too.
        seed: of the sample and of the alterations, at least 0.
        cache: folder of the content store; None = the user's cache.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.
        engine: who searches, as in `match`.

    Raises:
        InputError: n_groups is below 1, or no training image of the sample can be read.
    """
    if n_groups < 1:
        raise InputError(f"Sensitivity needs at least one training group, not {n_groups}.\nLeave it out with 0")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 5]))
    every = representatives(groups)
    sample = np.sort(rng.permutation(every)[:n_groups])
    some = dataclasses.replace(train, rows=train.rows[sample], vectors=train.vectors[sample], cells=None)
    settings: dict[str, Any] = {"workers": workers, "progress": progress}
    # A blank picture has no copies.
    corpus = train.corpus.take(some.rows[~blank_rows(some, cache=cache, **settings)])
    if not len(corpus):
        return {}
    rounds = -(-LEAST // len(corpus)) if len(sample) == len(every) else 1
    by = str(verify), str(register), str(edges), parts.work.key if parts else ""
    looks = (str(descriptor), descriptor.fingerprint(), *by)
    facts = (VERSION, SHARE, LEAST, rounds, seed, n_groups, *looks, corpus.ids, _content(train))
    root = cache_folder(cache)
    file = root / "planted" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.parquet"
    if not _is_whole(file):
        with tempfile.TemporaryDirectory(prefix="copyscope-planted-") as folder:
            planted = Path(folder) / "planted.parquet"
            n = 0
            with pq.ParquetWriter(planted, PLANTED) as writer:
                for piece in _pictures(corpus, seed, rounds, workers):
                    writer.write_table(pa.Table.from_pylist(piece, PLANTED))
                    n += len(piece)
            if not n:
                raise InputError(
                    f"No image of {corpus.origin} can be read again.\n"
                    "Make it readable, or take --sensitivity 0 (in Python: sensitivity=0)"
                )
            # Described by a cache of their own, which goes with them: nobody else will ask for these pictures.
            own: dict[str, Any] = settings | {"cache": Path(folder) / "cache"}
            works = [vectors_work(descriptor), *(each.work() for each in (verify, register) if each is not None)]
            works += [parts.work] if parts else []
            with one_blas_thread():
                described = embed(compute_ahead(Corpus.open(planted), works, **own), descriptor, **own)
            thumbnails = {
                each.size: each.thumbnails(described.corpus, described.rows, **own)
                for each in (verify, register)
                if each is not None
            }
            more: dict[str, Any] = settings | {"cache": cache, "engine": engine, "labels": groups.label}
            more |= {"register": register, "edges": edges, "parts": parts}
            found = match(described, train, verify, thumbnails=thumbnails, **more)
        with cache_errors(root):
            write_file(file, lambda path: write_parquet(_table(found), path))
    table = read_table(file)
    return {kind: _of_kind(table, kind) for kind in KINDS if kind in table["kind"].to_pylist()}


PLANTED = pa.schema({"id": pa.string(), "kind": pa.string(), "source": pa.string(), "image": pa.binary()})


def _is_whole(file: Path) -> bool:
    """Whether the table is there and can be read; a damaged one is made again."""
    if not file.is_file():
        return False
    try:
        read_table(file)
    except InputError:
        return False
    return True


def _content(train: Embeddings) -> str:
    """Digest of the contents of the training images, in their order."""
    digest = hashlib.sha256()
    for chunk in train.corpus.table["sha256"].chunks:
        digest.update("\n".join(each or "" for each in chunk.to_pylist()).encode())
    return digest.hexdigest()


def _table(found: Matches) -> pa.Table:
    """One row a planted copy: kind, source, match, evidence, pixels."""
    queries, references = found.queries, found.references
    return pa.table(
        {
            "kind": queries.corpus.pick("kind", queries.rows),
            "source": queries.corpus.pick("source", queries.rows),
            "match": references.corpus.pick("id", references.rows[found.match]),
            "evidence": pa.array(list(found.evidence), pa.list_(pa.float32())),
            "pixels": pa.array(found.pixels, pa.float32()),
        }
    )


def _of_kind(table: pa.Table, kind: str) -> PlantedCopies:
    rows = table.filter(pa.compute.equal(table["kind"], kind))
    evidence = np.array(rows["evidence"].to_pylist(), np.float32)
    pixels = rows["pixels"].to_numpy()
    return PlantedCopies(rows["source"].to_pylist(), rows["match"].to_pylist(), evidence, pixels)


def _pictures(corpus: Corpus, seed: int, rounds: int, workers: int | None) -> Iterator[list[dict[str, Any]]]:
    """Planted copies of the images of a corpus, as JPEG of QUALITY, a batch of images at a time.

    Args:
        corpus: the images.
        seed: of the alterations.
        rounds: copies of a kind of each image.
        workers: threads; None = one a core.
    """
    n = len(corpus)
    turn_of = np.random.default_rng(np.random.SeedSequence([seed, 8])).permutation(n)
    others = [kind for kind in KINDS if kind not in MUST_SEE]

    def kinds_of(row: int) -> set[str]:
        """The kinds of which this image gets copies."""
        if n <= LEAST:
            return set(KINDS)
        turn = int(turn_of[row])
        first, second = MUST_SEE
        chosen = {others[turn % len(others)]}
        chosen |= {first} if turn < SHARE * n else set()
        return chosen | ({second} if turn >= (1 - SHARE) * n else set())

    def copies(task: tuple[int, bytes, bytes]) -> list[dict[str, Any]]:
        row, content, other = task
        kinds = kinds_of(row)
        image, background = _decoded(content), _decoded(other) if "part" in kinds else None
        if image is None:  # gone or changed since it was described
            return []
        found, image = [], images.thumbnail(image, LONGEST)
        for number, kind in enumerate(KINDS):
            if kind not in kinds or (kind == "part" and background is None):
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
