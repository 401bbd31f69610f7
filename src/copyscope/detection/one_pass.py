"""One pass over a corpus: what an audit, a lint or a match will need of each image, computed when it is first read."""

from __future__ import annotations

from typing import Unpack

from copyscope import parts
from copyscope.data.corpus import Corpus
from copyscope.detection.causes.causes import CONTROLS, complexity_work
from copyscope.detection.dedup.backgrounds import transparency_work
from copyscope.detection.dedup.groups import pixels_work
from copyscope.detection.embedding.compute import compute_ahead
from copyscope.detection.embedding.embed import vectors_work
from copyscope.detection.embedding.fill import Feature
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.part_search import PartSearch
from copyscope.detection.matching.registration import Register
from copyscope.detection.matching.windows import canvas_work
from copyscope.detection.search.exact import one_blas_thread
from copyscope.engine import CacheOptions, Engine

from .descriptors import Descriptor

FEW = 20_000
"""Of more training images only candidates are registered, and of more than CONTROLS only some measured: then these are
read again."""


def read_train(
    corpus: Corpus,
    descriptor: Descriptor,
    *,
    grouped: bool = False,
    judged: bool = False,
    parts_searched: bool = False,
    engine: Engine | None = None,
    **options: Unpack[CacheOptions],
) -> Corpus:
    """Read training images for all that comes.

    Args:
        corpus: the training images.
        descriptor: what describes them.
        grouped: near-duplicate groups will be made, and the complexity of pictures measured.
        judged: generated images will be judged against them.
        parts_searched: they will be looked for in parts of pictures.
        engine: who reads; None = this process.
        options: `cache`, `workers` and `progress` of `compute_ahead`.
    """
    works = [vectors_work(descriptor, engine), transparency_work(), Verify().work()]
    if grouped:
        works += [pixels_work()]
        works += [complexity_work()] if len(corpus) <= CONTROLS else []
    if judged:
        works += [vectors_work(parts.load("descriptors", "pdq"), engine)]
        works += [Register().work()] if len(corpus) <= FEW else []
    works += [canvas_work()] if parts_searched else []
    return compute_ahead(corpus, works, engine=engine, **options)


def read_queries(
    corpus: Corpus,
    descriptor: Descriptor,
    *,
    search: PartSearch | None = None,
    held_out: bool = False,
    engine: Engine | None = None,
    **options: Unpack[CacheOptions],
) -> Corpus:
    """Read images that are compared with training images.

    Args:
        corpus: the images.
        descriptor: what describes them.
        search: looks for training images in parts of them, in this process; None = nobody does.
        held_out: they calibrate, and look-alikes of training images are to be found among them.
        engine: who reads; None = this process.
        options: `cache`, `workers` and `progress` of `compute_ahead`.
    """
    works: list[Feature] = [vectors_work(descriptor, engine), Verify().work(), Register().work()]
    if held_out:
        works.append(vectors_work(parts.load("descriptors", "pdq"), engine))
    if search is not None and engine is None:
        works.append(search.work)
    with one_blas_thread():
        return compute_ahead(corpus, works, engine=engine, **options)
