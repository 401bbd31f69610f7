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
LARGE_SIDE = 768
QUALITY = 78
ROWS = 300
LARGE_PAIRS = 24
"""Pairs that a report can enlarge: at most some 6 MB, as they are 48 pictures of some 100 kB."""
ORIGINAL_BYTES = 64_000_000
"""Of the files that `embed="full"` takes in."""
EMBED = ("small", "large", "full")
GROUPS = 60
OF_A_GROUP = 8
CARDS = 100
LOOK_ALIKES = 24


def gallery(
    described: dict[str, Embeddings],
    tables: dict[str, pa.Table],
    repeated: Iterable[Sequence[str]] = (),
    embed: str = "large",
) -> pa.Table:
    """Thumbnails (corpus, id, sha256 of the file, image as WebP, large) of what a report shows first.

    The ROWS highest scoring generated images with their match and the next best, the first LOOK_ALIKES calibration
    images that score as light copies do with the training image they are like, the first images of the GROUPS largest
    near-duplicate groups and of as many groups of repeated outputs, and the CARDS first risk cards. An image that can
    no longer be read is left out. `large` is null where the report cannot enlarge the image.

    Args:
        described: the corpora, among them those whose images are shown.
        tables: of an audit or a lint: "groups", "risk", and where there are any "generated" and "look_alikes".
        repeated: ids of the generated images of each group of repeated outputs, the largest group first.
        embed: what `large` holds: "small" = nothing; "large" = the LARGE_PAIRS worst pairs at LARGE_SIDE pixels; "full"
            = the files of all flagged pairs as they are, up to ORIGINAL_BYTES, and the worst pairs.
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
        corpus: rows_of(each.corpus, [name for other, name in wanted if other == corpus and name is not None])
        for corpus, each in described.items()
    }
    chosen = [(corpus, name) for corpus, name in wanted if name is not None]
    places = {(corpus, name): (described[corpus].corpus, rows[corpus][name]) for corpus, name in chosen}
    shots = previews(list(places.values()))
    large = _large(places, tables.get("generated"), embed)
    found = [
        {"corpus": corpus, "id": name, "sha256": _digest(*place), "image": shot, "large": large.get((corpus, name))}
        for ((corpus, name), place), shot in zip(places.items(), shots, strict=True)
        if shot
    ]
    return pa.Table.from_pylist(found, TYPES)


Key = tuple[str, str]
TYPES = pa.schema(
    {"corpus": pa.string(), "id": pa.string(), "sha256": pa.string(), "image": pa.binary(), "large": pa.binary()}
)


def _large(places: dict[Key, tuple[Corpus, int]], generated: pa.Table | None, embed: str) -> dict[Key, bytes]:
    """What the report shows of an image that is enlarged."""
    if generated is None or embed == "small":
        return {}
    pairs = _worst_pairs(generated)
    worst = [key for pair, _ in pairs[:LARGE_PAIRS] for key in pair if key in places]
    worst = list(dict.fromkeys(worst))
    shots = previews([places[key] for key in worst], LARGE_SIDE)
    found = {key: shot for key, shot in zip(worst, shots, strict=True) if shot}
    left = ORIGINAL_BYTES
    for key in dict.fromkeys(key for pair, copied in pairs if copied and embed == "full" for key in pair):
        content = _original(*places[key]) if key in places else None
        if content is not None and len(content) <= left:
            left -= len(content)
            found[key] = content
    return found


def _worst_pairs(generated: pa.Table) -> list[tuple[tuple[Key, Key], bool]]:
    """(pair of a generated and a training image, whether it is flagged): those flagged first, then by score."""
    names = [name for name in ("id", "match", "combined", "copied") if name in generated.column_names]
    rows = [row for row in generated.select(names).to_pylist() if row["match"] is not None]
    rows.sort(key=lambda row: (not row.get("copied"), -(row["combined"] or 0.0), row["id"]))
    return [((("generated", row["id"]), ("train", row["match"])), bool(row.get("copied"))) for row in rows]


def _original(corpus: Corpus, row: int) -> bytes | None:
    """The file as it is, where browsers show its format; else its pixels as WebP; None where it cannot be read."""
    try:
        content = corpus.read(row)
        shown = content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
        return content if shown else images.encode(images.decode(content), "webp", QUALITY)
    except ImageError:
        return None


def _digest(corpus: Corpus, row: int) -> str | None:
    """SHA-256 of the file, where it is known."""
    return corpus.table["sha256"][row].as_py() if "sha256" in corpus.table.column_names else None


def _ids(table: pa.Table, rows: NDArray[np.int64]) -> list[str]:
    return list(table["id"].take(pa.array(rows)).to_pylist())


def rows_of(corpus: Corpus, ids: list[str]) -> dict[str, int]:
    """Row of the corpus that each id is of; ids that are not there are left out."""
    found: dict[str, int] = {}
    wanted, start = pa.array(ids, pa.string()), 0
    for chunk in corpus.table["id"].chunks:
        place = np.flatnonzero(pa.compute.is_in(chunk, value_set=wanted).to_numpy(zero_copy_only=False))
        found |= dict(zip(chunk.take(pa.array(place)).to_pylist(), (start + place).tolist(), strict=True))
        start += len(chunk)
    return found


def previews(places: Sequence[tuple[Corpus, int]], side: int = SIDE) -> list[bytes | None]:
    """Previews as WebP; None where an image cannot be read.

    Args:
        places: (corpus, row) of each image.
        side: of the preview, pixels: the longer one is at most this.
    """

    def picture(place: tuple[Corpus, int]) -> bytes | None:
        try:
            return images.encode(images.preview(place[0].read(place[1]), side), "webp", QUALITY)
        except ImageError:
            return None

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(picture, places))
