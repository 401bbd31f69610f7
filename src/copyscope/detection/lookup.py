"""Lookup: pictures matched against an index, as a result to save and view."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypedDict

import pyarrow as pa
import pyarrow.compute

from copyscope import stats
from copyscope._version import __version__
from copyscope.curation.decisions import Honoured
from copyscope.data.corpus import Corpus
from copyscope.detection.index.index import Hit, Index, table
from copyscope.detection.index.summary import IndexCalibration
from copyscope.engine import CacheOptions
from copyscope.errors import InputError
from copyscope.imaging import images
from copyscope.machine import Progress
from copyscope.stats import EstimateDict

from .match_sentences import MatchCopy, blank_said, copies_in_index, sentence_of_index
from .previews import QUALITY, ROWS, previews, rows_of
from .results import Result, versions

SCHEMA = "copyscope.index-matches/1"
LEVEL = 0.01
"""Of pictures that copy nothing, the share whose first match may have a p-value as small as those that are counted."""


class LookupOptions(TypedDict):
    """Options of a look-up."""

    k: Annotated[int, "matches an image"]
    local: Annotated[bool, "as `local`"]


class LookupRecipe(TypedDict):
    """What a look-up was made of."""

    pictures: Annotated[list[str], "where the images asked about were"]
    index: Annotated[str, "folder of the index"]
    train: Annotated[str | None, "training images whose previews the page shows (`--train`); null without"]
    options: Annotated[LookupOptions, "`k` and `local`"]
    versions: Annotated[dict[str, str], "versions, by package; its keys may change"]


class LookupSummary(TypedDict):
    """Summary of `match --index`; its JSON has the matches too."""

    schema: Annotated[str, "`copyscope.index-matches/1`"]
    copyscope: Annotated[str, "version"]
    created: Annotated[str, "when, ISO 8601, UTC"]
    seconds: Annotated[float, "how long it took"]
    sentence: Annotated[str, "what was found, in words"]
    n: Annotated[int, "images asked about, unreadable ones included"]
    n_missing: Annotated[int, "of them, those that cannot be read"]
    n_blank: Annotated[int, "of them, those of one colour to within noise: they have no matches"]
    n_index: Annotated[int, "images in the index"]
    protocol: Annotated[str, "protocol of the index"]
    local: Annotated[bool, "parts of the images were looked at too"]
    level: Annotated[float, "share of images that copy nothing whose first match may have such a p-value: 0.01"]
    n_flagged: Annotated[
        int, "images that are the same as a training image, or whose first match has a p-value of at most `level`"
    ]
    n_identical: Annotated[int, "of them, those that are the same as a training image"]
    flagged: Annotated[
        EstimateDict | None,
        "`n_flagged` as a share of the readable images that are not blank; null = too few calibration images: "
        "`n_flagged` then counts identical images alone",
    ]
    copies: Annotated[list[MatchCopy], "the first 100 of `n_flagged`, identical ones first, then by combined score"]
    recipe: Annotated[LookupRecipe, "what it was made with"]
    calibration: Annotated[IndexCalibration, "as in [the index](#index)"]


class Lookup(Result):
    """Result of `lookup`: a summary that is plain JSON, and tables. `docs/json.md` describes both."""

    summary: LookupSummary
    schema = SCHEMA

    def page(self) -> str:
        """The report as one HTML page: each picture beside its matches."""
        from copyscope.report.lookup import render

        return render(self)


def lookup(
    index: Index,
    pictures: Sequence[str | Path | Corpus],
    k: int = 10,
    *,
    local: bool = True,
    train: str | Path | Corpus | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Lookup:
    """Look pictures up in an index: the k training images that each is most like, with thumbnails of the first of both.

    Args:
        index: the index.
        pictures: corpora, or what `Corpus.open` takes.
        k: matches a picture, 1 or more.
        local: look at windows of the pictures too, ten times the work.
        train: the training images themselves, which the report shows at 192 pixels, by id; None = what the index has of
            them, at 32 pixels.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.

    Returns:
        The matches with their tables.

    Raises:
        InputError: a folder cannot be used, or two of the pictures have one id.
        PartError: the index names a descriptor that is not loaded unless it is trusted.
    """
    began = time.monotonic()
    if not pictures:
        raise InputError("There are no pictures to look up.\nName a folder of images, or one image")
    asked = [each if isinstance(each, Corpus) else Corpus.open(each) for each in dict.fromkeys(pictures)]
    trained = train if isinstance(train, Corpus) or train is None else Corpus.open(train)
    _refuse_repeats([each for corpus in asked for each in corpus.ids])
    options: CacheOptions = {"cache": cache, "workers": workers, "progress": progress}
    done = Honoured()
    found = [index.match_corpus(corpus, k, local=local, honoured=done, **options) for corpus in asked]
    decisions = index.decided.decisions if index.decided else None
    said = {"decisions": decisions.summary(done)} if decisions else {}
    places = [(corpus, row) for corpus, _ in found for row in range(len(corpus))]
    hits = [each for _, answers in found for each in answers]
    known = pa.concat_tables([corpus.table.select(["id", "width", "height", "error"]) for corpus, _ in found])
    ids = known["id"].to_pylist()
    failed = known.filter(pa.compute.is_valid(known["error"])).select(["id", "error"])
    about = index.summary()
    blank = [
        each
        for each, error, answers in zip(ids, known["error"].to_pylist(), hits, strict=True)
        if about["n"] and error is None and not answers and each not in done.emptied
    ]
    n, n_calibration = len(known) - len(failed) - len(blank), about["calibration"]["n"]
    n_copies, copies = copies_in_index(ids, hits, LEVEL)
    n_identical = sum(bool(answers) and answers[0].identical for answers in hits)
    images_said = f"{n} {'readable ' if len(failed) else ''}{'image' if n == 1 else 'images'}"
    # Of few calibration images no p-value is small enough: what is found is then a part of what is there.
    can_tell = n_calibration >= 1 / LEVEL - 1
    counted = stats.proportion(n_copies, n, missing=len(failed)).as_dict() if can_tell else None
    sentence = sentence_of_index(images_said, n_copies, n_identical, LEVEL, n_calibration) + blank_said(len(blank))
    sentence += f" {said['decisions']['sentence']}" if said else ""
    listed = failed.add_column(0, "corpus", pa.array(["pictures"] * len(failed), pa.string()))
    return Lookup(
        {
            "schema": SCHEMA,
            "copyscope": __version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 2),
            "sentence": sentence,
            "n": len(known),
            "n_missing": len(failed),
            "n_blank": len(blank),
            "n_index": about["n"],
            "protocol": about["protocol"],
            "local": local,
            "level": LEVEL,
            "n_flagged": n_copies,
            "n_identical": n_identical,
            "flagged": counted,
            "copies": copies,
            "calibration": about["calibration"],
            "recipe": {
                "pictures": [corpus.origin for corpus in asked],
                "index": index.origin,
                "train": trained.origin if trained else None,
                "options": {"k": k, "local": local},
                "versions": versions(),
            },
            **said,
        },
        {
            "matches": table(ids, hits),
            "failures": listed if decisions is None else pa.concat_tables([listed, decisions.failures()]),
            "blank": pa.table({"id": pa.array(blank, pa.string())}),
            "thumbnails": _thumbnails(index, known, places, hits, trained),
        },
    )


SIZED = pa.schema(
    {
        "corpus": pa.string(),
        "id": pa.string(),
        "image": pa.binary(),
        "width": pa.int32(),
        "height": pa.int32(),
        "square": pa.bool_(),
    }
)


def _thumbnails(
    index: Index, known: pa.Table, places: list[tuple[Corpus, int]], hits: list[list[Hit]], train: Corpus | None
) -> pa.Table:
    """Thumbnails of the ROWS pictures with the highest combined scores and of their matches, as WebP with full size.

    Of training images that are not in `train`, or cannot be read there, it is what the index has, their middle square.
    """
    from copyscope.report.lookup import SHOWN

    order = sorted((row for row, each in enumerate(hits) if each), key=lambda row: -(hits[row][0].combined or -1.0))
    chosen = order[:ROWS]
    sizes = known.select(["id", "width", "height"]).take(pa.array(chosen, pa.int64())).to_pylist()
    shots = previews([places[row] for row in chosen])
    found = [
        {"corpus": "pictures", "image": shot, "square": False} | size
        for shot, size in zip(shots, sizes, strict=True)
        if shot is not None
    ]
    named = rows_of(train, [hit.id for row in chosen for hit in hits[row][:SHOWN]]) if train else {}
    files = dict(zip(named, previews([(train, row) for row in named.values()]) if train else [], strict=True))
    squares = index.thumbnails([hit.id for row in chosen for hit in hits[row][:SHOWN]])
    found += [
        {
            "corpus": "train",
            "id": each,
            "image": files.get(each) or images.encode(square, "webp", QUALITY),
            "square": not files.get(each),
            "width": width,
            "height": height,
        }
        for each, (square, width, height) in squares.items()
    ]
    return pa.Table.from_pylist(found, SIZED)


def _refuse_repeats(ids: list[str]) -> None:
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            raise InputError(
                f"Two of the images asked about are called {each!r}.\nLook them up apart, or give the folder above both"
            )
        seen.add(each)
