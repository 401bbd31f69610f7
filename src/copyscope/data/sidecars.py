"""Metadata beside images: Hugging Face metadata, tables, captions JSON, text files; and writing `metadata.jsonl`."""

from __future__ import annotations

import functools
import itertools
import json
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from copyscope.errors import InputError, reason
from copyscope.files import NOT_REGULAR

from .captions.annotations import NAMES_NONE, OTHER_SPLIT, Annotations
from .captions.embedded import made_with
from .captions.json_files import Listed, captions_json, match_captions
from .captions.tables import FILE_COLUMNS, ROW_ERROR, decoded, file_column, is_file_name, records, token_lines
from .captions.text_files import read_text_files
from .folders.names import METADATA_SUFFIXES, OUR_LISTS, TABLE_SUFFIXES, is_metadata, stem_of, suffix_of
from .folders.splits import of_file, place_of
from .storage import MAX_TEXT_BYTES, OUTSIDE, Listing, Storage, join, within
from .table import captions_of, clean, extras_of, texts

_STRONG = FILE_COLUMNS[: FILE_COLUMNS.index("name")]
_MOST_FILES = 1000
"""JSON files that are looked into for captions of several images, and tables likewise."""
_HEAD = 200
"""Records of a table that decide whether it speaks of the images here."""
_CAPTION_NAMES = ("caption", "meta_cap", "meta_lat", "meta_clean")
_SAMPLE, _ALL = 48, 2000
"""Images whose headers are looked into for a prompt: all of a folder up to _ALL, else a sample that decides."""
_EMBEDDING = frozenset((".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"))


def read_sidecars(
    storage: Storage, root: str, listing: Listing, images: list[str], about: Annotations, *, tables: list[str]
) -> None:
    """Everything the sidecars in and beside the folder `root` say about its images, added to `about`.

    Args:
        storage: file system.
        root: the folder on it.
        listing: all files of the folder.
        images: those that are images.
        about: to which all is added.
        tables: Parquet files without images, which may list some.
    """
    for path in filter(is_metadata, listing.ending(METADATA_SUFFIXES)):
        read_metadata(storage, root, path, listing, about)
    _read_tables(storage, root, listing, tables, about)
    _read_json(storage, root, listing, images, about)
    _read_parent(storage, root, listing, images, about)
    read_text_files(storage, root, listing, images, about)
    _read_headers(storage, root, listing, images, about)


def read_metadata(storage: Storage, root: str, path: str, listing: Listing, about: Annotations) -> None:
    """Records of a metadata table at `path`, which name files relative to the table's own folder or one above it."""
    column, source, folder = "", posixpath.basename(path), posixpath.dirname(path)
    for where, record in records(storage, join(root, path)):
        if not is_file_name(record.get(column)):
            column = file_column(record)
        if not column or column.strip().lower() not in _STRONG:
            raise InputError(
                f"{join(root, path)}, {where}: no file name.\n"
                f"Each record names its image in one of: {', '.join(_STRONG)}"
            )
        listed = clean(str(record[column]))
        name = join(folder, listed)
        if why := record.get(ROW_ERROR):
            image = name if name in listing.files else about.names.find_listed(folder, listed)
            _add_damaged(path, where, image, why, about)
            continue
        if name not in listing.files:
            name = _elsewhere(storage, root, path, listed, listing, about)
        about.add(name, captions_of(record), extras_of(record, without=[column]), source)
    about.used.add(path)
    about.seen("imagefolder")


def _add_damaged(path: str, where: str, image: str | None, why: str, about: Annotations) -> None:
    """A record that cannot be used is an error of its image, or a row of its own where its image is not known."""
    image = image or f"{path}#{where}"
    about.absent[image] = why
    about.add(image, [], {})


