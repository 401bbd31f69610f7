"""Content-addressed cache: values of an image by the sha256 of its file.

A store is a folder of shards, each two files: `NAME.values.npy` [n dim] and `NAME.keys.npy` (sha256, width, height,
CRC-32 of these and of the values). Both are written under a temporary name and renamed, the keys last: a shard whose
keys are there is complete, and a process killed at any moment leaves nothing that a reader could take for data. Every
row is checked when it is read, so that nothing need be waited for until it is on the disk: what a power cut takes of a
shard is made again. Rows of shards from before there were checksums are taken as they are.
"""

from __future__ import annotations

import os
import tempfile
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from copyscope.files import remove_stale, save_array, temporary_path
from copyscope.machine import drop_pages

KEY = np.dtype([("sha256", "S32"), ("width", "<u4"), ("height", "<u4")])
SUMMED = np.dtype([*KEY.descr, ("crc", "<u4")])
"""Keys as they are on disk; those of version 0.1 are KEY."""
COMPACT_ABOVE = 32
COPY_ROWS = 8192
IN_MEMORY = 32 * 2**20


class DamagedRows(Exception):
    """Rows of a store are not what was written.

    Args:
        rows: [n], which.
    """

    def __init__(self, rows: NDArray[np.intp]) -> None:
        super().__init__(f"{len(rows)} rows are not what was written")
        self.rows = rows


