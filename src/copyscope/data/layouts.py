"""Detect the layout of a path (folder, Parquet, tars, tables) and read its rows. See `docs/corpora.md`."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import posixpath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from copyscope.errors import InputError, reason
from copyscope.files import NOT_REGULAR

from .account import Account
from .arrow_files import index_arrow
from .captions.annotations import Annotations
from .captions.json_files import match_captions, read_captions_json
from .configured import MASK, read_configuration, read_subsets
from .folders import splits
from .folders.configurations import CONFIGURED
from .folders.hub_cache import one_snapshot
from .folders.kohya import UNREAD, is_regularisation, repeats_of
from .folders.names import (
    TABLE_SUFFIXES,
    TAR_SUFFIXES,
    Names,
    is_image_name,
    is_metadata,
    looks_like,
    masks_of,
    may_be_image,
    stem_of,
    suffix_of,
)
from .shards import chosen_ids, image_column, index_parquet
from .sidecars import read_metadata, read_sidecars
from .storage import OUTSIDE, Listing, Storage, join
from .table import TableBuilder
from .tars.compressed import members_of_zip
from .tars.webdataset import index_tar

_INDEX = {"webdataset": index_tar, "parquet": index_parquet, "arrow": index_arrow}
_DAMAGE = {"webdataset": "damaged tar", "parquet": "damaged Parquet", "arrow": "damaged Arrow"}
_TAR_ENDS = frozenset(suffix_of("x" + suffix) for suffix in TAR_SUFFIXES)
_LISTS = ("annotations", "annotation", "captions", "metadata")
BESIDE_SHARDS = "lies beside shards, which are read"


@dataclasses.dataclass(frozen=True)
class Opened:
    """What was found at a path.

    Args:
        n_outside: images that lie outside the folder.
    """

    kind: str
    table: pa.Table
    account: Account
    n_outside: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
    """What is to be opened, and how.

    Args:
        origin: what the user called it.
        inside_only: images outside the folder are rows with an error.
        split: the one to read; None = the only one there is.
    """

    storage: Storage
    root: str
    origin: str
    inside_only: bool = False
    split: str | None = None


def detect_layout(source: Source) -> Opened:
    """What is at a path. Raises InputError if it is no corpus, or has several splits of which none is asked for."""
    storage, path, origin = source.storage, source.root, source.origin
    kind = "directory" if path.strip("/") == "" else storage.kind(path)
    if kind == "directory":
        return _folder(source)
    if kind == "other":
        raise InputError(f"Cannot open {origin!r}: {NOT_REGULAR}.\nName a folder of images, or a file that lists some")
    folder, name = posixpath.split(path)
    suffix = suffix_of(path)
    inside = dataclasses.replace(source, root=folder)
    if path.lower().endswith(TAR_SUFFIXES):
        return _shards(inside, [name], "webdataset", Account())
    if suffix == ".parquet" and _holds_images(storage, path):
        return _shards(inside, [name], "parquet", Account())
    if suffix == ".arrow":
        return _shards(inside, [name], "arrow", Account())
    if suffix in CONFIGURED or (suffix == ".json" and read_configuration(storage, path, required=False)):
        return _configured(source)
    if suffix in (*TABLE_SUFFIXES, ".parquet", ".json", ".txt"):
        return _listed(source, suffix)
    if is_image_name(path):
        about = Annotations(Names(folder, [name]))
        return _image_rows(inside, Listing({name: None}, {}), [name], about, Account(), {})
    hint = (
        f"Open it as 'zip://::{origin}', or unpack it" if suffix == ".zip" else "Name a folder of images, or one of: "
    )
    if suffix != ".zip":
        hint += ".tar, .parquet, .arrow, .json (captions), .jsonl, .csv"
    raise InputError(f"Cannot open {origin!r}: a {suffix or 'nameless'} file is no corpus.\n{hint}")


def _folder(source: Source) -> Opened:
    storage, root, account = source.storage, source.root, Account()
    listing = storage.list_files(root)
    for name in listing.hidden:
        if name.endswith("/") or looks_like(name):
            account.pass_over(name, "hidden")
    listing, passed = one_snapshot(storage, root, listing)
    if source.inside_only and listing.outside:
        files = {path: size for path, size in listing.files.items() if path not in listing.outside}
        refused = dict.fromkeys(filter(may_be_image, listing.outside), OUTSIDE)
        listing = Listing(files, listing.unreadable | refused)
    images = [path for path in listing.files if may_be_image(path)]
    masks = masks_of(images, listing.files)
    passed |= dict.fromkeys(masks, MASK)
    images = [path for path in images if path not in masks]
    named = [path for path in images if is_image_name(path)]
    shards, kind, tables = _shards_of(source, listing, named)
    if shards:
        account.pass_over_all(sorted(listing.files.keys() - {*shards}), passed, BESIDE_SHARDS)
        return _shards(source, shards, kind, account)
    zips = listing.ending([".zip"])
    if zips and not named and storage.local:
        return _zipped(source, listing, zips, account)
    by_folder = splits.of_folders(images)
    repeats, unread = repeats_of(images, by_folder)
    if not repeats and len(set(by_folder.values())) > 1:
        splits.chosen(collections.Counter(by_folder.values()), source.split, source.origin)
    passed |= {path: UNREAD for path in listing.files if posixpath.dirname(path) in unread}
    others = [path for path in images if posixpath.dirname(path) in unread]
    images = [path for path in images if posixpath.dirname(path) not in unread]
    first_line = frozenset(path for path in images if posixpath.dirname(path) in repeats)
    about = Annotations(Names(root, images, [*masks, *others]), source.inside_only, first_line, passed=passed)
    read_sidecars(storage, root, listing, images, about, tables=tables)
    if not named and not about.captions and not _some_image(storage, root, images):
        raise _no_images(listing, source.origin)
    return _image_rows(source, listing, images, about, account, by_folder, repeats)


def _shards_of(source: Source, listing: Listing, named: list[str]) -> tuple[list[str], str, list[str]]:
    """(shards to read, their kind, Parquet files without images) of a folder with images of these names."""
    storage, root = source.storage, source.root
    # A compressed tar beside images is what they came in.
    suffixes = TAR_SUFFIXES[:1] if named else TAR_SUFFIXES
    tars = [path for path in listing.ending(_TAR_ENDS) if path.lower().endswith(suffixes)]
    parquet = [path for path in listing.ending([".parquet"]) if not is_metadata(path)]
    arrows = [path for path in listing.ending([".arrow"]) if not posixpath.basename(path).startswith(("cache-", "tmp"))]
    # A data set has a picture for its front page, an image folder the archive it came from: the larger part is meant.
    size = _bytes(listing, named)
    if tars and _bytes(listing, tars) > size:
        return tars, "webdataset", []
    calls = [functools.partial(_holds_images, storage, join(root, path), otherwise=True) for path in parquet]
    holds = list(storage.ahead((0, call) for call in calls)) if parquet else []
    held = list(itertools.compress(parquet, holds))
    if held and _bytes(listing, held) > size:
        return held, "parquet", []
    if arrows and _bytes(listing, arrows) > size:
        return arrows, "arrow", []
    return [], "", [path for path, images in zip(parquet, holds, strict=True) if not images]


def _zipped(source: Source, listing: Listing, zips: list[str], account: Account) -> Opened:
    """The images in zips, whose captions are in them or beside them."""
    import fsspec

    places: dict[str, str] = {}
    repeats: dict[str, tuple[int, str]] = {}
    files = {path: size for path, size in listing.files.items() if path not in zips}
    about = Annotations(Names(source.root, ()), source.inside_only)
    unreadable = dict(listing.unreadable)
    for name in zips:
        whole = join(source.root, name)
        try:
            with source.storage.open(whole) as file:
                members = members_of_zip(file)
            own = Storage(fsspec.filesystem("zip", fo=whole), False)
            inside = own.list_files("")
        except Exception as error:
            unreadable[name] = f"damaged zip: {reason(error)}"
            continue
        prefix = "" if len(zips) == 1 else stem_of(name) + "/"
        images = [path for path in inside.files if may_be_image(path) and path in members]
        own_repeats, unread = repeats_of(images, splits.of_folders(images))
        repeats.update({prefix + folder: value for folder, value in own_repeats.items()})
        passed = {path: UNREAD for path in inside.files if posixpath.dirname(path) in unread}
        others, images = [path for path in images if path in passed], [path for path in images if path not in passed]
        first_line = frozenset(path for path in images if posixpath.dirname(path) in own_repeats)
        said = Annotations(Names("", images, others), first_line=first_line, passed=passed)
        read_sidecars(own, "", inside, images, said, tables=[])
        for path in (*images, *(path for path in others if path in said.captions)):
            offset, size = members[path]
            places[prefix + path] = f"{whole}#bytes={offset}+{size}"
            about.extras[prefix + path] = said.extras.get(path, {})
            about.add(prefix + path, said.captions.get(path, []), {})
            about.sources[prefix + path] = said.sources.get(path, ())
        about.absent.update({prefix + path: why for path, why in said.absent.items()})
        unreadable.update({prefix + path: why for path, why in inside.unreadable.items()})
        account.pass_over_all(sorted(inside.files.keys() - images - said.used - said.captions.keys()), said.passed)
    if not places:
        raise _no_images(listing, source.origin)
    about.names = Names(source.root, places)
    beside = Listing(files | dict.fromkeys(places), {})
    read_sidecars(source.storage, source.root, beside, [], about, tables=[])
    about.kind = "zip"
    rest = Listing(files | dict.fromkeys(places), unreadable)
    return _image_rows(source, rest, list(places), about, account, splits.of_folders(places), repeats, places=places)


def _listed(source: Source, suffix: str) -> Opened:
    """The images that a table of metadata or a captions JSON lists, in the folder it lies in."""
    storage, path = source.storage, source.root
    root, name = posixpath.split(path)
    captions = read_captions_json(storage, path) if suffix == ".json" else None
    listing = storage.list_files(root)
    images = [file for file in listing.files if may_be_image(file)]
    if not any(map(is_image_name, images)) and posixpath.basename(root).lower() in _LISTS and not source.inside_only:
        # COCO's `annotations`, beside the folders of images.
        root, name = posixpath.dirname(root), posixpath.join(posixpath.basename(root), name)
        listing = storage.list_files(root)
        images = [file for file in listing.files if may_be_image(file)]
    about = Annotations(Names(root, images), inside_only=source.inside_only)
    if captions is not None:
        match_captions(name, captions, about, required=True)
    else:
        read_metadata(storage, root, name, listing, about)
    if not about.captions:
        raise InputError(f"Cannot open {path!r}: it lists no images.\nEach record names its image as `file_name`")
    for listed in about.captions:
        if listed in listing.unreadable or (source.inside_only and listed in listing.outside):
            about.absent[listed] = listing.unreadable.get(listed, OUTSIDE)
    about.pass_over((file for file in images if file not in about.captions), "not in the list")
    files = {file: size for file, size in listing.files.items() if file in about.captions or file in about.passed}
    listed_images = [file for file in about.captions if file in listing.files]
    listing = Listing(files, {}, listing.outside - about.absent.keys())
    return _image_rows(dataclasses.replace(source, root=root), listing, listed_images, about, Account(), {})


def _configured(source: Source) -> Opened:
    """The images of the folders that a trainer's configuration names."""
    storage, (root, name) = source.storage, posixpath.split(source.root)
    subsets = read_configuration(storage, source.root)
    listing, about = read_subsets(storage, root, name, subsets, source.inside_only)
    images = [path for path in about.captions if path in listing.files]
    if not images:
        raise InputError(
            f"Cannot open {source.origin!r}: no images in the folders it names ({len(subsets)}).\n"
            "Folders are looked for as they are named, and beside the file"
        )
    return _image_rows(dataclasses.replace(source, root=root), listing, images, about, Account(), {}, classes=False)


