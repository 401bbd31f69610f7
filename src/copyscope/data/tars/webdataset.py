"""Read images inside WebDataset tars: samples by key, captions, neighbours in one piece."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

from copyscope.data.captions.embedded import made_with
from copyscope.data.captions.tables import decoded
from copyscope.data.captions.text_files import SIDECAR_BYTES
from copyscope.data.folders.names import TEXT_SUFFIXES, is_image_name, looks_like, masks_of, stem_of
from copyscope.data.shards import Indexed, Piece
from copyscope.data.storage import CUT_SHORT, Storage
from copyscope.data.table import captions_of, distinct, extras_of, texts
from copyscope.documents import parse_json
from copyscope.errors import ImageError, reason

from .compressed import open_tar, tar_span
from .headers import TarDamage, members

_TAR_BLOCK = 1 << 20  # read at once while headers are looked for: most samples are smaller, a request costs as much
_TAR_PIECE = 8 << 20  # neighbours in a tar are read together up to this size,
_TAR_GAP = 64 << 10  # unless more than this lies between them, which nobody wants
_IMAGES = (".image", ".img")
_TEXTS = frozenset((*TEXT_SUFFIXES, ".json", ".cls"))
_INNER = frozenset((".caption", ".captions", ".prompt", ".text", ".txt"))
_SAMPLE = 32  # images whose headers decide whether those of a tar are looked into for prompts


@dataclasses.dataclass
class _Part:
    """A member of a sample.

    Args:
        stem: its name without its suffix.
        place: (offset, size) of an image, else None.
    """

    stem: str
    suffix: str
    place: tuple[int, int] | None = None
    text: str = ""
    error: str = ""


def index_tar(storage: Storage, path: str, name: str) -> Indexed:
    """The samples of one tar in one pass over its headers, as far as it can be read."""
    found = Indexed()
    parts: dict[str, _Part] = {}
    try:
        with open_tar(storage, path, _TAR_BLOCK) as file:
            size = file.seek(0, 2)
            file.seek(0)
            found.damage = _scan_tar(file, size, name, parts, found)
            masks = masks_of([member for member, part in parts.items() if part.place], parts)
            found.passed += [(f"{name}/{mask}", "a mask or conditioning image of another image") for mask in masks]
            samples: dict[str, dict[str, _Part]] = {}
            for member, part in parts.items():
                if member not in masks:
                    samples.setdefault(_key(member), {})[member] = part
            for key, sample in samples.items():
                _add_rows(path, name, key, sample, found)
            if storage.local:
                _read_headers(file, found)
    except Exception as error:
        found.damage = found.damage or reason(error)
    return found


def _scan_tar(file: Any, size: int, tar: str, parts: dict[str, _Part], found: Indexed) -> str:
    """Fills `parts` by name; gives the damage found, or ""."""
    try:
        for name, offset, length in members(file, size):
            name = name.removeprefix("./")
            base = posixpath.basename(name)
            stem, suffix = posixpath.splitext(name)
            suffix = suffix.lower()
            if not base.partition(".")[0]:
                if looks_like(base):
                    found.passed.append((f"{tar}/{name}", "hidden"))
                continue
            # As `tar` unpacks it: of members of one name the last is there.
            if name in parts:
                found.passed.append((f"{tar}/{name}", "an earlier member of the same name"))
            part = parts[name] = _Part(stem, suffix)
            if offset + length > size:
                return "truncated"
            if is_image_name(base) or suffix in _IMAGES:
                part.place = (offset, length)
            elif suffix in _TEXTS and length > SIDECAR_BYTES:
                part.error = f"too large: {base[-80:]} has {length:,} bytes, and {SIDECAR_BYTES:,} are the most"
            elif suffix in _TEXTS:
                file.seek(offset)
                part.text = decoded(file.read(length)).strip()
                inner, before = posixpath.splitext(stem)
                if before.lower() in _INNER or before.lower().endswith(("caption", "captions")):
                    part.stem = inner
            elif looks_like(base):
                found.passed.append((f"{tar}/{name}", "neither an image nor captions by its name"))
    except TarDamage as error:
        return str(error)
    return ""


def _key(name: str) -> str:
    """What members of a sample have in common: the name up to the first dot behind the folder, as WebDataset has it."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _add_rows(path: str, tar: str, key: str, sample: dict[str, _Part], found: Indexed) -> None:
    """The rows of one sample, one an image: a dot in a name may be part of it, and a sample may have several images."""
    images = {name: part for name, part in sample.items() if part.place}
    said = [part for part in sample.values() if part.suffix in _TEXTS]
    if not images:
        found.rows.append(_row(key, "", said, found) | {"error": "no image in this sample"})
        return
    stems = [part.stem for part in images.values()]
    for name, part in sample.items():
        # `0.txt`, but not `0.license.txt`; `0.de.caption.txt` says what it is.
        plain = part.suffix in (".txt", ".text") and part.stem == stem_of(name) and part.stem not in images
        if plain and not any(_is_below(stem, part.stem) for stem in stems):
            said.remove(part)
            found.passed.append((f"{tar}/{name}", "a text that is not named as a caption"))
    whole = len(set(stems)) == len(stems)
    for name, part in images.items():
        mine = [text for text in said if len(images) == 1 or part.stem in _owners(text.stem, stems)]
        id = part.stem if whole else name
        if len(images) == 1 and not all(_is_below(text.stem, part.stem) for text in sample.values()):
            id = key
        offset, size = part.place or (0, 0)
        found.rows.append(_row(id, f"{path}#bytes={offset}+{size}", mine, found))


