"""Export a corpus as a Hugging Face imagefolder, Parquet, WebDataset tars or a folder for kohya's scripts.

Image files are copied byte for byte, and `Corpus.open` reads back what was written.
"""

from __future__ import annotations

import abc
import contextlib
import io
import itertools
import json
import math
import os
import re
import tarfile
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from copyscope.data.corpus import Corpus
from copyscope.data.folders.names import is_image_name
from copyscope.data.folders.splits import ALL, REGULARISATION
from copyscope.data.table import CAPTION_COLUMNS, SCHEMA, texts
from copyscope.errors import ImageError, InputError, reason
from copyscope.files import remove_stale, sync, temporary_path
from copyscope.imaging import images
from copyscope.imaging.formats import format_of
from copyscope.machine import Progress, cores

SHARD_BYTES = 256 << 20
ROW_GROUP_BYTES = 32 << 20
BATCH = 64  # images held and checked at a time
MOST_REPEATS = 100

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp", "GIF": ".gif", "TIFF": ".tif", "BMP": ".bmp"}
_SUFFIXES |= {"AVIF": ".avif", "PPM": ".ppm"}


def write(
    corpus: Corpus,
    out: str | os.PathLike[str],
    layout: str = "imagefolder",
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Corpus:
    """Write a corpus into a new folder, as an imagefolder, Parquet, WebDataset or kohya's folders, and open it there.

    Captions, weight and all further columns go along, the first caption also alone, as `text` or KEY.txt. An id that
    the layout cannot hold (a file has a suffix, a key no dots) is changed, and kept as `original_id` unless there is
    such a column. Images that cannot be read or decoded are left out and listed in `skipped.jsonl`, with their errors.

    Args:
        corpus: the images.
        out: the new folder.
        layout: "imagefolder", image files and `metadata.jsonl`; "parquet", the column `image` as Hugging Face has it,
            {bytes, path}; "webdataset", tars of KEY.jpg (or what the image is), KEY.txt and KEY.json.
        shard_bytes: a shard has at most so many bytes of images, or one image.
        progress: called with a label, the number done and the total.

    Returns:
        The corpus in the folder.

    Raises:
        InputError: `out` has something in it, no image can be read, or the disk is full; then nothing is left.
    """
    if layout not in LAYOUTS:
        raise InputError(f"No layout {layout!r}.\nThere are: {', '.join(LAYOUTS)}")
    out = Path(out)
    try:
        refuse_full(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(out.parent, out.name)
        with temporary_path(out, folder=True) as temporary:
            work = temporary / "out"
            work.mkdir()
            with contextlib.closing(LAYOUTS[layout](corpus, work, shard_bytes)) as writer:
                skipped = _copy(corpus, writer, progress)
            if len(skipped) == len(corpus):
                why = f": {skipped[0]['error']}" if skipped else ""
                raise InputError(
                    f"None of {len(corpus)} images in {corpus.origin} can be read{why}.\nName other images"
                )
            if skipped:
                (work / "skipped.jsonl").write_text("".join(map(_json_line, skipped)), encoding="utf-8")
            sync(work)
            if out.exists():
                out.rmdir()
            os.replace(work, out)
    except OSError as error:
        raise InputError(f"Cannot write into {out}: {reason(error)}.\nMake room, or name another folder") from None
    return Corpus.open(out, split=ALL)


def _copy(corpus: Corpus, writer: _Writer, progress: Progress | None) -> list[dict[str, str]]:
    """Gives `writer` all images that can be decoded; returns id and error of the others."""
    skipped = []
    found = corpus.stream()
    done = 0
    with ThreadPoolExecutor(cores()) as pool:
        while batch := list(itertools.islice(found, BATCH)):
            for (row, data), error in zip(batch, pool.map(_damage, (data for _, data in batch)), strict=True):
                if isinstance(data, bytes) and not error:
                    writer.add(row, data)
                else:
                    skipped.append({"id": corpus.ids[row], "error": corpus.discreet(row, error)})
            done += len(batch)
            if progress:
                progress("write", done, len(corpus))
    return skipped


def _damage(data: bytes | ImageError) -> str:
    """Why the image in a file cannot be used; "" if it can."""
    try:
        if isinstance(data, ImageError):
            raise data
        images.decode(data)
    except ImageError as error:
        return str(error)
    return ""


class _Writer(abc.ABC):
    """Writes one layout into an empty folder: `add` each image, then `close`."""

    def __init__(self, corpus: Corpus, folder: Path, shard_bytes: int) -> None:
        self.corpus, self.folder, self.shard_bytes = corpus, folder, shard_bytes
        self.extras = [name for name in corpus.table.column_names if name not in (*SCHEMA.names, "file_name")]
        self.files = contextlib.ExitStack()
        self._files: set[str] = set()
        self._folders: set[str] = set()

    @abc.abstractmethod
    def add(self, row: int, data: bytes) -> None: ...

    def close(self) -> None:
        self.files.close()

    def text(self, row: int) -> str:
        """The first caption, "" where there is none: trainers want a text of every image."""
        return next(iter(self.corpus.captions[row]), "")

    def record(self, row: int, id: str) -> dict[str, Any]:
        """What is known of a row but its image, by name; `id` is what it will be called."""
        values = self.corpus.table.slice(row, 1).select(["captions", "weight", *self.extras]).to_pylist()[0]
        old = self.corpus.ids[row]
        changed = {} if id == old else {"original_id": old}
        return changed | {_column(name): value for name, value in values.items()}

    def file_name(self, row: int, data: bytes) -> str:
        """The id of a row as a path below a folder, with the suffix of an image, given to no other row."""
        return self.free(*self.stem_and_suffix(row, data))

    def stem_and_suffix(self, row: int, data: bytes) -> tuple[str, str]:
        """The id of a row as a path below a folder, and the suffix of an image."""
        name = "/".join(filter(None, map(_file_system_name, self.corpus.ids[row].split("/")))) or "image"
        return os.path.splitext(name) if is_image_name(name) else (name, _suffix(data))

    def free(self, stem: str, suffix: str = "") -> str:
        """`stem` and `suffix`, with a number in between if that name was given before, to a file or to a folder.

        Names that differ in case or in how Unicode spells them are one file on some disks.
        """
        *folders, base = stem.split("/")
        path = ""
        for folder in folders:
            path = self._unused(f"{path}{folder}", "", self._files) + "/"
            self._folders.add(_one_file(path.rstrip("/")))
        name = self._unused(path + base, suffix, self._files, self._folders)
        self._files.add(_one_file(name))
        return name

    @staticmethod
    def _unused(stem: str, suffix: str, *taken: set[str]) -> str:
        name, number = stem + suffix, 1
        while any(_one_file(name) in names for names in taken):
            number += 1
            name = f"{stem}-{number}{suffix}"
        return name


class _ImageFolder(_Writer):
    def __init__(self, corpus: Corpus, folder: Path, shard_bytes: int) -> None:
        super().__init__(corpus, folder, shard_bytes)
        path = folder / "metadata.jsonl"
        self._metadata = self.files.enter_context(open(path, "w", encoding="utf-8"))  # noqa: SIM115

    def add(self, row: int, data: bytes) -> None:
        self.put(row, self.file_name(row, data), data)

    def put(self, row: int, name: str, data: bytes) -> None:
        """Write the image of a row under a name, and its record."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)
        self._metadata.write(_json_line({"file_name": name, "text": self.text(row), **self.record(row, name)}))


class _Kohya(_ImageFolder):
    """Folders of image files for kohya's sd-scripts.

    They look into each folder, not below it, and draw its images as often as the number in its name says.
    Regularisation images must not be trained as the others are: where there are any, they lie in `reg/`, the others in
    `img/`.
    """

    def __init__(self, corpus: Corpus, folder: Path, shard_bytes: int) -> None:
        super().__init__(corpus, folder, shard_bytes)
        self._repeats = repeats(corpus.table["weight"].to_pylist())
        names = corpus.table.column_names
        self._classes = corpus.table["class"].to_pylist() if "class" in names else [None] * len(corpus)
        kinds = corpus.table["duplication"].to_pylist() if "duplication" in names else [None] * len(corpus)
        self._varies = [kind == "partial" for kind in kinds]
        splits = corpus.table["split"].to_pylist() if "split" in names else []
        regular = REGULARISATION in splits
        self._tops = [("reg/" if split == REGULARISATION else "img/") if regular else "" for split in splits]

    def add(self, row: int, data: bytes) -> None:
        stem, suffix = self.stem_and_suffix(row, data)
        kind = _file_system_name(" ".join(texts(self._classes[row])).replace("/", "-")) or "image"
        # Images of one stem would share their NAME.txt.
        top = self._tops[row] if self._tops else ""
        place = self.free(f"{top}{self._repeats[row]}_{kind}/{stem.rpartition('/')[2]}")
        self.put(row, place + suffix, data)
        said = [" ".join(caption.split()) for caption in self.corpus.captions[row]]
        said = said if self._varies[row] else said[:1]
        if any(said):  # without a file the class is the caption
            (self.folder / f"{place}.txt").write_text("\n".join(said) + "\n", encoding="utf-8")

    def text(self, row: int) -> str:
        # A caption is a line there.
        return " ".join(super().text(row).split())

    def record(self, row: int, id: str) -> dict[str, Any]:
        found = super().record(row, id)
        return found | {"captions": [" ".join(caption.split()) for caption in found["captions"] or []]}


class _WebDataset(_Writer):
    _tar: tarfile.TarFile | None = None
    _size = _number = 0

    def add(self, row: int, data: bytes) -> None:
        if self._tar is None or self._size + len(data) > self.shard_bytes:
            self.files.close()
            path = self.folder / f"{self._number:05d}.tar"
            self._tar = self.files.enter_context(tarfile.open(path, "w"))  # noqa: SIM115
            self._number, self._size = self._number + 1, 0
        self._size += len(data)
        folder, _, base = self.file_name(row, data).rpartition("/")
        # The key ends at the first dot.
        base = os.path.splitext(base)[0].replace(".", "_")
        key = self.free(f"{folder}/{base}" if folder else base)
        record = _json_line(self.record(row, key))
        for suffix, content in ((_suffix(data), data), (".txt", self.text(row).encode()), (".json", record.encode())):
            member = tarfile.TarInfo(key + suffix)
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))


class _Parquet(_Writer):
    def __init__(self, corpus: Corpus, folder: Path, shard_bytes: int) -> None:
        super().__init__(corpus, folder, shard_bytes)
        kinds = {
            "id": pa.string(),
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "text": pa.string(),
        }
        for name in ("captions", "weight", *self.extras):
            kinds[_column(name)] = corpus.table.schema.field(name).type
        # By this `datasets` knows that the struct is an image.
        known = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
        self._schema = pa.schema(kinds, {"huggingface": known})
        self._pending: list[dict[str, Any]] = []
        self._held = self._size = 0
        self._shards: list[Path] = []
        self._file: pq.ParquetWriter | None = None

    def add(self, row: int, data: bytes) -> None:
        if self._file is None or self._size + len(data) > self.shard_bytes:
            self._flush()
            self.files.close()
            self._shards.append(self.folder / f"{len(self._shards)}.parquet")
            self._file = self.files.enter_context(pq.ParquetWriter(self._shards[-1], self._schema))
            self._size = 0
        self._size += len(data)
        self._held += len(data)
        image = {"bytes": data, "path": self.file_name(row, data)}
        id = self.corpus.ids[row]
        self._pending.append({"id": id, "image": image, "text": self.text(row), **self.record(row, id)})
        if self._held >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        super().close()
        for number, shard in enumerate(self._shards):
            shard.rename(self.folder / f"train-{number:05d}-of-{len(self._shards):05d}.parquet")

    def _flush(self) -> None:
        if self._file is not None and self._pending:
            self._file.write_table(pa.Table.from_pylist(self._pending, self._schema))
        self._pending, self._held = [], 0


LAYOUTS: dict[str, type[_Writer]] = {
    "imagefolder": _ImageFolder,
    "kohya": _Kohya,
    "parquet": _Parquet,
    "webdataset": _WebDataset,
}
_HINTS = {
    "imagefolder": ("text", "captions", "weight"),
    "kohya": ("NAME.txt", "the lines of NAME.txt (enable_wildcard)", "REPEATS of the folder REPEATS_CLASS"),
    "parquet": ("text", "captions", "weight"),
    "webdataset": ("txt", "json: captions", "json: weight"),
}


def refuse_full(out: Path) -> None:
    """Check that a data set can be written at a place.

    Args:
        out: a folder to be made, or an empty one.

    Raises:
        InputError: something is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"The folder {out} is not empty.\nName a folder that is empty or not there yet")


def reading_hint(layout: str) -> dict[str, str]:
    """What a trainer reads of a layout.

    Args:
        layout: one of LAYOUTS.

    Returns:
        `caption`: the column or file of the one caption. `captions`: that of all, for images planted as partial
        duplicates. `weight`: how often an image is to be drawn.
    """
    return dict(zip(("caption", "captions", "weight"), _HINTS[layout], strict=True))


def repeats(weights: Sequence[float]) -> list[int]:
    """Whole numbers [n] in the proportion of weights [n], the smallest there are.

    Where a weight of 1 would become more than MOST_REPEATS they are rounded, to at least 1 for any weight above 0.
    """
    least = Fraction(1, MOST_REPEATS)
    shares = {weight: Fraction(weight).limit_denominator(MOST_REPEATS) or least * (weight > 0) for weight in weights}
    scale = min(math.lcm(*(share.denominator for share in shares.values())), MOST_REPEATS)
    found = {weight: max(round(share * scale), weight > 0) for weight, share in shares.items()}
    common = max(math.gcd(*found.values()), 1)
    return [found[weight] // common for weight in weights]


def _suffix(data: bytes) -> str:
    """The suffix of a file with this content, an image that can be decoded."""
    # Two kinds that have no mark of their own there: AVIF of another brand, and BigTIFF.
    return _SUFFIXES.get(format_of(data[:16]), ".avif" if data[4:8] == b"ftyp" else ".tif")


def _file_system_name(piece: str) -> str:
    """Part of a path as every file system takes it.

    Without what some refuse, no dot before it, in at most 200 bytes of the 255 that they allow.
    """
    plain = re.sub(r'[\x00-\x1f\\:*?"<>|]', "-", piece).lstrip(".")
    return plain.encode()[:200].decode(errors="ignore")


def _one_file(name: str) -> str:
    """The same for all names that are one file on disks that ignore case and how Unicode spells a letter."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _column(name: str) -> str:
    """What a column is called in the copy: one named like captions, yet none of them, would be read as captions."""
    own = name in SCHEMA.names
    return name if own or name.lower() not in CAPTION_COLUMNS else f"listed_{name}"


def _json_line(record: dict[str, Any]) -> str:
    """One line of standard JSON, which has no word for what is not a number."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
    return json.dumps(plain, ensure_ascii=False, default=str) + "\n"
