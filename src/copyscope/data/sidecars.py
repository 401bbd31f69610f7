"""Metadata beside images: Hugging Face metadata, captions JSON, text files; and writing `metadata.jsonl`."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from copyscope.documents import MAX_LINE, parse_json
from copyscope.errors import InputError, reason
from copyscope.files import NOT_REGULAR

from .storage import OUTSIDE, Listing, Storage, join, within
from .table import captions_of, clean, distinct, extras_of, texts

_IMAGES = ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .avif .ppm .pgm .pbm .pnm"
IMAGE_SUFFIXES = frozenset(_IMAGES.split())
"""Files that are taken for images by their name; what they are is seen from their content when they are read."""

# Files that go with images but are none. Anything else is a row, and gets an error if it turns out to be no image.
_OTHERS = """
.txt .caption .json .jsonl .ndjson .csv .tsv .parquet .arrow .feather .md .rst .yaml .yml .toml .ini .cfg .npy .npz
.safetensors .ckpt .pt .pth .bin .onnx .h5 .pkl .log .html .htm .css .js .py .sh .ipynb .xml .pdf .lock .idx .db
.zip .tar .gz .tgz .bz2 .xz .zst .7z .rar .sha256 .md5 .part .tmp
license readme notice makefile changelog checksums sha256sums thumbs.db desktop.ini
"""
_NOT_IMAGES = frozenset(_OTHERS.split())
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SIDECAR_BYTES = 1 << 20
"""Of a text file that goes with one image (1 MiB)."""
_MOST_FOLDERS = 64  # within one another, of a path that captions name
_FILE_COLUMNS = ("file_name", "file", "path", "image")


@dataclasses.dataclass
class Annotations:
    """Captions and further columns of images, by path relative to the folder, and listed files that are not there.

    Attributes:
        captions: path -> captions.
        extras: path -> further columns.
        absent: path -> why the listed file is not there.
        outside: files that lie elsewhere.
        inside_only: those are not taken.
        kind: of the sidecars.
    """

    captions: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    extras: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    outside: set[str] = dataclasses.field(default_factory=set)
    inside_only: bool = False
    kind: str = "folder"

    def add(self, path: str, captions: list[str], extras: dict[str, Any]) -> None:
        """Add a record for `path`: its captions are added, its other values taken where there are none yet."""
        self.captions[path] = distinct(self.captions.get(path, []) + captions)
        if extras:
            self.extras[path] = extras | self.extras.get(path, {})

    def seen(self, kind: str) -> None:
        """Note the kind of sidecar that was read; the first counts."""
        if self.kind == "folder":
            self.kind = kind


def is_image_name(path: str) -> bool:
    """Whether a file is an image by its name."""
    return posixpath.splitext(path)[1].lower() in IMAGE_SUFFIXES


def may_be_image(path: str) -> bool:
    """Whether a file is an image by its name, or has a name that tells nothing."""
    name = posixpath.basename(path).lower()
    return posixpath.splitext(name)[1] not in _NOT_IMAGES and name not in _NOT_IMAGES


def read_sidecars(storage: Storage, root: str, listing: Listing, images: list[str], inside_only: bool) -> Annotations:
    """Read all sidecars in and beside the folder `root` about its images."""
    about = Annotations(inside_only=inside_only)
    for path in listing.files:
        if posixpath.basename(path) in _METADATA:
            read_metadata(storage, root, path, listing, about)
    stems = {posixpath.splitext(path)[0] for path in images}
    for path in listing.files:
        if path.endswith(".json") and "/" not in path and path[: -len(".json")] not in stems:
            named = "caption" in path.lower()
            listed = _captions_json(storage, join(root, path), required=named)
            if listed and (named or _mostly_images(listed)):
                match_captions(root, path, listed, images, about)
    _read_parent(storage, root, images, about)
    _read_texts(storage, root, listing, images, about)
    return about


def read_metadata(storage: Storage, root: str, path: str, listing: Listing, about: Annotations) -> None:
    """Read the records of a metadata table at `path`, which name files relative to the table's own folder."""
    column = ""
    for where, record in records(storage, join(root, path)):
        if not _is_file_name(record.get(column)):
            column = next((name for name in _FILE_COLUMNS if _is_file_name(record.get(name))), "")
        if not column:
            raise InputError(
                f"{join(root, path)}, {where}: no file name.\n"
                f"Each record names its image in one of: {', '.join(_FILE_COLUMNS)}"
            )
        listed = clean(str(record[column]))
        name = join(posixpath.dirname(path), listed)
        if name not in listing.files and "\\" in listed:
            name = join(posixpath.dirname(path), listed.replace("\\", "/"))
        whole = join(root, name)
        if within(whole, root) and whole != root:
            name = whole[len(root.rstrip("/")) + 1 :] if root else whole
        if name.startswith(("../", "/")):
            why = _refused_outside(storage, whole, about.inside_only)
            if why is None:
                about.outside.add(name)
            else:
                about.absent[name] = why or f"listed in {posixpath.basename(path)}, but not there"
        elif name not in listing.files and name not in listing.unreadable:
            about.absent[name] = f"listed in {posixpath.basename(path)}, but not there"
        about.add(name, captions_of(record), extras_of(record, without=[column]))
    about.seen("imagefolder")


