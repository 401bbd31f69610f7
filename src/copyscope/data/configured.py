"""Read the folders of images that a trainer's configuration names, each with its repeats and captions."""

from __future__ import annotations

import dataclasses
import posixpath
from typing import Any

from copyscope.documents import MAX_TOML_BYTES
from copyscope.errors import ImageError, InputError, reason

from .captions.annotations import Annotations
from .captions.json_files import captions_json, match_captions
from .captions.tables import decoded
from .captions.text_files import read_text_files
from .folders.configurations import Subset, subsets_in
from .folders.names import TEXT_SUFFIXES, Names, is_image_name, masks_of, may_be_image, parts_of, stem_of, suffix_of
from .folders.splits import REGULARISATION
from .storage import OUTSIDE, Listing, Storage, join, within

MASK = "a mask or conditioning image of another image"
_MOST_SUBSETS = 1000


def read_configuration(storage: Storage, path: str, *, required: bool = True) -> list[Subset]:
    """The folders that a configuration names; [] where it is none of a trainer's.

    Raises InputError where it cannot be parsed; if `required` also where it names none.
    """
    try:
        data = storage.span(path, 0, MAX_TOML_BYTES + 1)
        if len(data) > MAX_TOML_BYTES:
            raise ValueError(f"larger than {MAX_TOML_BYTES >> 20} MiB")
        subsets = subsets_in(decoded(data), suffix_of(path))
    except (ValueError, ImageError) as error:
        if not required:
            return []
        raise InputError(f"Cannot read {path}: {reason(error)}.\nRepair the file, or name the folder itself") from None
    if required and not subsets:
        raise InputError(
            f"Cannot open {path!r}: it names no folder of images.\nRead are configurations of sd-scripts, ai-toolkit, "
            "OneTrainer and SimpleTuner"
        )
    return subsets[:_MOST_SUBSETS]


def read_subsets(
    storage: Storage, root: str, name: str, subsets: list[Subset], inside_only: bool
) -> tuple[Listing, Annotations]:
    """The files of all folders that are named in the configuration `name` in `root`, and what is said of their images.

    An image that several of them hold is drawn as often as all of them say.
    """
    listing, about = Listing({}, {}), Annotations(Names(root, ()), inside_only)
    several = any(subset.regularisation for subset in subsets)
    for subset in subsets:
        folder = _place(storage, root, subset.folder, "directory")
        if folder is None or (inside_only and not storage.inside(folder, root)):
            why = OUTSIDE if folder is not None else f"named in {name}, but not there"
            about.absent[subset.folder] = why
            about.add(subset.folder, [], {})
            continue
        _read_subset(storage, root, folder, subset, several, listing, about)
    about.kind = "configuration"
    return listing, about


def _read_subset(
    storage: Storage,
    root: str,
    folder: str,
    subset: Subset,
    several: bool,
    listing: Listing,
    about: Annotations,
) -> None:
    inside = within(folder, root) and folder != root
    prefix = folder[len(root.rstrip("/")) + 1 :] + "/" if inside else "" if folder == root else folder + "/"
    own = storage.list_files(folder)
    files = {path: size for path, size in own.files.items() if subset.recursive or "/" not in path}
    own_texts = {path for path in files if path.endswith(subset.extension) and not is_image_name(path)}
    images = [path for path in files if may_be_image(path) and path not in own_texts]
    if masks := masks_of(images, files):
        about.pass_over((prefix + mask for mask in masks), MASK)
        images = [path for path in images if path not in masks]
    other = {path for path in files if suffix_of(path) in TEXT_SUFFIXES and not path.endswith(subset.extension)}
    if subset.caption != "file":
        other = {path for path in files if suffix_of(path) in TEXT_SUFFIXES}
    about.pass_over((prefix + path for path in other), f"the configuration asks for {subset.extension} or none")
    said = Annotations(Names(folder, images), first_line=frozenset(images))
    texts = {path: size for path, size in files.items() if path in own_texts}
    if subset.caption == "file":
        read_text_files(storage, folder, Listing(texts, {}), images, said, extension=subset.extension)
    if subset.metadata and (place := _place(storage, root, subset.metadata, "file")):
        if suffix_of(place) == ".json":
            if found := captions_json(storage, place, required=True):
                match_captions(posixpath.basename(place), dataclasses.replace(found, subset=True), said)
        else:
            lines = decoded(storage.text_bytes(place)).splitlines()
            subset = dataclasses.replace(subset, words=next((line.strip() for line in lines if line.strip()), ""))
    for image in images:
        captions, source = said.captions.get(image, []), (said.sources.get(image) or ("",))[0]
        if subset.caption == "name":
            captions, source = [stem_of(posixpath.basename(image)).replace("_", " ")], "name of the file"
        elif not captions and subset.words:
            captions, source = [subset.words], "the configuration"
        captions = [", ".join(filter(None, (subset.prefix, text, subset.suffix))) for text in captions]
        _add(prefix + image, captions, source, said.extras.get(image, {}), subset, several, about)
    listing.files.update({prefix + path: size for path, size in files.items()})
    listing.unreadable.update({prefix + path: why for path, why in own.unreadable.items()})
    if not inside and folder != root:
        about.outside.update(prefix + image for image in images)
    about.used.update(prefix + path for path in said.used)
    about.absent.update({prefix + path: why for path, why in said.absent.items()})


def _add(
    path: str, captions: list[str], source: str, own: dict[str, Any], subset: Subset, several: bool, about: Annotations
) -> None:
    """One image of a folder of a configuration."""
    before = about.extras.get(path, {}).get("weight")
    extras = {**own, "weight": subset.repeats}
    if isinstance(before, (int, float)) and isinstance(subset.repeats, (int, float)):
        about.extras[path]["weight"] = before + subset.repeats
    if subset.class_words:
        extras["class"] = subset.class_words
    if several:
        extras["split"] = REGULARISATION if subset.regularisation else "train"
    about.add(path, captions, extras, source)


def _place(storage: Storage, root: str, named: str, kind: str) -> str | None:
    """Path of a file or folder that a configuration names; None where it is nowhere.

    It is where the name says, or beside the configuration at the end of that path, which may be another machine's.
    """
    parts = parts_of(named)
    places = [join(root, named.replace("\\", "/")), *(join(root, "/".join(parts[at:])) for at in range(len(parts)))]
    return next((place for place in places if storage.kind(place) == kind), None)
