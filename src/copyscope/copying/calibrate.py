"""What real images score that are no copies: held-out images cleaned of look-alikes, or the training set against
itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from copyscope import parts
from copyscope.engine import Engine
from copyscope.machine import Progress

from .causes import representatives
from .duplicates import Groups
from .embed import Embeddings, embed
from .match import Matches, match
from .replication import Calibration
from .search import search
from .spread_search import nearest_by
from .verify import Verify

LOOK_ALIKE_BITS = 31
RULE = (
    f"a held-out image is a look-alike when its file is that of a training image or its PDQ hash is within "
    f"{LOOK_ALIKE_BITS} of 256 bits of one's: PDQ's own bound, fixed beforehand and apart from the scores it calibrates"
)
BASELINE_RULE = "training images against those outside their own near-duplicate group"
BASELINE_SAMPLE = 2000
SIMILARITY_SAMPLE = 100_000
PIECE = 65_536


def held_out(
    images: Embeddings,
    train: Embeddings,
    groups: Groups,
    verify: Verify,
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> tuple[Calibration, Matches, NDArray[np.bool_]]:
    """Calibration on held-out images, their matches against the training set, and which [n] of them were look-alikes.

    Left in, look-alikes take all power; cut at the score itself, they bias the threshold; so RULE looks at other
    things.
    """
    options: dict[str, Any] = {"cache": cache, "workers": workers, "engine": engine, "progress": progress}
    alike = look_alikes(images, train, **options)
    clean = Embeddings(
        images.corpus, images.rows[~alike], images.vectors[~alike], images.descriptor, images.fingerprint
    )
    matches = match(clean, train, verify, labels=groups.label, **options)
    scores = matches.of_best(matches.combined)
    return Calibration("held-out", scores[np.isfinite(scores)], int(alike.sum()), RULE), matches, alike


def look_alikes(images: Embeddings, train: Embeddings, **options: Any) -> NDArray[np.bool_]:
    """Which of `images` [n] are look-alikes of a training image by RULE. options: as in `embed`."""
    pdq = parts.load("descriptors", "pdq")
    queries = embed(images.corpus.take(images.rows), pdq, **options)
    # Rows that could not be read have their error, and are not read again.
    references = embed(train.corpus, pdq, **options)
    # An image that cannot be read again cannot be cleared of being one.
    alike = np.ones(len(images.rows), dtype=bool)
    alike[queries.rows] = alike_by_hash(queries.vectors, references.vectors, options.get("workers"))
    mine = queries.corpus.table["sha256"]
    for start in range(0, len(train.rows), PIECE):
        alike |= alike_by_file(mine, references.corpus.pick("sha256", train.rows[start : start + PIECE]))
    return alike


def alike_by_hash(
    queries: NDArray[np.float32], references: NDArray[np.float32], workers: int | None = None
) -> NDArray[np.bool_]:
    """Which PDQ vectors [n 256] are within LOOK_ALIKE_BITS of one of the references [m 256]."""
    found = search(queries, references, 1, workers=workers)
    # Half a bit of slack for rounding: one bit moves the inner product by 1/128.
    return np.asarray(found.score[:, 0] > 1 - (LOOK_ALIKE_BITS + 0.5) / 128)


def alike_by_file(queries: pa.ChunkedArray, references: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Which file digests [n] are among the references'."""
    return np.asarray(pc.is_in(queries, value_set=references).to_numpy(), bool)


def baseline(
    train: Embeddings,
    groups: Groups,
    verify: Verify,
    *,
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> tuple[Calibration, NDArray[np.float32]]:
    """Calibration on training images, and the baseline similarity of each [n]: to the nearest outside its own group.

    The second look is taken at a random sample of at most BASELINE_SAMPLE; NaN where an image's group is the whole set,
    and where the images lie in cells, for all but a sample of SIMILARITY_SAMPLE.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    n = len(train.rows)
    asked = np.arange(n) if train.cells is None else np.sort(rng.permutation(n)[:SIMILARITY_SAMPLE])
    scores = np.full(n, np.nan, np.float32)
    scores[asked] = nearest_by(
        engine,
        train.vectors[asked],
        train.vectors,
        1,
        train.cells,
        query_labels=groups.label[asked],
        reference_labels=groups.label,
        workers=workers,
        progress=progress,
    ).score[:, 0]
    scores[scores < -1.5] = np.nan
    # One image a group: its near-duplicates would count the same distance again and again.
    some = np.sort(rng.permutation(representatives(groups))[:BASELINE_SAMPLE])
    sample = Embeddings(train.corpus, train.rows[some], train.vectors[some], train.descriptor, train.fingerprint)
    matches = match(
        sample,
        train,
        verify,
        labels=groups.label,
        own=groups.label[some],
        cache=cache,
        workers=workers,
        engine=engine,
        progress=progress,
    )
    found = matches.of_best(matches.combined)
    return Calibration("baseline", found[np.isfinite(found)], 0, BASELINE_RULE), scores


def removed_ids(images: Embeddings, alike: NDArray[np.bool_]) -> list[str]:
    """Ids of the look-alikes, for the report."""
    return list(images.corpus.pick("id", images.rows[alike]).to_pylist())
