"""Segments of an index: written, memory-mapped, merged."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from copyscope.detection.descriptors import Descriptor
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.tiny_image import DIM, coarse_vectors
from copyscope.detection.matching.windows import BOXES, window_thumbnails, window_vectors
from copyscope.detection.search.binary_codes import Block, VectorBlocks, encode
from copyscope.detection.search.quantized import PRECISIONS, Stored, Vectors, kinds, shorten
from copyscope.engine import CacheOptions
from copyscope.errors import InputError
from copyscope.machine import Progress

from . import manifest as files
from . import row_table
from .row_table import RowTable

# Of the vectors [d bits] and of the coarse vectors [48 bits].
Directions = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, eq=False)
class CalibrationScores:
    """Combined scores of real images that are no copies [m].

    Attributes:
        whole: of the whole image.
        local: the best with its windows.
    """

    whole: NDArray[np.float64]
    local: NDArray[np.float64]


@dataclasses.dataclass(eq=False)
class IndexSnapshot:
    """One manifest and the files it names, mapped. A row is an image.

    Attributes:
        manifest: as read.
        stamp: identity of the manifest.
        whole: vectors of the images.
        coarse: their tiny-image vectors, in the same rows.
        crops: vectors of their windows, one row each; None = not kept.
        table: ids, captions and digests of the rows.
        calibration: what p-values rest on.
    """

    manifest: dict[str, Any]
    stamp: tuple[int, int, int] | None
    whole: VectorBlocks
    coarse: VectorBlocks
    crops: VectorBlocks | None
    table: RowTable
    calibration: CalibrationScores

    @property
    def directions(self) -> Directions:
        """Directions of the sign codes."""
        return self.whole.directions, self.coarse.directions

    @property
    def n(self) -> int:
        """Number of rows that were not removed."""
        return len(self.whole) - sum(block.n_gone for block in self.whole.blocks)

    @functools.cached_property
    def gone(self) -> NDArray[np.bool_]:
        """Which rows were removed, bool [n]."""
        return np.concatenate([np.zeros(0, bool), *(block.gone for block in self.whole.blocks)])

    def column(self, name: str) -> list[Any]:
        """Column of the rows that were not removed, as plain values."""
        return list(self.table.column(name).filter(pa.array(~self.gone)).to_pylist())

    def find(self, ids: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
        """Rows that were not removed and whose id is among `ids`, in their order, and the id of each."""
        rows = self.table.find(ids, self.gone)
        return rows, [each["id"] for each in self.table.take(rows, ["id"])]

    def write_removed(self, folder: Path, rows: NDArray[np.int64]) -> dict[str, Any]:
        """The manifest, with a note that `rows` are removed too."""
        gone = self.gone.copy()
        gone[rows] = True
        found = np.flatnonzero(gone)
        segment = np.searchsorted(self.whole.starts, found, side="right") - 1
        names = pa.array([each["name"] for each in self.manifest["segments"]], pa.string())
        table = pa.table(
            {
                "segment": names.take(pa.array(segment)),
                "row": pa.array(found - self.whole.starts[segment], pa.int64()),
            }
        )
        name = files.new_name() + ".removed"
        written = files.write_table(folder, name, table)
        return files.changed(self.manifest, written, [self.manifest["removed"]], removed=name, n_removed=len(found))


def precision_of(manifest: dict[str, Any]) -> str:
    """Precision in which the vectors are kept; an index that is older than the choice does not say.

    Raises:
        InputError: the precision is one that a later Copyscope knows.
    """
    precision = str(manifest.get("precision", "float32"))
    if precision not in PRECISIONS:
        raise InputError(
            f"The index keeps its vectors in {precision!r}, which this Copyscope does not know.\n"
            "Update Copyscope, or build the index again"
        )
    return precision


def write_segment(
    folder: Path,
    manifest: dict[str, Any],
    described: Embeddings,
    directions: Directions,
    descriptor: Descriptor,
    verify: Verify,
    crops: bool,
    options: CacheOptions,
) -> dict[str, Any]:
    """Write the readable images as one segment, and name it in the manifest.

    Args:
        folder: of the index.
        manifest: of the index so far.
        described: the images.
        directions: of the sign codes.
        descriptor: what described them.
        verify: whose thumbnails.
        crops: describe their windows too.
        options: `cache`, `workers` and `progress` of `embed`.

    Returns:
        The manifest with the segment.
    """
    name, corpus, rows = files.new_name(), described.corpus, described.rows
    thumbnails = verify.thumbnails(corpus, rows, **options)
    n, vectors = len(rows), described.vectors
    precision, progress = precision_of(manifest), options.get("progress")
    write = functools.partial(_write_rows, folder, precision=precision, progress=progress)
    written = write(name, n, descriptor.dim, lambda piece: vectors[piece], directions[0])
    written |= files.write_array(folder, f"{name}.thumbnails", thumbnails)
    written |= write(f"{name}.coarse", n, DIM, lambda piece: coarse_vectors(thumbnails[piece]), directions[1])
    if crops:
        windows = window_vectors(corpus, rows, descriptor, **options).reshape(-1, descriptor.dim)
        small = window_thumbnails(corpus, rows, verify, **options)
        written |= write(f"{name}.crops", len(windows), descriptor.dim, lambda piece: windows[piece], directions[0])
        written |= files.write_array(folder, f"{name}.crops.thumbnails", small.reshape(-1, *small.shape[2:]))
    written |= row_table.write(folder, name, row_table.described(corpus.table, rows))
    return files.changed(manifest, written, segments=[*manifest["segments"], {"name": name, "n": n}])


def _write_rows(
    folder: Path,
    name: str,
    n: int,
    dim: int,
    of: Callable[[slice], Vectors],
    directions: Vectors,
    *,
    precision: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write the vectors [n dim] that `of` gives a slice at a time, as they are kept, and their codes."""

    def kept(vectors: Vectors) -> tuple[NDArray[Any], ...]:
        return *shorten(vectors, precision), encode(vectors, directions)

    def pieces() -> Iterator[tuple[NDArray[Any], ...]]:
        for start in range(0, n, files.COPY_ROWS):
            stop = min(start + files.COPY_ROWS, n)
            yield kept(np.ascontiguousarray(of(slice(start, stop)), np.float32))
            if progress:
                progress("index", stop, n)

    names = [f"{name}.{kind}" for kind in (*kinds(precision), "codes")]
    return files.write_arrays(folder, names, n, pieces(), kept(np.zeros((0, dim), np.float32)))


