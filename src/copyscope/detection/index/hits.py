"""Hits: the answer of an index for one picture, with p-values."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope import stats
from copyscope.detection.matching.local_search import WHOLE, Candidates, local_search
from copyscope.detection.matching.match import is_identical
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.windows import Box, QueryFeatures
from copyscope.engine import Options
from copyscope.errors import InputError

from .segments import CalibrationScores, IndexSnapshot

Excused = Callable[[int, int], str]
SAME_TO_ROUNDING = 0.996
"""Similarity of an image to itself is no lower, whatever precision the index keeps: int8 moves it by up to 0.003."""


ROUNDED = 0.998
"""No lower are both scores of a training image whose levels were cut where they should have been rounded: .9990 and
.9991 on 30 photographs."""


@dataclasses.dataclass(frozen=True)
class Hit:
    """A training image that a picture, or a part of it, is like.

    Args:
        id: of the training image.
        score: descriptor similarity, in [-1, 1].
        verified: pixel score in [-1, 1]; None where the candidate was not re-ranked.
        combined: both as one, as in an audit; None likewise.
        p_value: conformal: how often a real image that is no copy scores as high; None likewise.
        box: part of the picture, as x, y, width, height in shares of it; None = the whole.
        source_box: part of the training image, likewise.
        caption: the training image's first caption; None where it has none.
        identical: it is the picture itself (the same file, the same pixels, or both scores 1 to within rounding): a
            copy, whatever the p-value; never so for a part or a mirror image.
    """

    id: Annotated[str, "training image"]
    score: Annotated[float, "descriptor similarity, of the part where there is a `box`"]
    verified: Annotated[float | None, "pixel score"]
    combined: Annotated[float | None, "combined score"]
    p_value: Annotated[float | None, "conformal p-value of that score"]
    box: Annotated[Box | None, "part of the image: left, top, width, height as shares of it; null = the whole"]
    source_box: Annotated[Box | None, "part of the training image; null = the whole"]
    caption: Annotated[str | None, "first caption of the training image"]
    identical: Annotated[bool, "the picture is the training image itself"] = False


class HitRow(TypedDict):
    """A match in an index, as a row."""

    query_id: Annotated[str, "image asked about"]
    reference_id: Annotated[str, "training image"]
    rank: Annotated[int, "1 = highest combined score; those without a second look come last"]
    score: Annotated[float, "descriptor similarity, of the part where there is a `box`"]
    verified: Annotated[float | None, "pixel score"]
    combined: Annotated[float | None, "combined score"]
    p_value: Annotated[float | None, "conformal p-value of that score"]
    box: Annotated[list[float] | None, "part of the image: left, top, width, height as shares of it; null = the whole"]
    source_box: Annotated[list[float] | None, "part of the training image; null = the whole"]
    caption: Annotated[str | None, "first caption of the training image"]
    identical: Annotated[bool, "the picture is the training image itself"]


TABLE = pa.schema(
    {"query_id": pa.string(), "reference_id": pa.string(), "rank": pa.int32()}
    | dict.fromkeys(("score", "verified", "combined"), pa.float32())
    | {"p_value": pa.float64(), "box": pa.list_(pa.float64()), "source_box": pa.list_(pa.float64())}
    | {"caption": pa.string(), "identical": pa.bool_()}
)


def is_copy(hits: Sequence[Hit], level: float) -> bool:
    """Whether a picture is a copy: it is its first match itself, or the p-value is at most `level`.

    Args:
        hits: of the picture, best first.
        level: largest p-value of a copy, 0..1.
    """
    return bool(hits) and (hits[0].identical or (hits[0].p_value is not None and hits[0].p_value <= level))


def is_rounded(hit: Hit) -> bool:
    """Whether a picture is the training image but for rounding, as by a cast to uint8 that cuts."""
    whole = hit.box is None and hit.source_box is None
    return whole and hit.verified is not None and min(hit.score, hit.verified) >= ROUNDED


def table(ids: Sequence[str], answers: Sequence[list[Hit]]) -> pa.Table:
    """Table of hits: query_id, reference_id, rank (from 1), then the fields of a Hit.

    Args:
        ids: of the pictures [n].
        answers: hits of each picture [n].
    """
    rows = [
        {"query_id": each, "reference_id": hit.id, "rank": rank}
        | {name: value for name, value in dataclasses.asdict(hit).items() if name != "id"}
        for each, hits in zip(ids, answers, strict=True)
        for rank, hit in enumerate(hits, 1)
    ]
    return pa.Table.from_pylist(rows, TABLE)


def answers(
    looks: QueryFeatures,
    state: IndexSnapshot,
    k: int,
    local: bool,
    blank: NDArray[np.bool_],
    digests: Sequence[str | None] | None = None,
    *,
    excused: Excused | None = None,
    exact: bool | None,
    options: Options,
) -> list[list[Hit]]:
    """Hits of pictures whose features are known; none for those that are blank.

    Args:
        looks: features of the pictures [n].
        state: of the index.
        k: hits a picture.
        local: look at windows too.
        blank: bool [n].
        digests: sha256 (hex) of the file of each picture [n]; None where there are no files.
        excused: why a picture and a row are no match, "" where they are one; None = all are.
        exact: as in `Index.match`.
        options: of `local_search`.

    Raises:
        InputError: k is below 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}")
    n = len(looks.vectors)
    if not n:
        return []
    crops = state.crops if local else None
    found = local_search(looks, state.whole, state.coarse, crops, Verify(), k, exact=exact, **options)
    same = _identical(found, looks, state, digests)

    def chosen_of(picture: int) -> Iterator[int]:
        for at in found.of(picture, same[picture]):
            if excused is None or not excused(picture, int(found.row[picture, at])):
                yield at

    chosen = [[] if blank[picture] else list(itertools.islice(chosen_of(picture), k)) for picture in range(n)]
    rows = np.unique([found.row[picture, at] for picture in range(n) for at in chosen[picture]]).astype(np.int64)
    said = dict(zip(rows.tolist(), state.table.take(rows, ["id", "caption"]), strict=True))
    return [
        _hits(found, picture, chosen[picture], said, state.calibration, local, same[picture]) for picture in range(n)
    ]


