"""Files of an IVF index on disk, and its resumable construction.

All are read and written from their beginning to their end, piece by piece: 10 million rows are 20 GB, and a disk that
is asked here and there for a kilobyte gives a hundredth of what it could.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from copyscope.files import replace_file, save_array, sync
from copyscope.machine import Progress, drop_pages, memory_budget

from .exact import faiss_for, search

SAMPLED_PER_CELL, ROUNDS = 32, 8
BLOCK, PIECE = 32768, 16384
DONE, SCHEMA = "cells.json", "copyscope.cells/2"

Vectors = NDArray[np.float32]


def make(
    folder: Path,
    vectors: Vectors,
    count: int,
    width: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the files of an IVF index into a folder, DONE last; a build that was killed goes on.

    Args:
        folder: for these vectors alone; `IVF` says what the files hold.
        vectors: float32 [n d].
        count: number of cells.
        width: number of nearest cells kept of each row.
        seed: of the clustering.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.
    """
    n = len(vectors)
    centres = folder / "centres.npy"
    if not centres.is_file():
        rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
        sample = np.sort(rng.choice(n, min(n, SAMPLED_PER_CELL * count), replace=False))
        found = _centres(np.ascontiguousarray(vectors[sample]), count, seed)
        replace_file(centres, lambda path: save_array(path, found))
        drop_pages(vectors)
    near, keys = _assigned(folder, vectors, np.load(centres), min(width, count), workers, progress)
    own = np.array(near[:, 0])
    rows = np.argsort(own, kind="stable")
    starts = np.searchsorted(own[rows], np.arange(count + 1))
    halves = _mapped(folder / "halves.npy", np.float16, vectors.shape)
    _scatter(vectors, own, starts, folder / "halves.npy", halves.offset, progress)  # type: ignore[attr-defined]
    in_order = _mapped(folder / "near.npy", np.int32, near.shape)
    for start, stop in pieces(0, n, BLOCK):
        in_order[start:stop] = near[rows[start:stop]]
    for name, array in (("rows", rows), ("starts", starts), ("first", _first(keys[rows], halves))):
        save_array(folder / f"{name}.npy", array)
    for array in (halves, in_order):
        array.flush()  # type: ignore[attr-defined]
    # A power cut must not leave DONE beside what is not on the disk.
    sync(folder)
    for name in ("near.part", "keys.part"):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    about = {"schema": SCHEMA, "n": n, "dim": vectors.shape[1], "cells": count}
    replace_file(folder / DONE, lambda path: path.write_text(json.dumps(about) + "\n"))
    for array in (halves, in_order):
        drop_pages(array)