def _refused_outside(storage: Storage, path: str, inside_only: bool) -> str | None:
    """Why a file outside the folder that lists it is not taken: "" where it is not there, None where it is taken."""
    if not storage.local:
        return f"{OUTSIDE}, and only a folder on a disk may list such files"
    if inside_only:
        return OUTSIDE
    try:
        kind = storage.kind(path)
    except (OSError, ValueError) as error:
        return reason(error)
    return {"file": None, "": ""}.get(kind, NOT_REGULAR)


def records(storage: Storage, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of a metadata table: .jsonl, .csv, .tsv or .parquet.

    Raises:
        InputError: it cannot be read; names the line.
    """
    suffix = posixpath.splitext(path)[1].lower()
    try:
        with storage.open(path) as file:
            if suffix == ".parquet":
                yield from _parquet_records(path, file, storage.local)
            else:
                text = io.TextIOWrapper(file, "utf-8-sig", "replace", newline="" if suffix != ".jsonl" else None)
                yield from _csv_records(path, text, suffix) if suffix in (".csv", ".tsv") else _json_lines(path, text)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"Cannot read {path}: {reason(error)}.\nRepair the file, or move it elsewhere") from None


def match_captions(root: str, path: str, listed: dict[str, list[str]], images: list[str], about: Annotations) -> None:
    """Match captions by path (as DCR's `captions.json`) to the images whose paths share the longest end with theirs.

    Such files keep the paths of the machine they were made on, as "./data/laion/train/images/0001.jpg"; so a key
    belongs to the one image that shares the longest end with it. A key with no such image becomes a row with an error.
    """
    by_end = _ends(root, images)
    best: dict[str, tuple[int, str]] = {}
    failed: dict[str, str] = {}
    for key in listed:
        parts = _parts(key)[-_MOST_FOLDERS:]
        image, depth = None, 0
        for depth in range(len(parts), 0, -1):
            if (end := "/".join(parts[-depth:])) in by_end:
                image = by_end[end]
                break
        else:
            failed[key] = f"listed in {path}, but not there"
            continue
        if image is None:
            failed[key] = f"listed in {path}, but several images have that name"
        elif image in best and best[image][0] >= depth:
            failed[key] = f"listed in {path}, but not there"
        else:
            if image in best:
                failed[best[image][1]] = f"listed in {path}, but not there"
            best[image] = (depth, key)
    for image, (_, key) in best.items():
        about.add(image, listed[key], {})
    for key, why in failed.items():
        name = "/".join(_parts(key)) or key
        about.absent[name] = why
        about.add(name, listed[key], {})
    about.seen("captions json")


def read_captions_json(storage: Storage, path: str) -> dict[str, list[str]]:
    """Read a captions JSON: an object from image path to a caption or a list of them.

    Raises:
        InputError: it is none.
    """
    listed = _captions_json(storage, path, required=True)
    if not listed:
        raise InputError(
            f"{path} lists no captions.\nIt should be an object from image path to a list of captions: "
            '{"images/0001.jpg": ["a dog", ...]}'
        )
    return listed


def _captions_json(storage: Storage, path: str, *, required: bool) -> dict[str, list[str]] | None:
    """The captions in a JSON file; None if it holds something else, unless it is `required` to be JSON at all."""
    try:
        found = parse_json(storage.text_bytes(path).decode("utf-8-sig", "replace"))
    except ValueError as error:
        if not required:
            return None
        raise InputError(f"Cannot read {path}: {reason(error)}.\nRepair the file, or move it elsewhere") from None
    if not isinstance(found, dict) or not all(_is_texts(value) for value in found.values()):
        return None
    return {key: texts(value) for key, value in found.items()}


def _is_file_name(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or (isinstance(value, int) and not isinstance(value, bool))


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))


def _mostly_images(listed: dict[str, list[str]]) -> bool:
    return sum(map(is_image_name, listed)) * 2 > len(listed)


def _ends(root: str, images: list[str]) -> dict[str, str | None]:
    """Every end of every image's path, from its name alone up to two folders above `root`; None if several have it."""
    above = _parts(root)[-2:]
    by_end: dict[str, str | None] = {}
    for image in images:
        parts = above + image.split("/")
        end = ""
        for part in reversed(parts):
            end = f"{part}/{end}" if end else part
            by_end[end] = None if end in by_end else image
    return by_end


def _parts(path: str) -> list[str]:
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]


def _read_parent(storage: Storage, root: str, images: list[str], about: Annotations) -> None:
    """A captions JSON beside the folder. It may speak of other folders too: only what names this one is taken."""
    parent, _, own_name = root.rstrip("/").rpartition("/")
    if not parent or not own_name:
        return
    for name in storage.names(parent):
        if not (name.endswith(".json") and "caption" in name.lower()):
            continue
        if storage.kind(join(parent, name)) != "file":
            continue
        listed = _captions_json(storage, join(parent, name), required=False) or {}
        ours = {key: value for key, value in listed.items() if own_name in _parts(key)[:-1]}
        if not ours:
            bare = {key: value for key, value in listed.items() if len(_parts(key)) == 1}
            known = {posixpath.basename(image) for image in images}
            ours = bare if sum(key in known for key in bare) * 2 > len(bare) else {}
        if ours:
            match_captions(root, name, ours, images, about)


def _read_texts(storage: Storage, root: str, listing: Listing, images: list[str], about: Annotations) -> None:
    """`NAME.txt` or `NAME.caption` beside an image NAME.*, as kohya's scripts keep them: every line is a caption."""
    owners: dict[str, list[str]] = {}
    sizes: dict[str, int | None] = {}
    for image in images:
        stem = posixpath.splitext(image)[0]
        for path in (f"{stem}.txt", f"{stem}.caption"):
            if path in listing.files:
                owners.setdefault(join(root, path), []).append(image)
                sizes[join(root, path)] = listing.files[path]
    for path, data in storage.read_all(sizes, SIDECAR_BYTES):
        large = len(data) > SIDECAR_BYTES
        lines = [] if large else texts(data.decode("utf-8-sig", "replace").splitlines())
        for image in owners[path]:
            about.add(image, lines, {})
            if large:
                about.absent[image] = (
                    f"too large: {posixpath.basename(path)[-80:]} has more than {SIDECAR_BYTES:,} bytes"
                )
    if owners:
        about.seen("captions txt")


def _json_lines(path: str, text: io.TextIOWrapper) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(path, text), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({reason(error)}).\nRepair or remove the line") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: not a JSON object.\nEach line is one image's record: {{...}}")
        yield f"line {number}", record