def _image_rows(
    source: Source,
    listing: Listing,
    images: list[str],
    about: Annotations,
    account: Account,
    by_folder: dict[str, str],
    repeats: dict[str, tuple[int, str]] | None = None,
    *,
    classes: bool = True,
    places: dict[str, str] | None = None,
) -> Opened:
    """The rows of images in files, and what became of the other files.

    Args:
        source: what is opened.
        listing: all files.
        images: those that are images.
        about: what is known of them.
        account: to which the other files are added.
        by_folder: the split of each image by its folders.
        repeats: of each folder, if they are kohya's.
        classes: folders are classes, where every image lies in one.
        places: locators of the images, where they are no files.
    """
    # Metadata may name files that do not look like images.
    found = {*images, *(path for path in about.captions if path in listing.files), *about.outside}
    paths = sorted({*found, *about.absent, *listing.unreadable})
    split_of = _splits_of(paths, about, by_folder, bool(repeats))
    counts = splits.known(collections.Counter(split_of.values()))
    account.splits, account.split = counts, splits.chosen(counts, source.split, source.origin)
    classes = classes and all("/" in path for path in found)
    rows, sources = TableBuilder(), collections.Counter[str]()
    several, n_left_out = account.split is not None and len(counts) > 1, 0
    for path in paths:
        split = split_of.get(path)
        lost = path in about.absent or path in listing.unreadable
        if several and split != account.split and not (split is None and lost):
            n_left_out += split is None
            continue
        extras = about.extras.get(path, {})
        captions = about.captions.get(path, [])
        came_from = about.sources.get(path, ())
        if split is not None and split != extras.get("split"):
            extras = {**extras, "split": split}
        if repeats and (folder := posixpath.dirname(path)) in repeats:
            n, words = repeats[folder]
            extras = {"weight": n, "class": words, **extras}
            captions, came_from = (captions, came_from) if captions else ([words], ("name of the folder",))
        elif classes and path in listing.files and "class" not in extras and (name := splits.class_of(path, by_folder)):
            extras = {**extras, "class": name}
        error = about.absent.get(path) or listing.unreadable.get(path)
        locator = None if path in listing.unreadable else places.get(path) if places else join(source.root, path)
        rows.add(path, locator, captions, error=error, extras=extras)
        sources.update(came_from)
    if repeats:
        numbers = sorted({n for n, _ in repeats.values()})
        shown = ", ".join(map(str, numbers[:8]))
        about.notes.append(f"weights are the repeats in the names of {len(repeats)} folders ({shown})")
    account.sources, account.notes = dict(sources), about.notes
    outside = len(listing.outside.intersection(images, listing.outside) | about.outside)
    files = dict.fromkeys((*listing.files, *(path for path in about.passed if path.startswith("../"))))
    account.pass_over_all((path for path in files if path not in found and path not in about.used), about.passed)
    if n_left_out:
        account.notes.append(f"images {splits.NONE}, which are not read: {n_left_out:,}")
    return Opened(about.kind, rows.table(), account, outside)