class ContentStore:
    """Content-addressed store: rows of `dim` values, found by the sha256 (32 raw bytes) of the image file.

    Args:
        folder: of the store; made if it is not there.
        dim: values a row.
        dtype: of the values.
    """

    def __init__(self, folder: Path, dim: int, dtype: DTypeLike) -> None:
        self.folder = folder
        self.dim = dim
        self.dtype = np.dtype(dtype)
        self._listed: list[str] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale(folder)
        self.refresh()

    def __len__(self) -> int:
        return len(self._order)

    @property
    def digests(self) -> NDArray[np.bytes_]:
        """S32 [n], sorted: contents whose values are in the store."""
        return np.sort(self._keys["sha256"])

    def refresh(self) -> None:
        """Read the list of shards again: what other processes, and `add`, have written."""
        names = sorted(path.name.removesuffix(".keys.npy") for path in self.folder.glob("*.keys.npy"))
        if names == self._listed:
            return
        self._listed, self._names, self._starts = names, [], [0]
        keys: list[NDArray[Any]] = []
        for name in names:
            found = self._whole(name)
            if found is None:
                continue
            self._names.append(name)
            self._starts.append(self._starts[-1] + len(found))
            keys.append(found)
        self._summed = [each.dtype == SUMMED for each in keys]
        self._keys = keys[0] if len(keys) == 1 else np.zeros(self._starts[-1], SUMMED)
        for start, each in zip(self._starts, keys, strict=False) if len(keys) > 1 else ():
            for field in each.dtype.names or ():
                self._keys[field][start : start + len(each)] = each[field]
        heads = _heads(self._keys["sha256"])
        self._order = np.argsort(heads, kind="stable")
        self._heads = heads[self._order]

    def _whole(self, name: str) -> NDArray[Any] | None:
        """Keys of a shard; None where it was compacted away since the listing, or a crash of the machine tore it."""
        try:
            keys: NDArray[Any] = np.load(self.folder / f"{name}.keys.npy", mmap_mode="r")
            values = np.load(self._values(name), mmap_mode="r")
        except (FileNotFoundError, EOFError, ValueError):
            return None
        whole = keys.dtype in (SUMMED, KEY) and (values.shape, values.dtype) == ((len(keys), self.dim), self.dtype)
        return keys.view(np.ndarray) if whole else None

    def find(self, digests: NDArray[np.bytes_]) -> NDArray[np.intp]:
        """Row of each digest [n], -1 where the store does not have it."""
        found = np.full(len(digests), -1, dtype=np.intp)
        for start in range(0, len(digests), COPY_ROWS):
            some = digests[start : start + COPY_ROWS]
            heads = _heads(some)
            place = np.searchsorted(self._heads, heads)
            left = np.arange(len(some))
            # The first eight bytes tell nearly all apart; where they do not, the next of the same are looked at.
            while len(left := left[place[left] < len(self._heads)]):
                left = left[self._heads[place[left]] == heads[left]]
                rows = self._order[place[left]]
                same = self._keys["sha256"][rows] == some[left]
                found[start + left[same]] = rows[same]
                left = left[~same]
                place[left] += 1
        return found

    def sizes(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """(widths, heights) [n] in pixels of the images behind `rows`."""
        return self._keys["width"][rows], self._keys["height"][rows]

    def values(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        """The values of `rows` [n dim].

        Beyond IN_MEMORY bytes they are mapped, from their shard where they lie in one in this order, so that a corpus
        may outgrow the machine; such an array is not to be written to.

        Raises:
            FileNotFoundError: another process compacted a shard away since `refresh`; look again then.
            DamagedRows: the disk gives back other bytes than it was given; `mend` then.
        """
        if len(rows) * self.dim * self.dtype.itemsize <= IN_MEMORY:
            return self.take(rows, np.empty((len(rows), self.dim), self.dtype))
        shard = int(np.searchsorted(self._starts, rows[0], side="right")) - 1
        first = int(rows[0]) - self._starts[shard]
        if rows[-1] < self._starts[shard + 1] and (np.diff(rows) == 1).all():
            held: NDArray[Any] = np.load(self._values(self._names[shard]), mmap_mode="r")
            rotten = [
                piece[self._wrong(shard, piece, held[piece[0] - self._starts[shard] :][: len(piece)])]
                for piece in np.split(rows, range(COPY_ROWS, len(rows), COPY_ROWS))
            ]
            drop_pages(held)
            _raise_rotten(rotten)
            return held[first : first + len(rows)]
        with tempfile.TemporaryFile() as file:
            return self.take(rows, np.memmap(file, self.dtype, "w+", shape=(len(rows), self.dim)))

    def take(self, rows: NDArray[np.intp], out: NDArray[Any]) -> NDArray[Any]:
        """Fill `out` [n dim] with the values of `rows` [n], a shard after the other. Raises as `values` does."""
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        rotten: list[NDArray[np.intp]] = []
        for shard in np.unique(shards).tolist():
            where = np.flatnonzero(shards == shard)
            values = np.load(self._values(self._names[shard]), mmap_mode="r")
            for start in range(0, len(where), COPY_ROWS):
                piece = where[start : start + COPY_ROWS]
                found = values[rows[piece] - self._starts[shard]]
                rotten.append(rows[piece][self._wrong(shard, rows[piece], found)])
                out[piece] = found
            drop_pages(values)
            drop_pages(out)
        _raise_rotten(rotten)
        return out

    def mend(self, rows: NDArray[np.intp]) -> None:
        """Remove damaged values from the shards that hold `rows`; they are then computed again."""
        for shard in np.unique(np.searchsorted(self._starts, rows, side="right") - 1).tolist():
            name, there = self._names[shard], np.arange(self._starts[shard], self._starts[shard + 1])
            values = np.load(self._values(name), mmap_mode="r")
            pieces = np.split(there, range(COPY_ROWS, len(there), COPY_ROWS))
            wrong = [self._wrong(shard, piece, values[piece - self._starts[shard]]) for piece in pieces]
            good = there[~np.concatenate(wrong)]
            if len(good):
                self.write(self._keys[good], self._pieces(good))
            self._remove(name)
        self.refresh()

    def _wrong(self, shard: int, rows: NDArray[np.intp], values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of the `rows` [n] of a shard and their `values` [n dim] are not what was written."""
        if not self._summed[shard]:
            return np.zeros(len(rows), bool)
        keys = self._keys[rows]
        return np.asarray(_sums(keys, values) != keys["crc"])

    def add(self, keys: NDArray[Any], values: NDArray[Any]) -> None:
        """Commit one shard: keys [n] of dtype KEY, values [n dim]. Seen by `find` after `refresh`."""
        self.write(keys, [values])

    def compact(self) -> None:
        """Merge many small shards into one. Safe beside other readers and writers."""
        self.refresh()
        if len(self._names) <= COMPACT_ABOVE:
            return
        rows = np.flatnonzero(self.find(self._keys["sha256"]) == np.arange(len(self)))
        old = self._names
        try:
            self.write(self._keys[rows], self._pieces(rows))
        except FileNotFoundError:  # another process compacts the same shards
            return
        except DamagedRows as found:
            self.mend(found.rows)
            return
        for name in old:
            self._remove(name)
        self.refresh()

    def _remove(self, name: str) -> None:
        """Takes a shard away, its keys first."""
        (self.folder / f"{name}.keys.npy").unlink(missing_ok=True)
        self._values(name).unlink(missing_ok=True)

    def _pieces(self, rows: NDArray[np.intp]) -> Iterator[NDArray[Any]]:
        for start in range(0, len(rows), COPY_ROWS):
            piece = rows[start : start + COPY_ROWS]
            yield self.take(piece, np.empty((len(piece), self.dim), self.dtype))

    def _values(self, name: str) -> Path:
        return self.folder / f"{name}.values.npy"

    def write(self, keys: NDArray[Any], pieces: Iterable[NDArray[Any]]) -> None:
        """Commit one shard as `add` does, of values that come in several arrays [m dim], n rows together."""
        name = uuid.uuid4().hex
        summed = np.zeros(len(keys), SUMMED)
        for field in KEY.names or ():
            summed[field] = keys[field]
        done = 0
        with temporary_path(self._values(name)) as temporary:
            with temporary.open("wb") as file:
                shape = (len(keys), self.dim)
                header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for piece in pieces:
                    plain = np.ascontiguousarray(piece, self.dtype)
                    file.write(plain.data)
                    summed["crc"][done : done + len(plain)] = _sums(summed[done : done + len(plain)], plain)
                    done += len(plain)
            os.replace(temporary, self._values(name))
        with temporary_path(self.folder / f"{name}.keys.npy") as temporary:
            save_array(temporary, summed)
            os.replace(temporary, self.folder / f"{name}.keys.npy")


def _sums(keys: NDArray[Any], values: NDArray[Any]) -> NDArray[np.uint32]:
    """CRC-32 [n] of each key and its row of values [n dim]."""
    plain = np.empty(len(keys), KEY)
    for field in KEY.names or ():
        plain[field] = keys[field]
    names, rows = memoryview(plain.tobytes()), memoryview(np.ascontiguousarray(values).tobytes())
    short, long = KEY.itemsize, len(rows) // max(1, len(keys))
    found = (
        zlib.crc32(rows[row * long : row * long + long], zlib.crc32(names[row * short : row * short + short]))
        for row in range(len(keys))
    )
    return np.fromiter(found, np.uint32, len(keys))


def _raise_rotten(found: list[NDArray[np.intp]]) -> None:
    if any(len(each) for each in found):
        raise DamagedRows(np.concatenate(found))


def _heads(digests: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """The first eight bytes of each digest [n], as a number."""
    return np.ascontiguousarray(digests, "S32").view("V32").view(">u8").reshape(len(digests), 4)[:, 0].astype(np.uint64)