def _elsewhere(storage: Storage, root: str, path: str, listed: str, listing: Listing, about: Annotations) -> str:
    """The name of a listed file that is not where its table says, as far as it is anywhere; else it is absent."""
    folder = posixpath.dirname(path)
    name = join(folder, listed)
    whole = join(root, name)
    if within(whole, root) and whole != root:
        name = whole[len(root.rstrip("/")) + 1 :] if root else whole
    if name in listing.files or name in listing.unreadable:
        return name
    outside = name.startswith(("../", "/"))
    if not outside or "\\" in listed:
        names = about.names_for(path, listed) or about.names
        if (found := names.find_listed(folder, listed)) is not None:
            return found
        if posixpath.basename(listed) == listed and (found := names.below(folder).by_end(listed)[0]) is not None:
            return found
    if outside:
        why = _refused_outside(storage, whole, about.inside_only)
        if why is None:
            about.outside.add(name)
        else:
            about.absent[name] = why or f"listed in {posixpath.basename(path)}, but not there"
    else:
        about.absent[name] = f"listed in {posixpath.basename(path)}, but not there"
    return name


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


def _read_tables(storage: Storage, root: str, listing: Listing, tables: list[str], about: Annotations) -> None:
    """Tables of any name that list images here: `captions.csv`, `train.jsonl`, Flickr8k's `captions.txt`."""
    found = [path for path in listing.ending(TABLE_SUFFIXES) if posixpath.basename(path) not in OUR_LISTS]
    texts_too = [path for path in listing.ending([".txt"]) if _may_list(path, about)]
    found = [path for path in (*found, *tables, *texts_too) if not is_metadata(path)]
    about.pass_over(found[_MOST_FILES:], f"more than {_MOST_FILES:,} tables")
    for path in found[:_MOST_FILES]:
        try:
            why = _read_table(storage, root, path, about)
        except InputError as error:
            # The message names the path, which whoever reads the account has.
            why = str(error).partition("\n")[0].removeprefix(f"Cannot read {join(root, path)}: ")
        if why:
            about.passed[path] = why
        else:
            about.used.add(path)
            about.seen("imagefolder")


def _may_list(path: str, about: Annotations) -> bool:
    """Whether a text file may list captions of several images, by its name."""
    name = posixpath.basename(path).lower()
    return any(word in name for word in ("caption", "token", "prompts", "metadata")) and path not in about.names.files


def _read_table(storage: Storage, root: str, path: str, about: Annotations) -> str:
    """Adds what a table says of images here; why it is not read, or ""."""
    folder, source = posixpath.dirname(path), posixpath.basename(path)
    if about.names_for(path) is None:
        return OTHER_SPLIT

    def rows() -> Iterable[tuple[str, dict[str, Any]]]:
        if suffix_of(path) == ".txt" and (listed := token_lines(decoded(storage.text_bytes(join(root, path))))):
            return (("", {"file_name": name, "caption": caption}) for name, caption in listed)
        return records(storage, join(root, path))

    def find(record: dict[str, Any]) -> tuple[str | None, str]:
        if not (column := file_column(record)):
            return None, ""
        listed = clean(str(record[column])).strip()
        names = about.names_for(path, listed) or about.names
        return names.find_listed(folder, listed) or names.below(folder).by_end(listed)[0], column

    head = [find(record) for _, record in itertools.islice(rows(), _HEAD)]
    if not any(column for _, column in head):
        return "no column names an image" if head else "it is empty"
    n_found = sum(image is not None for image, _ in head)
    if not n_found:
        return NAMES_NONE
    all_missing, split = 2 * n_found >= len(head), of_file(path)
    n_missing = 0
    for where, record in rows():
        image, column = find(record)
        if why := record.get(ROW_ERROR):
            _add_damaged(path, where, image, why, about)
            continue
        if not column:
            continue
        captions, extras = captions_of(record), extras_of(record, without=[column])
        if split:
            extras.setdefault("split", split)
        if image is None:
            n_missing += 1
            if not all_missing:
                continue
            image = join(folder, clean(str(record[column])).strip().replace("\\", "/"))
            image = image.lstrip("/").removeprefix("../") or source
            about.absent[image] = f"listed in {source}, but not there"
        about.add(image, captions, extras, source)
    if n_missing and not all_missing:
        about.notes.append(f"{source} also names {n_missing:,} images that are not here")
    return ""


