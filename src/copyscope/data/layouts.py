"""Detect the layout of a path (folder, Parquet, tars, tables) and read its rows. See `docs/corpora.md`."""

from __future__ import annotations

import functools
import itertools
import posixpath

import pyarrow as pa
import pyarrow.parquet as pq

from copyscope.errors import InputError, reason
from copyscope.files import NOT_REGULAR

from .shards import chosen_ids, image_column, index_parquet, index_tar
from .sidecars import (
    Annotations,
    is_image_name,
    match_captions,
    may_be_image,
    read_captions_json,
    read_metadata,
    read_sidecars,
)
from .storage import OUTSIDE, Listing, Storage, join
from .table import TableBuilder

_TABLES = (".jsonl", ".csv", ".tsv")


def detect_layout(storage: Storage, path: str, origin: str, inside_only: bool = False) -> tuple[str, pa.Table, int]:
    """Detect the layout at a path, and read its rows.

    Args:
        storage: file system.
        path: on it.
        origin: what the user called it.
        inside_only: images outside the folder are rows with an error.

    Returns:
        (kind, table, number of images that lie outside the folder).

    Raises:
        InputError: it is no corpus.
    """
    kind = "directory" if path.strip("/") == "" else storage.kind(path)
    if kind == "directory":
        return _folder(storage, path, origin, inside_only)
    if kind == "other":
        raise InputError(f"Cannot open {origin!r}: {NOT_REGULAR}.\nName a folder of images, or a file that lists some")
    suffix = posixpath.splitext(path)[1].lower()
    name = posixpath.basename(path)
    if suffix == ".tar":
        return "webdataset", _shards(storage, posixpath.dirname(path), [name], origin, "tar"), 0
    if suffix == ".parquet" and _holds_images(storage, path):
        return "parquet", _shards(storage, posixpath.dirname(path), [name], origin, "parquet"), 0
    if suffix in (*_TABLES, ".parquet", ".json"):
        return _listed(storage, path, suffix, inside_only)
    if is_image_name(path):
        rows = TableBuilder()
        rows.add(name, path)
        return "folder", rows.table(), 0
    hint = (
        f"Open it as 'zip://::{origin}', or unpack it" if suffix == ".zip" else "Name a folder of images, or one of: "
    )
    if suffix != ".zip":
        hint += ".tar (not compressed), .parquet, .json (captions), .jsonl, .csv"
    raise InputError(f"Cannot open {origin!r}: a {suffix or 'nameless'} file is no corpus.\n{hint}")


def _folder(storage: Storage, root: str, origin: str, inside_only: bool) -> tuple[str, pa.Table, int]:
    listing = storage.list_files(root)
    if inside_only and listing.outside:
        files = {path: size for path, size in listing.files.items() if path not in listing.outside}
        refused = dict.fromkeys(filter(may_be_image, listing.outside), OUTSIDE)
        listing = Listing(files, listing.unreadable | refused)
    images = [path for path in listing.files if may_be_image(path)]
    named = [path for path in images if is_image_name(path)]
    tars = [path for path in listing.files if path.lower().endswith(".tar")]
    tables = [path for path in listing.files if path.lower().endswith(".parquet")]
    tables = [path for path in tables if posixpath.basename(path) != "metadata.parquet"]
    # A data set has a picture for its front page, an image folder the archive it came from: the larger part is meant.
    size = _bytes(listing, named)
    if tars and _bytes(listing, tars) > size:
        return "webdataset", _shards(storage, root, tars, origin, "tar"), 0
    if tables and _bytes(listing, tables) > size:
        calls = [functools.partial(_holds_images, storage, join(root, path), otherwise=True) for path in tables]
        held = list(itertools.compress(tables, storage.ahead((0, call) for call in calls)))
        if held:
            return "parquet", _shards(storage, root, held, origin, "parquet"), 0
    about = read_sidecars(storage, root, listing, images, inside_only)
    if not named and not about.captions and not _some_image(storage, root, images):
        raise _no_images(listing, origin)
    return about.kind, _image_rows(root, listing, images, about).table(), _n_outside(listing, images, about)