def _assigned(
    folder: Path, vectors: Vectors, centres: Vectors, width: int, workers: int | None, progress: Progress | None
) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """The cells nearest to each row [n p], and a number [n] that rows of the very same vector share.

    Both are appended to as they come: of what a killed process has left at most the last block is made again.
    """
    n = len(vectors)
    factors = np.random.default_rng(0).integers(1, 2**63, vectors.shape[1], np.uint64) | np.uint64(1)
    paths = folder / "near.part", folder / "keys.part"
    with paths[0].open("ab", buffering=0) as near, paths[1].open("ab", buffering=0) as keys:
        done = min(near.tell() // (4 * width), keys.tell() // 8) // BLOCK * BLOCK
        if done and not _is_there(paths, done - BLOCK, width):
            done -= BLOCK
        near.truncate(done * 4 * width)
        keys.truncate(done * 8)
        for start, stop in pieces(done, n, BLOCK):
            block = np.ascontiguousarray(vectors[start:stop], np.float32)
            drop_pages(vectors)
            found = search(block, centres, width, workers=workers).index
            near.write(np.ascontiguousarray(found, np.int32).data)
            keys.write((block.view(np.uint32) * factors).sum(axis=1).data)
            for file in (near, keys):
                os.fsync(file.fileno())
            if progress:
                progress("cells", stop, 2 * n)
    return np.memmap(paths[0], np.int32, "r", shape=(n, width)), np.fromfile(paths[1], np.uint64)


def _is_there(paths: tuple[Path, Path], start: int, width: int) -> bool:
    """Whether the last block is on the disk, as those before it are.

    A power cut may have left zeros of its length. No row has the same cell twice, and no vector of numbers the key 0.
    """
    near = np.fromfile(paths[0], np.int32, BLOCK * width, offset=4 * width * start).reshape(-1, width)
    keys = np.fromfile(paths[1], np.uint64, BLOCK, offset=8 * start)
    return bool(keys.all()) and (width == 1 or not (near[:, 0] == near[:, 1]).any())


def _scatter(
    vectors: Vectors,
    own: NDArray[np.int32],
    starts: NDArray[np.int64],
    path: Path,
    offset: int,
    progress: Progress | None,
) -> None:
    """Write vectors [n d] as halves in the order of their cells, from `offset` of the file on.

    As many at a time as memory has room for, so that what goes to one cell is long enough to be written at once; and
    not into a map, which would read around each of these places before it writes.
    """
    n, dim = vectors.shape
    free = starts[:-1].copy()
    with path.open("r+b", buffering=0) as file:
        for start, stop in pieces(0, n, max(BLOCK, memory_budget() // 2 // (2 * dim))):
            lot = np.empty((stop - start, dim), np.float16)
            for first, last in pieces(start, stop, BLOCK):
                lot[first - start : last - start] = vectors[first:last]
                drop_pages(vectors)
                if progress:
                    progress("cells", n + last, 2 * n)
            order = np.argsort(own[start:stop], kind="stable")
            cells, bounds = np.unique(own[start:stop][order], return_index=True)
            for cell, mine in zip(cells, np.split(order, bounds[1:]), strict=True):
                file.seek(offset + int(free[cell]) * 2 * dim)
                file.write(lot[mine].data)
                free[cell] += len(mine)


def _first(keys: NDArray[np.uint64], halves: NDArray[np.float16]) -> NDArray[np.int64]:
    """Of each place [n] the first that has the very same vector."""
    order = np.argsort(keys, kind="stable")
    fresh = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] + np.uint64(1)))
    first = np.empty(len(keys), np.int64)
    first[order] = np.repeat(order[fresh], np.diff(fresh, append=len(keys)))
    again = np.flatnonzero(first != np.arange(len(keys)))
    for start, stop in pieces(0, len(again), PIECE):
        mine = again[start:stop]
        other = (halves[mine] != halves[first[mine]]).any(axis=1)
        first[mine[other]] = mine[other]
    return first


def _centres(sample: Vectors, count: int, seed: int) -> Vectors:
    faiss = faiss_for("So many images are searched by cells")
    found = faiss.Kmeans(
        sample.shape[1], count, niter=ROUNDS, spherical=True, seed=seed + 1, max_points_per_centroid=SAMPLED_PER_CELL
    )
    found.cp.min_points_per_centroid = 1
    found.train(sample)
    return _in_order(np.asarray(found.centroids, np.float32))


def _in_order(centres: Vectors) -> Vectors:
    """Order centres [c d] so that like ones lie near one another: split again and again where they spread most.

    What is near to some cells then lies in few stretches of the disk.
    """
    parts, order = [np.arange(len(centres))], []
    while parts:
        those = parts.pop()
        if len(those) < 3:
            order.append(those)
            continue
        away = centres[those] - centres[those].mean(axis=0)
        direction = away[np.argmax(np.square(away).sum(axis=1))]
        for _ in range(8):  # of power iteration: near the direction of the largest spread is near enough
            direction = away.T @ (away @ direction)
            direction /= max(float(np.linalg.norm(direction)), 1e-12)
        along = those[np.argsort(away @ direction, kind="stable")]
        parts += [along[len(along) // 2 :], along[: len(along) // 2]]
    return centres[np.concatenate(order)]


def _mapped(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        # A disk that is full says so here; it would kill the process at a page of the map.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def pieces(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """(first, last) of ranges of at most `size`."""
    for first in range(int(start), int(stop), size):
        yield first, min(first + size, int(stop))
