"""Roles of files by their names: image, mask, captions, metadata; and which file a listed name means."""

from __future__ import annotations

import functools
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable

from .splits import is_split, of_folders

_IMAGES = """
.jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .avif .ppm .pgm .pbm .pnm
.heic .heif .hif .jxl .jp2 .psd .cr2 .cr3 .nef .arw .dng .raf .orf .rw2
"""
IMAGE_SUFFIXES = frozenset(_IMAGES.split())
"""Files that are taken for images by their name; what they are is seen from their content when they are read."""

# Files that go with images but are none. Anything else is a row, and gets an error if it turns out to be no image.
_OTHERS = """
.txt .caption .captions .prompt .text .json .jsonl .ndjson .csv .tsv .parquet .arrow .feather .md .rst .yaml .yml .toml
.ini .cfg .npy .npz .safetensors .ckpt .pt .pth .bin .onnx .h5 .pkl .log .html .htm .css .js .py .sh .ipynb .xml .pdf
.lock .idx .db .zip .tar .gz .tgz .tzst .zstd .bz2 .xz .zst .7z .rar .sha256 .md5 .part .tmp
license readme notice makefile changelog checksums sha256sums thumbs.db desktop.ini
"""
_NOT_IMAGES = frozenset(_OTHERS.split())
TEXT_SUFFIXES = frozenset((".txt", ".caption", ".captions", ".prompt", ".text"))
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")
METADATA = frozenset(("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet"))
METADATA_SUFFIXES = frozenset((".jsonl", ".csv", ".tsv", ".parquet"))
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".tzst")
CONFIGURATIONS = frozenset((".toml", ".yaml", ".yml"))
_LOOKS_LIKE = {
    "captions": TEXT_SUFFIXES,
    "metadata": frozenset((*TABLE_SUFFIXES, ".json", ".parquet", ".arrow", ".feather", ".xml", *CONFIGURATIONS)),
    "images": frozenset((*IMAGE_SUFFIXES, ".zip", ".tar", ".tgz", ".tzst", ".gz", ".zst", ".zstd")),
}
_DOCUMENTS = frozenset(
    [
        "readme",
        "license",
        "licence",
        "notice",
        "changelog",
        "requirements",
        "checksums",
        "sha256sums",
        "sources",
        "robots",
    ]
)

MASK_WORDS = frozenset(
    [
        "mask",
        "masks",
        "masklabel",
        "condlabel",
        "segmentation",
        "seg",
        "depth",
        "canny",
        "conditioning",
        "control",
        "alpha",
        "matte",
    ]
)
"""What a mask or a conditioning image has behind the name of its image: `p-masklabel.png` of `p.jpg`."""
MASK_FOLDERS = frozenset(
    [
        "mask",
        "masks",
        "conditioning",
        "conditionings",
        "conditioning_image",
        "conditioning_images",
        "conditioning_data",
        "control",
        "controls",
        "control_images",
        "condition",
        "conditions",
        "segmentation",
        "segmentations",
    ]
)
"""Folders that hold such images, of the same names as the images they go with."""
_CLASS_FOLDERS = frozenset(("mask", "control", "controls", "condition", "conditions"))
"""Those of them that may be classes: `mask` beside `no_mask`, `control` beside `treated`."""
_PLAIN = """
image images img imgs photo photos picture pictures jpegimages input inputs source sources target targets original
originals rgb data dataset train training
"""
_IMAGE_FOLDERS = frozenset(_PLAIN.split())
"""Folders of the images that masks go with."""
_MASK = re.compile(rf"[-_.](?:{'|'.join(sorted(MASK_WORDS))})(?:\.[^./]*)?$", re.IGNORECASE)
_MOST_FOLDERS = 64  # within one another, of a path that a list names


def stem_of(path: str) -> str:
    """A path without the suffix of its name."""
    # posixpath.splitext takes ten times as long, and is asked many times of each of many files.
    at = path.rfind(".")
    return path[:at] if at > path.rfind("/") + 1 else path


def suffix_of(path: str) -> str:
    """The suffix of a file's name in lower case, with its dot; "" where it has none."""
    at = path.rfind(".")
    return path[at:].lower() if at > path.rfind("/") + 1 else ""


def is_image_name(path: str) -> bool:
    """Whether a file is an image by its name."""
    return suffix_of(path) in IMAGE_SUFFIXES