def _read_json(storage: Storage, root: str, listing: Listing, images: list[str], about: Annotations) -> None:
    """JSON files that speak of several images, in the folder itself, above images, or named as captions."""
    stems = {stem_of(path) for path in images}
    folders = {""}
    for folder in {posixpath.dirname(path) for path in images}:
        while folder not in folders:
            folders.add(folder)
            folder = posixpath.dirname(folder)
    found = []
    for path in listing.ending([".json"]):
        stem = path[: -len(".json")]
        if stem in stems or stem_of(stem) in stems or stem in about.names.files:
            continue
        named = _is_captions_name(path)
        if named or posixpath.dirname(path) in folders:
            found.append((path, named))
    about.pass_over((path for path, _ in found[_MOST_FILES:]), f"more than {_MOST_FILES:,} JSON files")
    for path, named in found[:_MOST_FILES]:
        if not named and (listing.files[path] or 0) > MAX_TEXT_BYTES:
            about.passed[path] = f"larger than {MAX_TEXT_BYTES >> 20} MiB"
            continue
        listed = captions_json(storage, join(root, path), required=named)
        if listed and (named or not listed.by_path or listed.mostly_images() or _mostly_here(path, listed, about)):
            match_captions(path, listed, about)
        else:
            about.passed[path] = "no captions in it"


def _is_captions_name(path: str) -> bool:
    name = posixpath.basename(path).lower()
    return any(word in name for word in _CAPTION_NAMES)


def _mostly_here(path: str, listed: Listed, about: Annotations) -> bool:
    """Whether most paths of a JSON file name an image here."""
    places = [(names, key) for key in listed.captions if (names := about.names_for(path, key)) is not None]
    return sum(names.by_end(key)[0] is not None for names, key in places) * 2 > len(listed.captions)


def _read_parent(storage: Storage, root: str, listing: Listing, images: list[str], about: Annotations) -> None:
    """Read a captions JSON beside the folder, or in `annotations` there.

    It may speak of other folders too: only what names this one is taken.
    """
    parent, _, own_name = root.rstrip("/").rpartition("/")
    if not parent or not own_name:
        return
    own_split = place_of(own_name + "/")
    places = [join(parent, name) for name in storage.names(parent)]
    if own_name != "annotations" and join(parent, "annotations") in places:
        places += [join(parent, f"annotations/{name}") for name in storage.names(join(parent, "annotations"))]
    for place in places:
        name = posixpath.basename(place)
        if suffix_of(place) != ".json" or not _is_captions_name(place) or storage.kind(place) != "file":
            continue
        listed = captions_json(storage, place, required=False) or Listed()
        ours = listed.only(key for key in listed.captions if own_name in key.replace("\\", "/").split("/")[:-1])
        if not ours.captions:
            bare = [key for key in listed.captions if "/" not in key and "\\" not in key]
            known = sum(about.names.by_end(key)[0] is not None for key in bare)
            few = known * 2 > len(images) and listed.subset
            ours = listed.only(bare if known * 2 > len(bare) or few else ())
            if ours.captions and own_split and of_file(name) not in (None, own_split[0]):
                about.passed[f"../{place[len(parent) :].lstrip('/')}"] = OTHER_SPLIT
                continue
        if ours.captions:
            match_captions(name, ours, about)


def _read_headers(storage: Storage, root: str, listing: Listing, images: list[str], about: Annotations) -> None:
    """Prompts that generators wrote into their images."""
    may = [path for path in images if suffix_of(path) in _EMBEDDING and listing.files[path] != 0]
    if len(may) > (_ALL if storage.local else _SAMPLE):
        sample = may[:: -(-len(may) // _SAMPLE)]
        if not any(made for _, made in _made(storage, root, sample)):
            return
    for path, made in _made(storage, root, may):
        if made:
            captions = [] if about.captions.get(path) else texts(made.get("prompt"))
            about.add(path, captions, made, "inside the image")


def _made(storage: Storage, root: str, paths: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    def read(path: str) -> dict[str, Any]:
        try:
            with storage.open(join(root, path)) as file:
                return made_with(file)
        except Exception:  # the row says why when the image is read
            return {}

    return zip(paths, storage.ahead((1 << 16, functools.partial(read, path)) for path in paths), strict=True)


def write_metadata(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write `metadata.jsonl` of an imagefolder: one JSON object an image, `file_name` among its keys."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