def load(folder: Path, manifest: dict[str, Any] | None = None) -> IndexSnapshot:
    """Open the files of a manifest.

    Args:
        folder: of the index.
        manifest: None = the one in place.

    Raises:
        InputError: as `Index.open`.
    """
    if manifest is not None:
        return _map(folder, None, manifest)
    stamp = files.stamp(folder)
    return files.with_retries(folder, lambda manifest: _map(folder, stamp, manifest))


def _map(folder: Path, stamp: tuple[int, int, int] | None, manifest: dict[str, Any]) -> IndexSnapshot:
    files.check_sizes(folder, manifest)
    segments = manifest["segments"]
    gone = {each["name"]: np.zeros(each["n"], bool) for each in segments}
    if manifest["removed"]:
        removed = files.read_table(folder, manifest["removed"])
        segment, row = pc.index_in(removed["segment"], value_set=pa.array(list(gone))).to_numpy(), removed["row"]
        for at, each in enumerate(gone.values()):
            each[row.to_numpy()[segment == at]] = True
    directions, coarsely = (
        files.map_array(folder, manifest["rotation"] + each) for each in (".rotation", ".coarse.rotation")
    )
    precision = precision_of(manifest)
    table = RowTable(folder, [each["name"] for each in segments])
    whole = [_block(folder, name, precision, each) for name, each in gone.items()]
    coarse = [_block(folder, f"{name}.coarse", precision, each, name) for name, each in gone.items()]
    crops = None
    if manifest["crops"]:
        inner = [_block(folder, f"{name}.crops", precision, np.repeat(each, len(BOXES))) for name, each in gone.items()]
        crops = VectorBlocks(inner, directions)
    kept = CalibrationScores(np.zeros(0), np.zeros(0))
    if manifest["calibration"]:
        scores = files.map_array(folder, manifest["calibration"]["scores"] + ".scores")
        kept = CalibrationScores(*(column[np.isfinite(column)].astype(np.float64) for column in scores.T))
    return IndexSnapshot(
        manifest, stamp, VectorBlocks(whole, directions), VectorBlocks(coarse, coarsely), crops, table, kept
    )


def _block(folder: Path, name: str, precision: str, gone: NDArray[np.bool_], shown: str | None = None) -> Block:
    """The files of a name as a block; thumbnails are those of the name `shown`, or its own."""
    stored = Stored(*(files.map_array(folder, f"{name}.{kind}") for kind in kinds(precision)))
    codes, thumbnails = files.map_array(folder, f"{name}.codes"), files.map_array(folder, f"{shown or name}.thumbnails")
    return Block(stored, codes, thumbnails, gone)


def merge(folder: Path, state: IndexSnapshot) -> dict[str, Any]:
    """Merge all segments into one, without removed rows; the manifest with it instead of the others."""
    manifest = state.manifest
    keep = [~block.gone for block in state.whole.blocks]
    old = [each["name"] for each in manifest["segments"]]
    written: dict[str, Any] = {}
    name = files.new_name()
    if state.n:
        # Vectors and thumbnails: of each image, coarse ones, and those of its windows.
        of_rows = (*kinds(precision_of(manifest)), "codes")
        arrays = {"": (*of_rows, "thumbnails"), ".coarse": of_rows}
        arrays |= {".crops": arrays[""]} if manifest["crops"] else {}
        for suffix, names in arrays.items():
            wanted = [np.repeat(some, len(BOXES)) for some in keep] if suffix == ".crops" else keep
            for kind in names:
                parts = [files.map_array(folder, f"{segment}{suffix}.{kind}") for segment in old]
                written |= files.write_array(folder, f"{name}{suffix}.{kind}", *parts, keep=wanted)
        # Ids, captions and digests.
        there = (
            piece.filter(pa.array(~state.gone[start : start + len(piece)])) for start, piece in state.table.pieces()
        )
        written |= row_table.write(folder, name, there)
    segments = [{"name": name, "n": state.n}] if state.n else []
    dropped = [*old, manifest["removed"]]
    return files.changed(manifest, written, dropped, segments=segments, removed=None, n_removed=0)