def may_be_image(path: str) -> bool:
    """Whether a file is an image by its name, or has a name that tells nothing."""
    suffix = suffix_of(path)
    if suffix in IMAGE_SUFFIXES or suffix in _NOT_IMAGES:
        return suffix not in _NOT_IMAGES
    return posixpath.basename(path).lower() not in _NOT_IMAGES


def is_metadata(path: str) -> bool:
    """Whether a file is a metadata table of an imagefolder, in upper or lower case."""
    return suffix_of(path) in METADATA_SUFFIXES and posixpath.basename(path).lower() in METADATA


OUR_LISTS = ("done.csv", "dropped.csv", "skipped.jsonl")
"""Lists that `curate` writes beside the images: of images that are not there."""


def looks_like(path: str) -> str:
    """What a file is by its name: "images", "captions", "metadata", or "" for none of these."""
    name = posixpath.basename(path).lower()
    if name in OUR_LISTS or stem_of(name.lstrip(".")) in _DOCUMENTS:
        return ""
    suffix = suffix_of(name)
    return next((kind for kind, suffixes in _LOOKS_LIKE.items() if suffix in suffixes), "")


def masks_of(images: list[str], files: Iterable[str] = ()) -> dict[str, str]:
    """Masks and conditioning images among `images` -> the image that each belongs to.

    An image is a mask only where the image it belongs to is there: `p-masklabel.png` beside `p.jpg`, or `masks/p.png`
    where most names of that folder are names of images elsewhere. An image with a caption file of its own among `files`
    is none, nor is one in a folder with such an image, nor one in a class: `mask/` beside `no_mask/`.
    """
    found: dict[str, str] = {}
    stems: dict[str, str] | None = None
    by_folder: dict[str, list[str]] = {}
    last, is_masks = "", False
    for path in images:
        if match := _MASK.search(path):
            if stems is None:
                stems = {stem_of(other): other for other in images}
            if (stem := path[: match.start()]) in stems:
                found[path] = stems[stem]
        folder = path[: path.rfind("/") + 1]
        if folder != last:
            last, is_masks = folder, _mask_folder(folder)
        if is_masks:
            by_folder.setdefault(folder[:-1], []).append(path)
    if not found and not by_folder:
        return {}
    captioned = {stem_of(path) for path in files if suffix_of(path) in TEXT_SUFFIXES}
    found = {path: image for path, image in found.items() if not _is_captioned(path, captioned)}
    if by_folder:
        others = {_stem(path): path for path in images if posixpath.dirname(path) not in by_folder}
        children = _children(posixpath.dirname(path) for path in images if posixpath.dirname(path) not in by_folder)
        for folder, paths in by_folder.items():
            partners = {path: others[name] for path in paths if (name := _stem(path)) in others}
            if len(partners) * 2 <= len(paths) or any(_is_captioned(path, captioned) for path in paths):
                continue
            if any(_is_captioned(path, captioned) for path in partners.values()) or not _is_class(folder, children):
                found |= {path: partners.get(path, "") for path in paths}
    return found


def _mask_folder(folder: str) -> bool:
    return any(part.lower() in MASK_FOLDERS for part in folder.split("/"))


def _is_captioned(path: str, captioned: set[str]) -> bool:
    return path in captioned or stem_of(path) in captioned


def _children(folders: Iterable[str]) -> dict[str, set[str]]:
    """Names of the folders in each folder, "" for images that lie in it, of folders with images."""
    found: dict[str, set[str]] = {}
    for folder in set(folders):
        found.setdefault(folder, set()).add("")
        while folder:
            folder, name = posixpath.split(folder)
            found.setdefault(folder, set()).add(name)
    return found


def _is_class(folder: str, children: dict[str, set[str]]) -> bool:
    """Whether a folder named like one of masks is a class: others lie beside it, none of which is one of images."""
    parts = folder.split("/")
    at = next(at for at, part in enumerate(parts) if part.lower() in MASK_FOLDERS)
    find_listed = children.get("/".join(parts[:at]), set())
    return (
        parts[at].lower() in _CLASS_FOLDERS
        and bool(find_listed)
        and not any(not name or name.lower() in _IMAGE_FOLDERS for name in find_listed)
    )


def _stem(path: str) -> str:
    return stem_of(path[path.rfind("/") + 1 :])


def parts_of(path: str) -> list[str]:
    """The folders and the name of a path as any system writes it."""
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")][-_MOST_FOLDERS:]


def folded(name: str) -> str:
    """A name as it is compared where the exact one is not there: composed letters (NFC), without case."""
    return unicodedata.normalize("NFC", name).casefold()


