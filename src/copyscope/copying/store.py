"""What was computed of an image, kept by the image's content: the cache below `embed`, `verify` and the measures.

A store is a folder of shards, each two files: `NAME.values.npy` [n dim] and `NAME.keys.npy` (sha256, width, height).
Both are written under a temporary name and renamed, the keys last: a shard whose keys are there is complete, and a
process killed at any moment leaves nothing that a reader could take for data.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

KEY = np.dtype([("sha256", "S32"), ("width", "<u4"), ("height", "<u4")])
COMPACT_ABOVE = 32
COPY_ROWS = 8192


class ContentStore:
    """Rows of `dim` values of one `dtype`, found by the sha256 (32 raw bytes) of the image file they came from."""

    def __init__(self, folder: Path, dim: int, dtype: DTypeLike) -> None:
        self.folder = folder
        self.dim = dim
        self.dtype = np.dtype(dtype)
        folder.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def __len__(self) -> int:
        return len(self._digests)

    @property
    def digests(self) -> NDArray[np.bytes_]:
        """S32 [n], sorted: the contents whose values are here."""
        return self._digests

    def refresh(self) -> None:
        """Look again at what is on disk: what other processes, and `add`, have put there."""
        self._names: list[str] = []
        self._starts = [0]
        keys = [np.zeros(0, KEY)]
        for name in sorted(path.name.removesuffix(".keys.npy") for path in self.folder.glob("*.keys.npy")):
            found = self._whole(name)
            if found is None:
                continue
            self._names.append(name)
            self._starts.append(self._starts[-1] + len(found))
            keys.append(found)
        self._keys = np.concatenate(keys)
        self._order = np.argsort(self._keys["sha256"], kind="stable")
        self._digests = self._keys["sha256"][self._order]

    def _whole(self, name: str) -> NDArray[Any] | None:
        """Keys of a shard; None where it was compacted away since the listing, or a crash of the machine tore it."""
        try:
            keys: NDArray[Any] = np.load(self.folder / f"{name}.keys.npy")
            values = np.load(self._values(name), mmap_mode="r")
        except (FileNotFoundError, EOFError, ValueError):
            return None
        return keys if keys.dtype == KEY and values.shape == (len(keys), self.dim) else None

    def find(self, digests: NDArray[np.bytes_]) -> NDArray[np.intp]:
        """Row of each digest [n], -1 where the store does not have it."""
        if len(self._digests) == 0:
            return np.full(len(digests), -1, dtype=np.intp)
        place = np.minimum(np.searchsorted(self._digests, digests), len(self._digests) - 1)
        return np.where(self._digests[place] == digests, self._order[place], -1)

    def sizes(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """(widths, heights) [n] in pixels of the images behind `rows`."""
        return self._keys["width"][rows], self._keys["height"][rows]

    def take(self, rows: NDArray[np.intp], out: NDArray[Any]) -> NDArray[Any]:
        """Fill `out` [n dim] with the values of `rows` [n], one shard in memory at a time.

        Raises FileNotFoundError where another process compacted a shard away since `refresh`; look again then.
        """
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards):
            where = np.flatnonzero(shards == shard)
            values = np.load(self._values(self._names[shard]), mmap_mode="r")
            for start in range(0, len(where), COPY_ROWS):
                piece = where[start : start + COPY_ROWS]
                out[piece] = values[rows[piece] - self._starts[shard]]
        return out

    def add(self, keys: NDArray[Any], values: NDArray[Any]) -> None:
        """Commit one shard: keys [n] of dtype KEY, values [n dim]. Seen by `find` after `refresh`."""
        name = uuid.uuid4().hex
        self._write(name, keys, iter([values]))

    def compact(self) -> None:
        """Merge many small shards into one. Safe beside other readers and writers."""
        self.refresh()
        if len(self._names) <= COMPACT_ABOVE:
            return
        _, first = np.unique(self._keys["sha256"], return_index=True)
        rows = np.sort(first)
        old = self._names
        try:
            self._write(uuid.uuid4().hex, self._keys[rows], self._pieces(rows))
        except FileNotFoundError:  # another process compacts the same shards
            return
        for name in old:
            (self.folder / f"{name}.keys.npy").unlink(missing_ok=True)
            self._values(name).unlink(missing_ok=True)
        self.refresh()

    def _pieces(self, rows: NDArray[np.intp]) -> Iterator[NDArray[Any]]:
        for start in range(0, len(rows), COPY_ROWS):
            piece = rows[start : start + COPY_ROWS]
            yield self.take(piece, np.empty((len(piece), self.dim), self.dtype))

    def _values(self, name: str) -> Path:
        return self.folder / f"{name}.values.npy"

    def _write(self, name: str, keys: NDArray[Any], pieces: Iterator[NDArray[Any]]) -> None:
        temporary = self.folder / f"{name}.tmp"
        try:
            with temporary.open("wb") as file:
                shape = (len(keys), self.dim)
                header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for piece in pieces:
                    file.write(np.ascontiguousarray(piece, self.dtype).data)
            os.replace(temporary, self._values(name))
            with temporary.open("wb") as file:
                np.save(file, keys)
            os.replace(temporary, self.folder / f"{name}.keys.npy")
        finally:
            temporary.unlink(missing_ok=True)
