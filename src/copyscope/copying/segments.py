"""The rows of an index: written as a segment of files, mapped as what is there now, merged into one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from . import index_files as files
from .coarse import coarse_vectors
from .codes import Block, Rows, encode
from .descriptors import Descriptor
from .embed import Embeddings
from .verify import Verify
from .windows import BOXES, window_thumbnails, window_vectors

KINDS = ("vectors", "codes", "thumbnails")
# Of the vectors [d bits] and of the coarse vectors [48 bits].
Directions = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """Combined scores of real images that are no copies [m]: of the whole image, and the best with its windows."""

    whole: NDArray[np.float64]
    local: NDArray[np.float64]


@dataclasses.dataclass(eq=False)
class State:
    """One manifest and the files it names, mapped.

    A row is an image; `coarse` has the same rows by their coarse vectors, `crops` one row for each window of an image.
    """

    manifest: dict[str, Any]
    stamp: tuple[int, int, int] | None
    whole: Rows
    coarse: Rows
    crops: Rows | None
    tables: list[Callable[[], pa.Table]]
    calibration: Kept

    @property
    def directions(self) -> Directions:
        """Of the codes."""
        return self.whole.directions, self.coarse.directions

    @property
    def n(self) -> int:
        """Rows that were not removed."""
        return len(self.whole) - int(self.gone.sum())

    @functools.cached_property
    def gone(self) -> NDArray[np.bool_]:
        """Which rows were removed [n]."""
        return np.concatenate([np.zeros(0, bool), *(block.gone for block in self.whole.blocks)])

    @functools.cached_property
    def table(self) -> pa.Table:
        """id, caption, sha256, weight, width, height of every row."""
        return pa.concat_tables([EMPTY, *(read() for read in self.tables)]).combine_chunks()

    @functools.cached_property
    def ids(self) -> list[str]:
        """Id of every row."""
        return list(self.table["id"].to_pylist())

    def write_removed(self, folder: Path, rows: NDArray[np.int64]) -> None:
        """Note in the manifest that `rows` are removed too."""
        gone = self.gone.copy()
        gone[rows] = True
        found = np.flatnonzero(gone)
        segment = np.searchsorted(self.whole.starts, found, side="right") - 1
        names = [each["name"] for each in self.manifest["segments"]]
        table = pa.table(
            {
                "segment": pa.array([names[at] for at in segment], pa.string()),
                "row": pa.array(found - self.whole.starts[segment], pa.int64()),
            }
        )
        drop(self.manifest, self.manifest["removed"])
        name = self.manifest["removed"] = files.new_name() + ".removed"
        self.manifest["files"] |= files.write_table(folder, name, table)
        self.manifest["n_removed"] = len(found)


EMPTY = pa.table(
    {
        "id": pa.array([], pa.string()),
        "caption": pa.array([], pa.string()),
        "sha256": pa.array([], pa.string()),
        "weight": pa.array([], pa.float64()),
        "width": pa.array([], pa.int32()),
        "height": pa.array([], pa.int32()),
    }
)


def write_segment(
    folder: Path,
    manifest: dict[str, Any],
    described: Embeddings,
    directions: Directions,
    descriptor: Descriptor,
    verify: Verify,
    crops: bool,
    options: dict[str, Any],
) -> None:
    """Write the readable images of `described` as one segment and name it in `manifest`."""
    name, corpus, rows = files.new_name(), described.corpus, described.rows
    thumbnails = verify.thumbnails(corpus, rows, **options)
    written = _write_rows(folder, name, np.asarray(described.vectors), thumbnails, directions[0])
    written |= _write_rows(folder, f"{name}.coarse", coarse_vectors(thumbnails), None, directions[1])
    if crops:
        vectors = window_vectors(corpus, rows, descriptor, **options).reshape(-1, descriptor.dim)
        small = window_thumbnails(corpus, rows, verify, **options)
        written |= _write_rows(folder, f"{name}.crops", vectors, small.reshape(-1, *small.shape[2:]), directions[0])
    taken = corpus.table.take(pa.array(rows))
    captions = [each[0] if each else None for each in taken["captions"].to_pylist()]
    table = taken.append_column("caption", pa.array(captions, pa.string())).select(EMPTY.column_names)
    table = table.cast(EMPTY.schema)
    written |= files.write_table(folder, f"{name}.rows", table)
    manifest["files"] |= written
    manifest["segments"].append({"name": name, "n": len(rows)})


def _write_rows(
    folder: Path,
    name: str,
    vectors: NDArray[np.float32],
    thumbnails: NDArray[np.uint8] | None,
    directions: NDArray[np.float32],
) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for kind, array in zip(KINDS, (vectors, encode(vectors, directions), thumbnails), strict=True):
        if array is not None:
            written |= files.write_array(folder, f"{name}.{kind}", array)
    return written


def load(folder: Path, manifest: dict[str, Any] | None = None) -> State:
    """The state of `manifest`, or of the one in place. Raises as `Index.open` does."""
    if manifest is not None:
        return _map(folder, None, manifest)
    stamp = files.stamp(folder)
    return files.steadily(folder, lambda manifest: _map(folder, stamp, manifest))


def _map(folder: Path, stamp: tuple[int, int, int] | None, manifest: dict[str, Any]) -> State:
    files.check_sizes(folder, manifest)
    segments = manifest["segments"]
    gone = {each["name"]: np.zeros(each["n"], bool) for each in segments}
    if manifest["removed"]:
        removed = files.map_table(folder, manifest["removed"])()
        for segment, row in zip(removed["segment"].to_pylist(), removed["row"].to_pylist(), strict=True):
            gone[segment][row] = True
    directions, coarsely = (
        files.map_array(folder, manifest["rotation"] + each) for each in (".rotation", ".coarse.rotation")
    )
    tables = [files.map_table(folder, f"{each['name']}.rows") for each in segments]
    whole = [_block(folder, each["name"], gone[each["name"]]) for each in segments]
    coarse = []
    for block, each in zip(whole, segments, strict=True):
        vectors, codes = (files.map_array(folder, f"{each['name']}.coarse.{kind}") for kind in ("vectors", "codes"))
        coarse.append(dataclasses.replace(block, vectors=vectors, codes=codes))
    crops = None
    if manifest["crops"]:
        inner = [
            _block(folder, f"{each['name']}.crops", np.repeat(gone[each["name"]], len(BOXES))) for each in segments
        ]
        crops = Rows(inner, directions)
    kept = Kept(np.zeros(0), np.zeros(0))
    if manifest["calibration"]:
        scores = files.map_array(folder, manifest["calibration"]["scores"] + ".scores")
        kept = Kept(*(column[np.isfinite(column)].astype(np.float64) for column in scores.T))
    return State(manifest, stamp, Rows(whole, directions), Rows(coarse, coarsely), crops, tables, kept)


def _block(folder: Path, name: str, gone: NDArray[np.bool_]) -> Block:
    vectors, codes, thumbnails = (files.map_array(folder, f"{name}.{kind}") for kind in KINDS)
    return Block(vectors, codes, thumbnails, gone)


def merge(folder: Path, state: State) -> None:
    """Write one segment of what is there and was not removed, and name it in the manifest instead of all others."""
    manifest = state.manifest
    keep = [~block.gone for block in state.whole.blocks]
    old = [each["name"] for each in manifest["segments"]]
    written: dict[str, Any] = {}
    name = files.new_name()
    if state.n:
        each_window = [np.repeat(each, len(BOXES)) for each in keep]
        for suffix, rows, wanted in (
            ("", state.whole, keep),
            (".coarse", state.coarse, keep),
            (".crops", state.crops, each_window),
        ):
            if rows is not None:
                written |= _merged(
                    folder, name + suffix, rows.blocks, wanted, KINDS[:2] if rows is state.coarse else KINDS
                )
        table = state.table.filter(pa.array(~state.gone))
        written |= files.write_table(folder, f"{name}.rows", table)
    for each in (*old, manifest["removed"]):
        drop(manifest, each)
    manifest["files"] |= written
    manifest["segments"] = [{"name": name, "n": state.n}] if state.n else []
    manifest["removed"], manifest["n_removed"] = None, 0


def _merged(
    folder: Path, name: str, blocks: list[Block], keep: list[NDArray[np.bool_]], kinds: tuple[str, ...]
) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for kind in kinds:
        written |= files.write_array(folder, f"{name}.{kind}", *(getattr(block, kind) for block in blocks), keep=keep)
    return written


def drop(manifest: dict[str, Any], name: str | None) -> None:
    """Take every file of a name out of the manifest."""
    if name:
        manifest["files"] = {file: entry for file, entry in manifest["files"].items() if not file.startswith(name)}