def _identical(
    found: Candidates, looks: QueryFeatures, state: IndexSnapshot, digests: Sequence[str | None] | None
) -> NDArray[np.bool_]:
    """Which candidates [n c] are the picture itself.

    By both scores, by equal thumbnails where vectors are rounded, or by the digest of the file.
    """
    wholes = (found.box == WHOLE).all(axis=2) & (found.source_box == WHOLE).all(axis=2) & (found.row >= 0)
    near = wholes & (found.score >= SAME_TO_ROUNDING)
    same = near & is_identical(found.score, found.verified)
    picture, at = np.nonzero(near & ~same)
    if len(picture):
        rows, slot = np.unique(found.row[picture, at], return_inverse=True)
        equal = (state.whole.thumbnails(rows)[slot] == looks.thumbnails[picture]).all(axis=(1, 2, 3))
        if digests is not None:
            theirs = [each["sha256"] for each in state.table.take(rows, ["sha256"])]
            pairs = zip(picture.tolist(), slot.tolist(), strict=True)
            equal |= np.array([digests[mine] is not None and digests[mine] == theirs[row] for mine, row in pairs], bool)
        same[picture, at] = equal
    identical: NDArray[np.bool_] = same
    return identical


def _hits(
    found: Candidates,
    picture: int,
    chosen: list[int],
    said: dict[int, dict[str, Any]],
    kept: CalibrationScores,
    local: bool,
    same: NDArray[np.bool_],
) -> list[Hit]:
    """Hits of a picture.

    Args:
        found: candidates of all pictures.
        picture: its place.
        chosen: its candidates that are hits, best first.
        said: row -> id and caption.
        kept: calibration scores.
        local: windows were looked at.
        same: bool [c], candidates that are the picture itself.
    """
    hits = []
    for at in chosen:
        combined = float(found.combined[picture, at])
        seen = math.isfinite(combined)
        scores = kept.local if local else kept.whole
        row = said[int(found.row[picture, at])]
        hits.append(
            Hit(
                row["id"],
                float(found.score[picture, at]),
                float(found.verified[picture, at]) if seen else None,
                combined if seen else None,
                float(stats.conformal_p_values(np.array([combined]), scores)[0]) if seen else None,
                _box(found.box[picture, at]),
                _box(found.source_box[picture, at]),
                row["caption"],
                bool(same[at]),
            )
        )
    return hits


def _box(found: NDArray[np.float32]) -> Box | None:
    """A box as a hit has it: None for the whole."""
    x, y, width, height = (round(float(each), 4) for each in found)
    return None if (x, y, width, height) == WHOLE else (x, y, width, height)
