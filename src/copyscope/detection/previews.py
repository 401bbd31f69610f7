"""Preview images of a report."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.errors import ImageError
from copyscope.imaging import images
from copyscope.machine import cores

SIDE = 192
QUALITY = 78
ROWS = 300
GROUPS = 60
OF_A_GROUP = 8
CARDS = 100
LOOK_ALIKES = 24


def gallery(
    described: dict[str, Embeddings], tables: dict[str, pa.Table], repeated: Iterable[Sequence[str]] = ()
) -> pa.Table:
    """Thumbnails (corpus, id, image as WebP) of what a report shows first.

    The ROWS highest scoring generated images with their match and the next best, the first LOOK_ALIKES calibration
    images that score as light copies do with the training image they are like, the first images of the GROUPS largest
    near-duplicate groups and of as many groups of repeated outputs, and the CARDS first risk cards. An image that can
    no longer be read is left out.

    Args:
        described: the corpora, among them those whose images are shown.
        tables: of an audit or a lint: "groups", "risk", and where there are any "generated" and "look_alikes".
        repeated: ids of the generated images of each group of repeated outputs, the largest group first.
    """
    wanted: dict[tuple[str, str], None] = {}
    if "generated" in tables:
        worst = tables["generated"].filter(pa.compute.is_valid(tables["generated"]["combined"]))
        worst = worst.sort_by([("combined", "descending"), ("id", "ascending")]).slice(0, ROWS)
        for row in worst.select(["id", "match", "next_match"]).to_pylist():
            wanted |= {
                ("generated", row["id"]): None,
                ("train", row["match"]): None,
                ("train", row["next_match"]): None,
            }
    calibrator = next((name for name in ("held-out", "control") if name in described), None)
    if calibrator and "look_alikes" in tables:
        for row in tables["look_alikes"].slice(0, LOOK_ALIKES).select(["id", "match"]).to_pylist():
            wanted |= {(calibrator, row["id"]): None, ("train", row["match"]): None}
    for ids in itertools.islice(repeated, GROUPS):
        wanted |= {("generated", name): None for name in ids[:OF_A_GROUP]}
    group = tables["groups"]["group"].to_numpy()
    first = np.sort(np.unique(group, return_index=True)[1])[:GROUPS]
    members = [np.flatnonzero(group == group[at])[:OF_A_GROUP] for at in first]
    if members:
        wanted |= {("train", name): None for name in _ids(tables["groups"], np.sort(np.concatenate(members)))}
    wanted |= {("train", name): None for name in _ids(tables["risk"], np.arange(min(CARDS, len(tables["risk"]))))}
    rows = {
        corpus: _rows(each, [name for other, name in wanted if other == corpus and name is not None])
        for corpus, each in described.items()
    }
    chosen = [(corpus, name) for corpus, name in wanted if name is not None]
    shots = previews([(described[corpus].corpus, rows[corpus][name]) for corpus, name in chosen])
    found = [(*key, shot) for key, shot in zip(chosen, shots, strict=True) if shot]
    columns = list(zip(*found, strict=True)) or [(), (), ()]
    types = (("corpus", pa.string()), ("id", pa.string()), ("image", pa.binary()))
    return pa.table({name: pa.array(values, kind) for (name, kind), values in zip(types, columns, strict=True)})


def _ids(table: pa.Table, rows: NDArray[np.int64]) -> list[str]:
    return list(table["id"].take(pa.array(rows)).to_pylist())


def _rows(described: Embeddings, ids: list[str]) -> dict[str, int]:
    """Row of the corpus that each id is of."""
    found: dict[str, int] = {}
    wanted, start = pa.array(ids, pa.string()), 0
    for chunk in described.corpus.table["id"].chunks:
        place = np.flatnonzero(pa.compute.is_in(chunk, value_set=wanted).to_numpy(zero_copy_only=False))
        found |= dict(zip(chunk.take(pa.array(place)).to_pylist(), (start + place).tolist(), strict=True))
        start += len(chunk)
    return found


def previews(places: Sequence[tuple[Corpus, int]]) -> list[bytes | None]:
    """Previews as WebP, the longer side at most SIDE pixels; None where an image cannot be read.

    Args:
        places: (corpus, row) of each image.
    """

    def picture(place: tuple[Corpus, int]) -> bytes | None:
        try:
            return images.encode(images.preview(place[0].read(place[1]), SIDE), "webp", QUALITY)
        except ImageError:
            return None

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(picture, places))
