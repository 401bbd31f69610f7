"""Watch for copying during training: samples of each checkpoint, judged.

`diffusion.train` makes the samples and knows nothing of copies; `detection` judges images and knows nothing of models.
Here a callable is made of the one for the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

from copyscope.data.corpus import Corpus
from copyscope.detection.dedup.groups import duplicates
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.protocols import protocol as named_protocol
from copyscope.detection.matching.blank import blank_rows, without_rows
from copyscope.detection.matching.edges import Edges
from copyscope.detection.matching.match import match
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.registration import Register
from copyscope.detection.verdict.verdict import Calibration, verdict
from copyscope.engine import CacheOptions
from copyscope.errors import InputError
from copyscope.stats import Estimate

from .verdict import calibration as calibrate

Watch = Callable[[Path, Sequence[str], int], Estimate]
"""(folder of samples, their prompts, training step) -> replication rate."""


def make_watch(
    train_corpus: Corpus | str | Path,
    held_out: Corpus | str | Path | None = None,
    protocol: str = "sscd-288",
    **options: Unpack[CacheOptions],
) -> Watch:
    """Watch of a training: which share of its samples are copies, by the verdict of `audit` on whole pictures alone.

    The training set is described, grouped and calibrated on once, at the first call.

    Args:
        train_corpus: the training images; a Corpus or what `Corpus.open` takes.
        held_out: calibrates, as in `audit`; None = the training set stands in.
        protocol: a name in `PROTOCOLS` or a descriptor spec.
        options: `cache`, `workers` and `progress` of `embed`.

    Returns:
        (folder of samples, their prompts, training step) -> replication rate, for `train(watch=...)`.

    Raises:
        InputError: at the first call, where the training images cannot be used.
    """
    rules, verify = named_protocol(protocol), Verify()
    looks: dict[str, Any] = {"register": Register(), "edges": Edges()}
    descriptor = rules.load()

    @functools.cache
    def known() -> tuple[Embeddings, Calibration]:
        train = embed(train_corpus, descriptor, **options)
        if not len(train.rows):
            raise InputError(
                f"None of the {len(train.corpus)} training images in {train.corpus.origin} can be read.\n"
                "Name the folder of images that the model is trained on"
            )
        groups = duplicates(train, rules.duplicates, **options)
        if held_out is None:
            calibration = calibrate.baseline(train, groups, verify, **looks, **options).calibration
        else:
            unseen = embed(held_out, descriptor, **options)
            unseen = without_rows(unseen, blank_rows(unseen, **options))
            calibration, _, _ = calibrate.held_out(unseen, train, groups, verify, **looks, **options)
        return train, calibration

    def watch(folder: Path, captions: Sequence[str], step: int) -> Estimate:
        train, calibration = known()
        samples = embed(folder, descriptor, **options)
        matches = match(samples, train, verify, **looks, **options)
        judged = verdict(
            matches.evidence,
            calibration,
            identical=matches.identical,
            blank=blank_rows(samples, **options),
            n_missing=samples.n_missing,
        )
        return judged.rate

    return watch