def _splits_of(paths: list[str], about: Annotations, by_folder: dict[str, str], kohya: bool) -> dict[str, str]:
    """The split of each row that has one: what metadata says, else its folder."""
    found: dict[str, str] = {}
    if by_folder:
        found = {path: place[0] for path in paths if (place := splits.place_of(path))}
    if kohya and any(map(is_regularisation, paths)):
        found = {p: splits.REGULARISATION if is_regularisation(p) else found.get(p, "train") for p in paths}
    for path, extras in about.extras.items():
        if isinstance(split := extras.get("split"), str):
            found[path] = split
    return found


def _shards(source: Source, names: list[str], kind: str, account: Account) -> Opened:
    """The rows of all shards in the order of their names. A shard that cannot be read is a row with an error."""
    storage, origin = source.storage, source.origin
    by_shard = splits.of_shards(names)
    if len(counts := collections.Counter(by_shard.values())) > 1:
        account.splits, account.split = dict(counts), splits.chosen(counts, source.split, origin, "files")
        if account.split is not None:
            rest = [name for name in names if by_shard.get(name) != account.split]
            for name in rest:
                account.pass_over(name, f"of the split {by_shard[name]!r}" if name in by_shard else splits.NONE)
            names = [name for name in names if by_shard.get(name) == account.split]
    rows, sources = TableBuilder(), collections.Counter[str]()
    candidates: list[dict[str, pa.Array]] = []
    failed: list[str] = []
    errors: list[str] = []
    calls = [functools.partial(_INDEX[kind], storage, join(source.root, name), name) for name in names]
    for name, found in zip(names, storage.ahead((0, call) for call in calls), strict=True):
        split = {"split": by_shard[name]} if name in by_shard else {}
        for row in found.rows:
            rows.add(**(row if not split else row | {"extras": split | row.get("extras", {})}))
        candidates.append(found.candidates)
        sources.update(found.sources)
        for path, why in found.passed:
            account.pass_over(path, why)
        if found.damage and kind == "webdataset":
            rows.add(name, None, error=f"damaged tar: {found.damage}", extras=split)
        elif found.damage:
            failed.append(name)
            errors.append(found.damage)
    if (ids := chosen_ids(candidates, len(rows))) is not None:
        rows.rename(name for chunk in ids.chunks for name in chunk.to_pylist())
    for name, why in zip(failed, errors, strict=True):
        rows.add(name, None, error=f"{_DAMAGE[kind]}: {why}")
    if not rows.any_image():
        why = errors[0] if errors else rows.first_error or "it is empty"
        raise InputError(f"Cannot open {origin!r}: {names[0]}: {why}.\nNo image could be found in {len(names)} files")
    account.sources = dict(sources)
    return Opened(kind, _one_split(rows.table(), source, account), account)


def _one_split(table: pa.Table, source: Source, account: Account) -> pa.Table:
    """The rows of the split that is asked for, by the column `split` of the data themselves."""
    counts = splits.column_counts(table)
    if len(account.splits) > 1:  # of which files have been chosen
        return table
    account.splits, account.split = counts, splits.chosen(counts, source.split, source.origin)
    if account.split is None or len(counts) < 2:
        return table
    return table.filter(pc.equal(table["split"], account.split))


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