def _lines(path: str, text: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a table, none of which may be longer than MAX_LINE: a file may be one line of any length."""
    number = 0
    while line := text.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise InputError(f"{path}, line {number}: more than {MAX_LINE:,} characters.\nRepair or remove the line")
        yield line


def _csv_records(path: str, text: io.TextIOWrapper, suffix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    table = csv.DictReader(_lines(path, text), delimiter="\t" if suffix == ".tsv" else ",")
    while True:
        try:
            record = next(table, None)
        except csv.Error as error:
            raise InputError(f"{path}, line {table.line_num}: {error}.\nRepair or remove the line") from None
        if record is None:
            return
        # Cells beyond the header are under None; a missing cell is None, an empty one "".
        yield f"line {table.line_num}", {name: _cell(value) for name, value in record.items() if name is not None}


def _cell(value: Any) -> Any:
    """A cell of CSV: a number where it reads as one exactly, a JSON list of strings as that list, else its text."""
    if not isinstance(value, str) or value == "":
        return None
    if value.startswith("["):
        try:
            found = parse_json(value)
        except ValueError:
            return value
        return found if _is_texts(found) else value
    for kind in (int, float):
        try:
            number: int | float = kind(value)
        except ValueError:
            continue
        if str(number) == value:
            return number
    return value


def _parquet_records(path: str, file: Any, walk: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    from .parquet_pages import opened, records

    for row, record in enumerate(records(*opened(file), file, None, walk=walk), 1):
        if isinstance(record, str):
            raise InputError(f"{path}, row {row}: {record}.\nRepair or remove the row")
        yield f"row {row}", record


def write_metadata(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write `metadata.jsonl` of an imagefolder: one JSON object an image, `file_name` among its keys."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
