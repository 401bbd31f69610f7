"""Export a corpus as a Hugging Face imagefolder, Parquet or WebDataset tars.

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from copyscope.data.corpus import Corpus
from copyscope.data.folders.names import is_image_name
from copyscope.data.table import CAPTION_COLUMNS, SCHEMA
from copyscope.errors import ImageError, InputError, reason
from copyscope.files import beside, remove_stale, sync
from copyscope.imaging import images
from copyscope.imaging.formats import format_of
from copyscope.machine import Progress, cores

SHARD_BYTES = 256 << 20
ROW_GROUP_BYTES = 32 << 20
BATCH = 64  # images held and checked at a time

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
    """Write a corpus into a new folder, as an imagefolder, Parquet or WebDataset, and open it there.

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
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} has something in it.\nName a folder that is empty or not there yet")
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(out.parent, out.name)
        with beside(out, folder=True) as temporary:
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
    return Corpus.open(out)


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
        self._taken: set[str] = set()

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
        pieces = [re.sub(r'[\x00-\x1f\\:*?"<>|]', "-", piece).lstrip(".") for piece in self.corpus.ids[row].split("/")]
        name = "/".join(_short(piece) for piece in pieces if piece) or "image"
        stem, suffix = os.path.splitext(name) if is_image_name(name) else (name, _suffix(data))
        return self.free(stem, suffix)

    def free(self, stem: str, suffix: str = "") -> str:
        """`stem` and `suffix`, with a number in between if that name was given before."""
        name, number = stem + suffix, 1
        while name in self._taken:
            number += 1
            name = f"{stem}-{number}{suffix}"
        self._taken.add(name)
        return name


class _ImageFolder(_Writer):
    def __init__(self, corpus: Corpus, folder: Path, shard_bytes: int) -> None:
        super().__init__(corpus, folder, shard_bytes)
        path = folder / "metadata.jsonl"
        self._metadata = self.files.enter_context(open(path, "w", encoding="utf-8"))  # noqa: SIM115

    def add(self, row: int, data: bytes) -> None:
        name = self.file_name(row, data)
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)
        self._metadata.write(_json_line({"file_name": name, "text": self.text(row), **self.record(row, name)}))


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


LAYOUTS: dict[str, type[_Writer]] = {"imagefolder": _ImageFolder, "parquet": _Parquet, "webdataset": _WebDataset}


def _suffix(data: bytes) -> str:
    """The suffix of a file with this content, an image that can be decoded."""
    # Two kinds that have no mark of their own there: AVIF of another brand, and BigTIFF.
    return _SUFFIXES.get(format_of(data[:16]), ".avif" if data[4:8] == b"ftyp" else ".tif")


def _short(piece: str) -> str:
    """Part of a path in at most 200 bytes, of the 255 that file systems allow."""
    return piece.encode()[:200].decode(errors="ignore")


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
