"""Read captions from one JSON file: captions by path, lists of records, COCO, kohya's metadata."""

from __future__ import annotations

import dataclasses
import math
import posixpath
from collections.abc import Iterable
from typing import Any

from copyscope.data.folders.names import is_image_name
from copyscope.data.storage import Storage, readable
from copyscope.data.table import captions_of, distinct, extras_of, texts
from copyscope.documents import parse_json
from copyscope.errors import InputError, reason

from .annotations import NAMES_NONE, OTHER_SPLIT, Annotations
from .tables import decoded, file_column

_HELD_IN = ("annotations", "images", "data", "items", "records", "samples", "captions", "metadata", "rows")
"""Keys of an object under which a list of records may be."""


@dataclasses.dataclass
class Listed:
    """Captions and further columns that a JSON file has, by the path of an image as the file writes it.

    Args:
        by_path: it is an object from path to captions, and no list of records, which names its images in any case.
    """

    captions: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    extras: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    by_path: bool = False
    subset: bool = False

    def add(self, key: str, captions: list[str], extras: dict[str, Any]) -> None:
        """Add a record of the path `key`: its captions, and other values where there are none yet."""
        before = self.captions.get(key)
        self.captions[key] = captions if before is None else distinct(before + captions)
        if extras:
            self.extras[key] = extras | self.extras.get(key, {})

    def only(self, keys: Iterable[str]) -> Listed:
        """What is said of some of the paths."""
        kept = dict.fromkeys(keys)
        captions = {key: value for key, value in self.captions.items() if key in kept}
        extras = {key: value for key, value in self.extras.items() if key in kept}
        return dataclasses.replace(self, captions=captions, extras=extras)

    def mostly_images(self) -> bool:
        """Whether more than half of the paths with captions are names of images."""
        captioned = [key for key, captions in self.captions.items() if captions]
        return sum(map(is_image_name, captioned)) * 2 > len(captioned)


def read_captions_json(storage: Storage, path: str) -> Listed:
    """The captions in a JSON file. Raises InputError if it has none."""
    listed = captions_json(storage, path, required=True)
    if not listed:
        raise InputError(
            f"{path} lists no captions.\nIt should be an object from image path to a list of captions: "
            '{"images/0001.jpg": ["a dog", ...]}, or a list of records: [{"file_name": ..., "caption": ...}, ...]'
        )
    return listed


def captions_json(storage: Storage, path: str, *, required: bool) -> Listed | None:
    """The captions in a JSON file; None if it holds something else, unless it is `required` to be JSON at all."""
    try:
        found = parse_json(decoded(storage.text_bytes(path)))
    except ValueError as error:
        if not required:
            return None
        raise InputError(f"Cannot read {path}: {reason(error)}.\nRepair the file, or move it elsewhere") from None
    return listed_in(found)


def listed_in(found: Any) -> Listed | None:
    """What a JSON document says of images; None where it says no captions of any."""
    if isinstance(found, list):
        return _of_records(found)
    if not isinstance(found, dict) or not found:
        return None
    if (listed := _coco(found)) is not None:
        return listed
    values = list(found.values())
    if all(map(_is_texts, values)) and any(texts(value) for value in values):
        held = [key for key in found if key.lower() in _HELD_IN]
        if not (len(found) == len(held) == 1):
            return Listed({key: texts(value) for key, value in found.items()}, by_path=True)
    if all(isinstance(value, dict) for value in values):
        listed = Listed(by_path=True)
        for key, value in found.items():
            listed.add(key, _with_tags(value), extras_of(value))
        return listed if any(listed.captions.values()) else None
    for key in _HELD_IN:
        if isinstance(found.get(key), list) and (records := _of_records(found[key])):
            return records
    # Captions by path, and something else among them, as an `info`.
    listed = Listed({key: texts(value) if _is_texts(value) else [] for key, value in found.items()}, by_path=True)
    for key, value in found.items():
        if isinstance(value, dict) and is_image_name(key):
            listed.add(key, _with_tags(value), extras_of(value))
    return listed if any(captions and is_image_name(key) for key, captions in listed.captions.items()) else None


