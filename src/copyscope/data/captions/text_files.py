"""Captions of one image in a file beside it: `0.txt`, `0.caption`, `0.png.txt`, `0.json` of `0.png`."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from copyscope.data.folders.names import TEXT_SUFFIXES, folded, stem_of, suffix_of
from copyscope.data.folders.splits import place_of
from copyscope.data.storage import Listing, Storage, join
from copyscope.data.table import MAX_TEXT, captions_of, distinct, extras_of, texts
from copyscope.documents import parse_json

from .annotations import Annotations
from .embedded import parameters
from .tables import decoded

SIDECAR_BYTES = 1 << 20
"""Of a text file that goes with one image (1 MiB)."""
_INNER = frozenset((".caption", ".captions", ".prompt", ".text", ".txt"))
"""What may stand before the suffix: `0.caption.txt`, `0.captions.json`."""
_FOLDERS = frozenset(["caption", "captions", "text", "texts", "prompt", "prompts", "txt"])
"""Folders that hold such files for the images of a folder beside them."""
_SUFFIXES = frozenset((*TEXT_SUFFIXES, ".json"))
_KEPT = frozenset(("weight", "prompt", "seed", "class", "url", "key"))
"""Columns for which a JSON file beside an image is read even where it has no caption."""


def read_text_files(
    storage: Storage, root: str, listing: Listing, images: list[str], about: Annotations, *, extension: str = ""
) -> None:
    """Text and JSON files that go with one image each: every line of a text is a caption, or the first alone.

    Args:
        storage: file system.
        root: the folder on it.
        listing: all files of the folder.
        images: those that are images.
        about: to which all is added.
        extension: what a trainer calls caption files, beside the usual suffixes; "" = nothing else.
    """
    owners = dict(_owners(listing, images, extension))
    lower = {path: suffix_of(path) for path in owners}
    # Texts first, those named .txt before others: their captions come first.
    order = {".txt": 0, ".json": 2}
    paths = sorted(owners, key=lambda path: order.get(lower[path], 1))
    whole = {join(root, path): path for path in paths}
    sizes = {place: listing.files[path] for place, path in whole.items()}
    for place, data in storage.read_all(sizes, SIDECAR_BYTES):
        path = whole[place]
        is_json = lower[path] == ".json"
        if len(data) > SIDECAR_BYTES:
            if is_json:
                about.passed[path] = f"more than {SIDECAR_BYTES:,} bytes"
                continue
            for image in owners[path]:
                about.add(image, [], {})
                about.absent[image] = (
                    f"too large: {posixpath.basename(path)[-80:]} has more than {SIDECAR_BYTES:,} bytes"
                )
            continue
        if is_json:
            captions, extras, why = _of_json(data)
            if why:
                about.passed[path] = why
                continue
        else:
            captions, extras = _of_text(decoded(data))
        about.used.add(path)
        source = "NAME" + lower[path]
        for image in owners[path]:
            first = image in about.first_line and not is_json
            about.add(image, captions[:1] if first else captions, extras, source)
    if about.used.intersection(owners):
        about.seen("captions txt")


def _owners(listing: Listing, images: list[str], extension: str) -> Iterator[tuple[str, list[str]]]:
    """(file, images it belongs to) of the files that are named like an image."""
    by_name: dict[str, list[str]] = {}
    for image in images:
        by_name.setdefault(stem_of(image), []).append(image)
    whole = set(images)
    by_folded: dict[str, list[str]] | None = None
    by_stem: dict[str, list[str]] | None = None
    by_place: dict[str, list[str]] | None = None
    for path in listing.ending(_SUFFIXES | {suffix_of("x" + extension)} if extension else _SUFFIXES):
        stem = path.removesuffix(extension) if extension and path.endswith(extension) else stem_of(path)
        if (found := by_name.get(stem)) is not None:
            yield path, found
            continue
        inner, before = posixpath.splitext(stem)
        stems = (stem, inner) if before.lower() in _INNER else (stem,)
        exact = next((each for each in stems if each in by_name or each in whole), None)
        if exact is not None:
            yield path, by_name.get(exact) or [exact]
            continue
        if by_folded is None:
            by_folded = {}
            for image in images:
                by_folded.setdefault(folded(image), []).append(image)
                by_folded.setdefault(folded(stem_of(image)), []).append(image)
        if found := next((by_folded[folded(each)] for each in stems if folded(each) in by_folded), None):
            yield path, found
            continue
        if any(part.lower() in _FOLDERS for part in posixpath.dirname(path).split("/")):
            if by_stem is None or by_place is None:
                by_stem, by_place = {}, {}
                for image in images:
                    for key in _places(folded(stem_of(image)).split("/"), None):
                        by_place.setdefault(key, []).append(image)
                    by_stem.setdefault(folded(posixpath.basename(stem_of(image))), []).append(image)
            keys = [key for each in stems for key in _places(folded(each).split("/"), _FOLDERS)]
            mirrored = next((by_place[key] for key in keys if len(by_place.get(key, ())) == 1), [])
            names = [folded(posixpath.basename(each)) for each in stems]
            found = next((by_stem[name] for name in names if name in by_stem), [])
            found = mirrored or [image for image in found if _same_split(path, image)]
            # Of several images of that name none is meant for sure.
            if len(found) == 1:
                yield path, found


def _places(parts: list[str], folders: frozenset[str] | None) -> Iterator[str]:
    """A path with "" for one of its folders (of these names), and a text's also without it: `x//0` of `x/captions/0`.

    So an image in `x/images/cat` and a text in `x/captions/cat` have a place in common.
    """
    if folders is None:
        yield "/".join(parts)
    for place, part in enumerate(parts[:-1]):
        if folders is None or part in folders:
            yield "/".join((*parts[:place], "", *parts[place + 1 :]))
            if folders is not None:
                yield "/".join((*parts[:place], *parts[place + 1 :]))


def _same_split(path: str, image: str) -> bool:
    """Whether no folder says that a text and an image are of different splits."""
    one, other = place_of(path), place_of(image)
    return one is None or other is None or one[0] == other[0]


def _of_text(text: str) -> tuple[list[str], dict[str, Any]]:
    """Captions and columns of a text file; what AUTOMATIC1111 writes beside an image is taken apart."""
    if "\nSteps: " in text and (made := parameters(text)):
        return texts(made.get("prompt")), made
    return distinct(texts(text.splitlines())), {}


def _of_json(data: bytes) -> tuple[list[str], dict[str, Any], str]:
    """Captions and columns of a JSON file, and why it is not read, or ""."""
    try:
        found = parse_json(decoded(data))
    except ValueError:
        return [], {}, "not JSON"
    if isinstance(found, str) or (isinstance(found, list) and not any(isinstance(each, dict) for each in found)):
        captions = texts(found)
        return captions, {}, "" if captions else "no caption in it"
    records = found if isinstance(found, list) else [found]
    records = [record for record in records if isinstance(record, dict)]
    captions = distinct(caption for record in records for caption in captions_of(record))
    extras = extras_of(records[0]) if len(records) == 1 else {}
    extras = {key: value for key, value in extras.items() if not isinstance(value, str) or len(value) <= MAX_TEXT}
    if not captions and not _KEPT.intersection(extras):
        return [], {}, "no caption in it"
    return captions, extras, ""
