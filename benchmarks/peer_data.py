"""The vectors or the files that benchmarks/peers.py compares, and what is true of them.

    python benchmarks/peer_data.py vectors|files N FOLDER

truth.npz: twins [m 2], the rows of each planted pair; kind [m], how it was made, by its place among KINDS; family [n],
rows of different families are no near-duplicates.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np

from copyscope.data import assets
from copyscope.imaging import images
from peers import COPIES, KINDS, PLAIN, TILE
from vectors import SAME, made
from worlds import alter


def main() -> None:
    what, n, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    twins, kind, family = (of_vectors if what == "vectors" else of_files)(n, folder)
    np.savez(folder / "truth.npz", twins=twins, kind=kind, family=family)


def of_vectors(n: int, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, twins = made(np.random.default_rng(0), folder / "vectors.npy", n)
    family = np.arange(n)
    family[twins[:, 1]] = twins[:, 0]
    family[-SAME:] = n - 1
    return twins, np.zeros(len(twins), np.int64), family


def of_files(n: int, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Files 000000.jpg and on: emoji and tiles of photographs in turn, the last of them altered copies of others."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    sources = [*emoji(), *tiles()]
    if len(sources) < n - n // COPIES:
        raise SystemExit(f"There are {len(sources)} pictures, too few for {n} files")
    order = rng.permutation(len(sources))[: n - n // COPIES]
    names = {name: place for place, name in enumerate(sorted({name for _, name in sources}))}
    copied = np.sort(rng.permutation(len(order))[: n // COPIES])
    kind_of = {int(row): place % len(KINDS) for place, row in enumerate(copied)}
    family = np.array([names[sources[source][1]] for source in order] + [0] * len(copied))
    twins, kinds = [], []
    for row, source in enumerate(order):
        picture = tile(*sources[source][0])
        data = images.encode(picture, "jpeg", 92)
        write(folder, row, data)
        if row in kind_of:
            other, kind = len(order) + len(twins), kind_of[row]
            copy = data if KINDS[kind] == "exact" else images.encode(alter(picture, KINDS[kind], rng), "jpeg", 92)
            write(folder, other, copy)
            family[other] = family[row]
            twins.append((row, other))
            kinds.append(kind)
    return np.array(twins), np.array(kinds), family


def write(folder: Path, number: int, data: bytes) -> None:
    (folder / "images" / f"{number:06d}.jpg").write_bytes(data)


Place = tuple[Path, int, int]


def emoji() -> list[tuple[Place, str]]:
    """Whole files, and the family of each: skin tones and genders of one emoji are one."""
    root = assets.fetch("fluent-emoji")
    rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return [((root / row["file_name"], -1, -1), row["base"]) for row in rows]


def tiles() -> list[tuple[Place, str]]:
    """Tiles of photographs by their upper left corners; those of one photograph are a family."""
    found = []
    for path in sorted(assets.fetch("photographs").rglob("*.jpg")):
        height, width = photograph(path).shape[:2]
        found += [
            ((path, top, left), path.stem)
            for top in range(0, height - TILE + 1, TILE)
            for left in range(0, width - TILE + 1, TILE)
            if tile(path, top, left).mean(axis=2).std() >= PLAIN
        ]
    return found


def tile(path: Path, top: int, left: int) -> np.ndarray:
    if top < 0:
        return images.decode(path)
    return np.ascontiguousarray(photograph(path)[top : top + TILE, left : left + TILE])


@functools.cache
def photograph(path: Path) -> np.ndarray:
    return images.decode(path)


if __name__ == "__main__":
    main()
