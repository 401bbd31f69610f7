"""What an audit is about, for its report: title, model, note, and each set of images with a digest."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Annotated, TypedDict

import numpy as np
import pyarrow.compute

from copyscope.detection.embedding.embeddings import Embeddings

MOST = 10_000_000
"""Images of a set up to which it has a digest: the digests of its files are sorted in memory."""


class SetSummary(TypedDict):
    """A set of images that an audit was given."""

    set: Annotated[str, "`generated`, `train`, `held-out` or `control`"]
    path: Annotated[str, "path or URL, as given"]
    kind: Annotated[str, "layout"]
    n: Annotated[int, "images"]
    digest: Annotated[
        str | None,
        "SHA-256 over the sorted SHA-256 of the readable files: the same files have the same digest, whatever their "
        "names; null above 10,000,000 images",
    ]


class AboutSummary(TypedDict):
    """What an audit is about."""

    title: Annotated[str | None, "title of the report"]
    model: Annotated[str | None, "name and version of the model"]
    note: Annotated[str | None, "a note for readers"]
    sets: Annotated[list[SetSummary], "the sets of images"]


@dataclasses.dataclass(frozen=True)
class About:
    """What a person says about an audit. None = not said.

    Args:
        title: of the report.
        model: name and version of the model.
        note: any text.
    """

    title: str | None = None
    model: str | None = None
    note: str | None = None

    def summary(self, described: Mapping[str, Embeddings]) -> AboutSummary:
        """As plain JSON, with name, path, layout, number of images and digest of each set."""
        sets: list[SetSummary] = [
            {
                "set": name,
                "path": each.corpus.origin,
                "kind": each.corpus.kind,
                "n": len(each.corpus),
                "digest": digest(each),
            }
            for name, each in described.items()
        ]
        return {"title": self.title, "model": self.model, "note": self.note, "sets": sets}


def digest(described: Embeddings) -> str | None:
    """SHA-256 over the sorted SHA-256 of the readable files: two sets of the same files have the same, whatever names.

    None where the files have no digests, or are more than MOST.
    """
    table = described.corpus.table
    if "sha256" not in table.column_names or len(table) > MOST:
        return None
    known = table["sha256"].filter(pyarrow.compute.is_null(table["error"]))
    if known.null_count or not len(known):
        return None
    files = np.sort(known.to_numpy().astype("S64"))
    return hashlib.sha256(files.tobytes()).hexdigest()
