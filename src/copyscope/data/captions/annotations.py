"""What the files beside images say: captions, columns, images that are not there, and which files were used."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterable
from typing import Any

from copyscope.data.folders.names import Names
from copyscope.data.folders.splits import of_file, place_of
from copyscope.data.table import distinct

NAMES_NONE = "names none of the images here"
OTHER_SPLIT = "its name is that of another split"


@dataclasses.dataclass
class Annotations:
    """What sidecars say: by path relative to the folder, captions and further columns, and files that are not there.

    Args:
        names: the images of the folder.
        outside: files that lie elsewhere.
        inside_only: those are not taken.
        first_line: images of which only the first line of a text file is a caption.
        used: files that were read for this.
        passed: files that were not, and why.
        sources: where the captions of an image are from.
        notes: what else is to be said.
    """

    names: Names
    inside_only: bool = False
    first_line: frozenset[str] = frozenset()
    captions: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    extras: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    outside: set[str] = dataclasses.field(default_factory=set)
    used: set[str] = dataclasses.field(default_factory=set)
    passed: dict[str, str] = dataclasses.field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    kind: str = "folder"

    def add(self, path: str, captions: list[str], extras: dict[str, Any], source: str = "") -> None:
        """Another record for `path`: its captions are added, its other values taken where there are none yet."""
        self.captions[path] = distinct(self.captions[path] + captions) if path in self.captions else captions
        if extras:
            self.extras[path] = extras | self.extras.get(path, {})
        if captions and source:
            before = self.sources.get(path, ())
            self.sources[path] = before if source in before else (*before, source)

    def seen(self, kind: str) -> None:
        """The first kind of sidecar that was found is that of the corpus."""
        if self.kind == "folder":
            self.kind = kind

    def names_for(self, path: str, listed: str = "") -> Names | None:
        """The images that the list `path` may speak of: those of the split in its name, if `listed` names no other.

        None where the folders are other splits.
        """
        names = self.names if listed and place_of(listed.replace("\\", "/")) else self.names.of_split(of_file(path))
        return names and names.below(posixpath.dirname(path))

    def pass_over(self, paths: Iterable[str], why: str) -> None:
        """Files that are not read, and why."""
        for path in paths:
            self.passed.setdefault(path, why)