def _listed(storage: Storage, path: str, suffix: str, inside_only: bool) -> tuple[str, pa.Table, int]:
    """The images that a table of metadata or a captions JSON lists, in the folder it lies in."""
    root, name = posixpath.split(path)
    captions = read_captions_json(storage, path) if suffix == ".json" else {}
    listing = storage.list_files(root)
    about = Annotations(inside_only=inside_only)
    if suffix == ".json":
        match_captions(root, name, captions, [file for file in listing.files if may_be_image(file)], about)
    else:
        read_metadata(storage, root, name, listing, about)
    if not about.captions:
        raise InputError(f"Cannot open {path!r}: it lists no images.\nEach record names its image as `file_name`")
    for name in about.captions:
        if name in listing.unreadable or (inside_only and name in listing.outside):
            about.absent[name] = listing.unreadable.get(name, OUTSIDE)
    images = [file for file in about.captions if file in listing.files]
    listing = Listing(listing.files, {}, listing.outside - about.absent.keys())
    return about.kind, _image_rows(root, listing, images, about).table(), _n_outside(listing, images, about)


def _n_outside(listing: Listing, images: list[str], about: Annotations) -> int:
    """Images that lie outside the folder: listed in a table, or reached through a symbolic link."""
    return len(listing.outside.intersection(images, listing.outside) | about.outside)


def _image_rows(root: str, listing: Listing, images: list[str], about: Annotations) -> TableBuilder:
    # Metadata may name files that do not look like images.
    found = {*images, *(path for path in about.captions if path in listing.files), *about.outside}
    classes = all("/" in path for path in found)
    rows = TableBuilder()
    for path in sorted({*found, *about.absent, *listing.unreadable}):
        extras = about.extras.get(path, {})
        if classes and path in listing.files and "class" not in extras:
            extras = {**extras, "class": path.partition("/")[0]}
        error = about.absent.get(path) or listing.unreadable.get(path)
        locator = None if path in listing.unreadable else join(root, path)
        rows.add(path, locator, about.captions.get(path, ()), error=error, extras=extras)
    return rows


def _shards(storage: Storage, root: str, names: list[str], origin: str, kind: str) -> pa.Table:
    """The rows of all shards in the order of their names. A shard that cannot be read is a row with an error."""
    rows = TableBuilder()
    candidates: list[dict[str, pa.Array]] = []
    failed: list[str] = []
    errors: list[str] = []
    calls = [
        functools.partial(index_tar, storage, join(root, name))
        if kind == "tar"
        else functools.partial(index_parquet, storage, join(root, name), name)
        for name in names
    ]
    for name, found in zip(names, storage.ahead((0, call) for call in calls), strict=True):
        for row in found.rows:
            rows.add(**row)
        candidates.append(found.candidates)
        if found.damage and kind == "tar":
            rows.add(name, None, error=f"damaged tar: {found.damage}")
        elif found.damage:
            failed.append(name)
            errors.append(found.damage)
    if (ids := chosen_ids(candidates, len(rows))) is not None:
        rows.rename(name for chunk in ids.chunks for name in chunk.to_pylist())
    for name, why in zip(failed, errors, strict=True):
        rows.add(name, None, error=f"damaged Parquet: {why}")
    if not rows.any_image():
        why = errors[0] if errors else rows.first_error or "it is empty"
        raise InputError(f"Cannot open {origin!r}: {names[0]}: {why}.\nNo image could be found in {len(names)} files")
    return rows.table()


def _holds_images(storage: Storage, path: str, *, otherwise: bool = False) -> bool:
    """Whether a Parquet file has a column of images; `otherwise` if it cannot be read."""
    try:
        with storage.open(path) as file:
            return bool(image_column(pq.read_schema(file)))
    except Exception as error:
        if otherwise:
            return True
        raise InputError(
            f"Cannot open {path!r}: {reason(error)}.\nIt is not a Parquet file, or a damaged one"
        ) from None


def _bytes(listing: Listing, paths: list[str]) -> int:
    return sum(listing.files[path] or 0 for path in paths)


def _some_image(storage: Storage, root: str, paths: list[str]) -> bool:
    """Whether one of the first files without a telling name is an image by its content."""
    from copyscope.imaging.images import starts_like_image

    for path in paths[:50]:
        try:
            with storage.open(join(root, path)) as file:
                if starts_like_image(file.read(16)):
                    return True
        except Exception:
            continue
    return False


def _no_images(listing: Listing, origin: str) -> InputError:
    if not listing.files and not listing.unreadable:
        return InputError(f"Cannot open {origin!r}: the folder is empty.\nName a folder that holds images")
    kinds = sorted({posixpath.splitext(path)[1] or posixpath.basename(path) for path in listing.files})
    return InputError(
        f"Cannot open {origin!r}: no images in it, only {len(listing.files)} other files ({', '.join(kinds[:6])}).\n"
        "Name a folder with .jpg, .png, .webp, ... files, .parquet files with image bytes, or WebDataset .tar files"
    )