def _coco(found: dict[str, Any]) -> Listed | None:
    """COCO: images by number, and captions that name the number; Karpathy's form, with sentences in each image."""
    images, annotations = found.get("images"), found.get("annotations")
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        return None
    listed = Listed(subset=True)
    if isinstance(annotations, list) and all(isinstance(each, dict) for each in annotations):
        by_number = {str(image.get("id")): name for image in images if (name := _coco_name(image))}
        for each in annotations:
            key = by_number.get(str(each.get("image_id")))
            if key is not None and (captions := captions_of(each)):
                listed.add(key, captions, {})
        return listed if listed.captions else None
    for image in images:
        sentences = image.get("sentences")
        if isinstance(sentences, list) and (name := _coco_name(image)):
            captions = [text for each in sentences if isinstance(each, dict) for text in texts(each.get("raw"))]
            folder = image.get("filepath")
            listed.add(f"{folder}/{name}" if isinstance(folder, str) else name, captions, extras_of(image, _OF_COCO))
    return listed if any(listed.captions.values()) else None


_OF_COCO = ("filename", "file_name", "filepath", "width", "height", "imgid", "cocoid", "id")


def _coco_name(image: dict[str, Any]) -> str:
    name = image.get("file_name", image.get("filename"))
    return name if isinstance(name, str) else ""


def _of_records(found: list[Any]) -> Listed | None:
    listed = Listed()
    for record in found:
        if not isinstance(record, dict) or not (column := file_column(record)):
            continue
        listed.add(str(record[column]), captions_of(record), extras_of(record, without=[column]))
    return listed if any(listed.captions.values()) else None


def _with_tags(record: dict[str, Any]) -> list[str]:
    """Captions of a record of kohya's scripts, which train on caption and tags as one text."""
    captions, tags = captions_of(record), ", ".join(texts(record.get("tags")))
    if not tags or tags in captions:
        return captions
    return [f"{caption}, {tags}" for caption in captions] or [tags]


def _is_texts(value: Any) -> bool:
    """Whether a value is a caption, captions, or what stands where there is none (null, NaN)."""
    values = value if isinstance(value, list) else [value]
    return all(
        each is None or isinstance(each, str) or (isinstance(each, float) and math.isnan(each)) for each in values
    )


def match_captions(path: str, listed: Listed, about: Annotations, *, required: bool = False) -> None:
    """Captions by path (as DCR's `captions.json`) to the images whose path ends like theirs, the longer the better.

    Such files keep the paths of the machine they were made on, as "./data/laion/train/images/0001.jpg"; so a key
    belongs to the one image that shares the longest end with it. A key with no such image becomes a row with an error,
    but where the file speaks of many more images than are here.

    Args:
        path: of the file, relative to the folder.
        listed: what it says.
        about: what is known of the images, to which this is added.
        required: every key is a row in any case.
    """
    best: dict[str, tuple[int, str]] = {}
    failed: dict[str, str] = {}
    others: list[str] = []
    for key in listed.captions:
        names = about.names_for(path, key)
        if names is None:
            if required:
                failed[key] = f"listed in {path}, but not there"
            continue
        image, depth = names.by_end(key)
        if image is None and not depth and listed.by_path and not is_image_name(key):
            others.append(key)
        elif image is None:
            failed[key] = f"listed in {path}, but " + ("several images have that name" if depth else "not there")
        elif image in best and best[image][0] >= depth:
            failed[key] = f"listed in {path}, but not there"
        else:
            if image in best:
                failed[best[image][1]] = f"listed in {path}, but not there"
            best[image] = (depth, key)
    if not best and not required:
        about.passed[path] = NAMES_NONE if failed or others else OTHER_SPLIT
        return
    source = posixpath.basename(path)
    for image, (_, key) in best.items():
        about.add(image, listed.captions[key], listed.extras.get(key, {}), source)
    if listed.subset and not required and len(failed) > len(best):
        about.notes.append(f"{source} also names {len(failed):,} images that are not here")
        failed = {}
    if others:
        shown = ", ".join(readable(key[:40]) for key in others[:5])
        about.notes.append(f"{source} has {len(others):,} keys that name no image here ({shown})")
    for key, why in failed.items():
        name = "/".join(part for part in key.replace("\\", "/").split("/") if part not in ("", ".")) or key
        about.absent[name] = why
        about.add(name, listed.captions[key], listed.extras.get(key, {}))
    about.used.add(path)
    about.seen("captions json")