def _owners(stem: str, stems: list[str]) -> list[str]:
    """The images that a text belongs to: that of its name, else all whose names go on behind it."""
    while True:
        if owners := [each for each in stems if _is_below(each, stem)]:
            return [stem] if stem in owners else owners
        shorter = stem_of(stem)
        if shorter == stem:
            return stems
        stem = shorter


def _is_below(name: str, stem: str) -> bool:
    return name == stem or name.startswith(stem + ".")


def _row(id: str, place: str, said: Iterable[_Part], found: Indexed) -> dict[str, Any]:
    captions: list[str] = []
    extras: dict[str, Any] = {}
    error = None
    # The whole text is one caption; texts come before JSON.
    for part in sorted(said, key=lambda part: part.suffix == ".json"):
        error = error or part.error or None
        if part.suffix == ".cls":
            extras["class"] = part.text
            continue
        if part.suffix == ".json":
            record = _json(part.text)
            more = captions_of(record) if isinstance(record, dict) else texts(record)
            if isinstance(record, dict):
                extras = extras_of(record, without=["key"]) | extras
        else:
            more = texts(part.text)
        if more:
            found.sources[part.suffix] += 1
        captions += more
    return {"id": id, "image": place or None, "captions": distinct(captions), "error": error, "extras": extras}


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def _read_headers(file: Any, found: Indexed) -> None:
    """Prompts that generators wrote into the images, where the first images have any."""
    rows = [row for row in found.rows if row["image"] and not row["captions"]]

    def made(row: dict[str, Any]) -> dict[str, Any]:
        offset, _, size = row["image"].rpartition("#bytes=")[2].partition("+")
        return made_with(file, int(offset), int(size))

    if not any(made(row) for row in itertools.islice(rows, _SAMPLE)):
        return
    for row in rows:
        if columns := made(row):
            row["captions"] = texts(columns.get("prompt"))
            row["extras"] = columns | row["extras"]
            found.sources["inside the image"] += 1


def tar_pieces(storage: Storage, path: str, places: list[tuple[int, int]]) -> Iterator[Piece]:
    """Many images of one tar by (offset, size) in bytes, ascending: neighbours are one piece, read at once."""
    first = 0
    for number in range(1, len(places) + 1):
        start, end = places[first][0], sum(places[number - 1])
        if number < len(places):
            offset, size = places[number]
            if offset - end <= _TAR_GAP and offset + size - start <= _TAR_PIECE:
                continue
        run, first = places[first:number], number
        yield len(run), end - start, functools.partial(_read_run, storage, path, run)


def _read_run(storage: Storage, path: str, run: list[tuple[int, int]]) -> Iterator[bytes | ImageError]:
    start = run[0][0]
    try:
        data = tar_span(storage, path, start, sum(run[-1]) - start)
    except ImageError as error:
        yield from [error] * len(run)
        return
    for offset, size in run:
        whole = offset + size - start <= len(data)
        yield data[offset - start : offset + size - start] if whole else ImageError(CUT_SHORT)