class Names:
    """Which file of a folder a name in a list means.

    root: path of the folder. files: paths relative to it. others: those that are meant only where none of `files` is.
    """

    def __init__(self, root: str, files: Iterable[str], others: Iterable[str] = ()) -> None:
        self._root = root
        self._above = parts_of(root)[-2:]
        self.files = dict.fromkeys(files)
        self._others = Names(root, others) if (others := list(others)) else None
        self._below: dict[str, Names] = {"": self}
        self._of_split: dict[str, Names | None] = {}

    def below(self, folder: str) -> Names:
        """The files in a folder; all files where none is in it."""
        if folder not in self._below:
            all_files = (self.files, self._others.files if self._others else ())
            inside, others = ([path for path in files if path.startswith(folder + "/")] for files in all_files)
            self._below[folder] = Names(self._root, inside, others) if inside or others else self
        return self._below[folder]

    def of_split(self, split: str | None) -> Names | None:
        """The files in folders of a split; all files where folders are no splits; None where they are only others."""
        if split is None or not is_split(split):
            return self
        if split not in self._of_split:
            by_folder = of_folders(self.files)
            inside = [path for path, own in by_folder.items() if own == split]
            self._of_split[split] = Names(self._root, inside) if inside else None if by_folder else self
        return self._of_split[split]

    def find_listed(self, folder: str, listed: str) -> str | None:
        """Find the file that `listed` names, relative to `folder` or, with a folder in it, to one above; else None.

        Upper and lower case and the form of accents (NFC, NFD) count only where a file has the very name.
        """
        for name in (listed, listed.replace("\\", "/")) if "\\" in listed else (listed,):
            above = folder
            while True:
                path = posixpath.normpath(posixpath.join(above, name))
                if path in self.files:
                    return path
                if (found := self._folded.get(folded(path))) is not None:
                    return found
                if not above or "/" not in name:
                    break
                above = posixpath.dirname(above)
            # `train/0.png` in a table in `train/`, which was opened.
            for depth in range(1, len(self._above) + 1):
                head = "/".join(self._above[-depth:]) + "/"
                if name.startswith(head) and (path := posixpath.normpath(name[len(head) :])) in self.files:
                    return path
        return self._others.find_listed(folder, listed) if self._others else None

    def by_end(self, listed: str) -> tuple[str | None, int]:
        """(file, parts in common) of the one file whose path has the longest end in common with `listed`.

        A path from the root on is that file in any case. Where several have that end, (None, parts); where none has,
        (None, 0). A name without suffix is that of a file
        with one where no file has the very name.
        """
        found = self._by_own_end(listed)
        other = self._others.by_end(listed) if self._others else found
        return other if other[1] > found[1] else found

    def _by_own_end(self, listed: str) -> tuple[str | None, int]:
        parts = parts_of(listed)
        whole = "/".join(parts)
        if whole in self.files:
            return whole, len(parts)
        if (found := self._stems.get(folded(whole))) is not None:
            return found, len(parts)
        for ends, case in ((self._ends, False), (self._folded_ends, True), (self._stem_ends, True)):
            wanted = [folded(part) for part in parts] if case else parts
            for depth in range(len(wanted), 0, -1):
                if (end := "/".join(wanted[-depth:])) in ends:
                    return ends[end], depth
        return None, 0

    @functools.cached_property
    def _folded(self) -> dict[str, str | None]:
        return _unique((folded(path), path) for path in self.files)

    @functools.cached_property
    def _stems(self) -> dict[str, str | None]:
        return _unique((folded(stem_of(path)), path) for path in self.files)

    @functools.cached_property
    def _ends(self) -> dict[str, str | None]:
        return self._by_end(lambda path: path)

    @functools.cached_property
    def _folded_ends(self) -> dict[str, str | None]:
        return self._by_end(folded)

    @functools.cached_property
    def _stem_ends(self) -> dict[str, str | None]:
        return self._by_end(lambda path: folded(stem_of(path)))

    def _by_end(self, form: Callable[[str], str]) -> dict[str, str | None]:
        """Every end of every file's path, from its name alone up to two folders above the root."""
        above = [form(part + "/")[:-1] for part in self._above]
        by_end: dict[str, str | None] = {}
        for file in self.files:
            end = ""
            for part in reversed(above + form(file).split("/")):
                end = f"{part}/{end}" if end else part
                by_end[end] = None if end in by_end else file
        return by_end


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, path in pairs:
        found[name] = None if name in found else path
    return found
