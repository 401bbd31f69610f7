"""Calibration scores from held-out images, controls, or the training set itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from copyscope import parts, stats
from copyscope.detection.dedup.components import components_at
from copyscope.detection.dedup.groups import Groups
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching.edges import Edges
from copyscope.detection.matching.match import Matches, match, rests_on_part
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.part_search import PartSearch
from copyscope.detection.matching.registration import Register
from copyscope.detection.search.distributed import nearest_by
from copyscope.detection.search.exact import NOTHING, REFERENCE_BLOCK, search
from copyscope.engine import Engine, EngineOptions
from copyscope.machine import Progress
from copyscope.stats import Estimate

from .answer import OWN_LEVEL
from .verdict import Calibration

LOOK_ALIKE_BITS, SAME_GROUP_BITS = 31, 64
RULE = (
    f"a held-out image is a look-alike when its file is that of a training image or its PDQ hash is within "
    f"{LOOK_ALIKE_BITS} of 256 bits of one's: PDQ's own bound, fixed beforehand and apart from the scores it calibrates"
)
CONTROL_RULE = "images of the base model, made before the model saw the training images: none is a look-alike by origin"
BASELINE_RULE = (
    f"training images against those that are not within {LOOK_ALIKE_BITS} of 256 bits of them by PDQ, or within "
    f"{SAME_GROUP_BITS} in one near-duplicate group"
)
BASELINE_SAMPLE = 2000
SIMILARITY_SAMPLE = 100_000
PIECE = 65_536
PICTURES = 100_000
"""Above so many training images pictures are near-duplicate groups: all pairs of hashes would take too long."""
BULK = 2000
OTHER_KIND = 0.9
"""Held-out images are of another kind where in so many pairs (lower end of the 95 % interval) the generated image is
the one drawn to the training set. Of one kind, 0.38 to 0.79 were seen (the most: 37 photographs cut into tiles); of
another, 0.96 to 1."""


def held_out(
    images: Embeddings,
    train: Embeddings,
    groups: Groups,
    verify: Verify,
    *,
    register: Register | None = None,
    edges: Edges | None = None,
    parts: PartSearch | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> tuple[Calibration, Matches, NDArray[np.bool_]]:
    """Calibrate on held-out images, without those that look like a training image.

    Left in, look-alikes take all power; cut at the score itself, they bias the threshold; so RULE looks at other
    things.

    Args:
        images: held-out images [n].
        train: the training images.
        groups: their near-duplicate groups.
        verify: the pixel comparison.
        register: as in `match`.
        edges: as in `match`.
        parts: as in `match`.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        engine: as in `match`.
        progress: called with a label, the number done and the total.

    Returns:
        (calibration, matches of the images that are left, bool [n] which were look-alikes).
    """
    options: EngineOptions = {"cache": cache, "workers": workers, "engine": engine, "progress": progress}
    alike = look_alikes(images, train, **options)
    clean = Embeddings(
        images.corpus, images.rows[~alike], images.vectors[~alike], images.descriptor, images.fingerprint
    )
    looks: dict[str, Any] = {"register": register, "edges": edges, "parts": parts}
    matches = match(clean, train, verify, labels=groups.label, **looks, **options)
    return Calibration("held-out", matches.evidence, int(alike.sum()), RULE), matches, alike


def controls(
    images: Embeddings,
    train: Embeddings,
    groups: Groups,
    verify: Verify,
    **options: Any,
) -> tuple[Calibration, Matches]:
    """Calibrate on images of the base model: they cannot be copies of what was trained on later.

    Args:
        images: made without the fine-tuning, from the same prompts as the generated images.
        train: the training images.
        groups: their near-duplicate groups.
        verify: the pixel comparison.
        options: `register`, `edges`, `parts`, `cache`, `workers`, `engine` and `progress` of `match`.

    Returns:
        (calibration, matches of the images).
    """
    matches = match(images, train, verify, labels=groups.label, **options)
    return Calibration("controls", matches.evidence, 0, CONTROL_RULE), matches


def nearer_than_control(matches: Matches, controls: Matches) -> Estimate | None:
    """Share of pairs (same prompt, same seed) whose generated image is nearer to the training set than the control.

    A half is what chance gives, where fine-tuning changed nothing. A tie counts against us, as nearer. None where no
    pair has the same `prompt` and `seed`, or a prompt and seed stand twice on a side.
    """
    sides = []
    for each in (matches, controls):
        table = each.queries.corpus.table
        if not {"prompt", "seed"} <= set(table.column_names):
            return None
        keys = zip(table["prompt"].to_pylist(), table["seed"].to_pylist(), strict=True)
        known = [(key, row) for row, key in enumerate(keys) if None not in key]
        if len({key for key, _ in known}) < len(known):
            return None
        place = dict(zip(each.queries.rows.tolist(), each.combined.max(axis=1).tolist(), strict=True))
        sides.append({key: place[row] for key, row in known if row in place})
    mine, theirs = sides
    pairs = [(mine[key], theirs[key]) for key in mine.keys() & theirs.keys()]
    if not pairs:
        return None
    return stats.proportion(sum(one >= other for one, other in pairs), len(pairs))


def differs(
    calibration: NDArray[np.float32], generated: NDArray[np.float32], train: NDArray[np.float32], *, seed: int = 0
) -> str | None:
    """Whether held-out images are of another kind than the generated ones: why, as a sentence, or None.

    What is compared is the bulk: how much nearer the median training image is to an image than the median held-out
    image. A copy is near to one training image and to the others no nearer than any image of the kind; so copying,
    however much of it, does not move the bulk. The median similarity to the training images alone tells less:
    photographs are as far from other photographs as from clip-art.

    Args:
        calibration: vectors of the held-out images, float32 [m d].
        generated: vectors of the generated images, float32 [n d].
        train: vectors of the training images, float32 [N d].
        seed: of the samples of BULK images that are compared.
    """
    if len(calibration) < 2 or not len(generated) or not len(train):
        return None
    rng = np.random.default_rng(np.random.SeedSequence([seed, 7]))
    unseen, made, own = (each[np.sort(rng.permutation(len(each))[:BULK])] for each in (calibration, generated, train))
    among = unseen @ unseen.T
    np.fill_diagonal(among, np.nan)
    to_train = [np.median(each @ own.T, axis=1) for each in (made, unseen)]
    to_unseen = [np.median(made @ unseen.T, axis=1), np.nanmedian(among, axis=1)]
    nearer = [one - other for one, other in zip(to_train, to_unseen, strict=True)]
    # Mann-Whitney: how often the training images draw a generated image more than they draw a held-out one.
    order = np.argsort(np.argsort(np.concatenate(nearer), kind="stable"), kind="stable")[: len(made)]
    n, m = len(made), len(unseen)
    share = (order.sum() - n * (n - 1) / 2) / (n * m)
    # Its standard error (Hanley & McNeil 1982, eq. 1): a handful of images tells little.
    one, other = share / (2 - share), 2 * share**2 / (1 + share)
    variance = share * (1 - share) + (n - 1) * (one - share**2) + (m - 1) * (other - share**2)
    if share - 1.96 * np.sqrt(max(variance, 0) / (n * m)) < OTHER_KIND:
        return None
    said = [f"{np.median(to_train[k]):.3f} and {np.median(to_unseen[k]):.3f}" for k in range(2)]
    return (
        "The held-out images are of another kind than the generated ones: their median similarities to training and to "
        f"held-out images are {said[1]}, those of the generated images {said[0]}."
    )


def look_alikes(images: Embeddings, train: Embeddings, **options: Unpack[EngineOptions]) -> NDArray[np.bool_]:
    """Which of `images` [n] are look-alikes of a training image by RULE.

    Args:
        images: held-out images [n].
        train: the training images.
        options: `cache`, `workers` and `progress` of `embed`.
    """
    pdq = parts.load("descriptors", "pdq")
    queries = embed(images.corpus.take(images.rows), pdq, **options)
    # Rows that could not be read have their error, and are not read again.
    references = embed(train.corpus, pdq, **options)
    # An image that cannot be read again cannot be cleared of being one.
    alike = np.ones(len(images.rows), dtype=bool)
    alike[queries.rows] = alike_by_hash(queries.vectors, references.vectors, options.get("workers"))
    mine = queries.corpus.table["sha256"]
    for start in range(0, len(train.rows), PIECE):
        alike |= alike_by_file(mine, references.corpus.pick("sha256", train.rows[start : start + PIECE]))
    return alike


def alike_by_hash(
    queries: NDArray[np.float32], references: NDArray[np.float32], workers: int | None = None
) -> NDArray[np.bool_]:
    """Look-alikes by PDQ: which queries are within LOOK_ALIKE_BITS of one of the references, bool [n].

    Args:
        queries: PDQ vectors [n 256].
        references: PDQ vectors [m 256].
        workers: threads; None = one a core.
    """
    found = search(queries, references, 1, workers=workers)
    # Half a bit of slack for rounding: one bit moves the inner product by 1/128.
    return np.asarray(found.score[:, 0] > 1 - (LOOK_ALIKE_BITS + 0.5) / 128)


def alike_by_file(queries: pa.ChunkedArray, references: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Which file digests [n] are among the references'."""
    return np.asarray(pc.is_in(queries, value_set=references).to_numpy(), bool)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """How near training images are to one another.

    Attributes:
        calibration: of method "baseline".
        similarity: float32 [n], of each training image to the nearest outside its own group; NaN where its group is the
            whole set, and for all but a sample of SIMILARITY_SAMPLE where the images lie in cells, or are many and the
            groups do not know what is nearest.
        own: float [b 2], combined and pixel score of the sample; [b 3] with that of the best part, where parts were
            looked at.
    """

    calibration: Calibration
    similarity: NDArray[np.float32]
    own: NDArray[np.float32]

    def beyond(
        self, evidence: NDArray[np.float32], pixels: NDArray[np.float32], calibration: NDArray[np.floating[Any]]
    ) -> NDArray[np.bool_]:
        """Which images [n] are nearer to the training set than training images are to one another, by pixels too.

        A model tuned on thirty photographs of one dog draws that dog, nearer to the training set than any control
        image. A new view of it is to the training set what each training image is to the others: it passes both scores
        of all but OWN_LEVEL of them with a probability of at most OWN_LEVEL (conformal, as `stats`). An image whose
        part stands out more than the whole is judged by its part.

        Args:
            evidence: of the images, float32 [n d], as `Matches.evidence`.
            pixels: of the images, float32 [n], as `Matches.pixels`.
            calibration: evidence of the control images, float [m d].
        """
        mine = np.stack([evidence[:, 1], pixels], axis=1)
        if self.own.shape[1] > 2:
            mine = np.concatenate([mine, evidence[:, -1:]], axis=1)
        columns = range(mine.shape[1])
        p_values = np.stack([stats.conformal_p_values(mine[:, j], self.own[:, j]) for j in columns], axis=1)
        # Fewer than 19 training images cannot give so small a p-value: then it is being beyond all of them that counts.
        small = p_values <= max(OWN_LEVEL, 1 / (len(self.own) + 1)) * (1 + 1e-12)
        whole = small[:, :2].all(axis=1)
        if len(columns) == 2:
            return np.asarray(whole, dtype=bool)
        return np.asarray(np.where(rests_on_part(evidence, calibration), small[:, -1], whole), dtype=bool)


def baseline(
    train: Embeddings,
    groups: Groups,
    verify: Verify,
    *,
    register: Register | None = None,
    edges: Edges | None = None,
    part_search: PartSearch | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> Baseline:
    """Baseline similarity: training images against the others, each without its own picture.

    An image's own picture is left out, nearly by the rule that cleans a held-out set (`_pictures`). Natural twins and
    other views of its subject stay, as they stay between a held-out and a training set; to leave out all that the
    descriptor finds near would cut the scores where copies begin. Pixels are compared for a random sample of at most
    BASELINE_SAMPLE, one image a picture.

    Args:
        train: the training images.
        groups: their near-duplicate groups.
        verify: the pixel comparison.
        register: as in `match`.
        edges: as in `match`.
        part_search: looks for the others in parts of each too; None = nobody looks.
        seed: of the sample.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        engine: as in `match`.
        progress: called with a label, the number done and the total.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    n = len(train.rows)
    asked = np.arange(n)
    if groups.closest is None and (train.cells is not None or n > SIMILARITY_SAMPLE):
        asked = np.sort(rng.permutation(n)[:SIMILARITY_SAMPLE])
    scores = np.full(n, np.nan, np.float32)
    scores[asked] = _outside_group(train, groups, asked, engine=engine, workers=workers, progress=progress)
    scores[scores < -1.5] = np.nan
    options: EngineOptions = {"cache": cache, "workers": workers, "engine": engine, "progress": progress}
    picture = _pictures(train, groups, options)
    # One image a picture: its near-duplicates would count the same distance again and again.
    _, first = np.unique(picture, return_index=True)
    some = np.sort(rng.permutation(first)[:BASELINE_SAMPLE])
    sample = Embeddings(train.corpus, train.rows[some], train.vectors[some], train.descriptor, train.fingerprint)
    looks: dict[str, Any] = {"register": register, "edges": edges, "parts": part_search}
    matches = match(sample, train, verify, labels=picture, own=picture[some], **looks, **options)
    evidence = matches.evidence
    there = np.isfinite(evidence).all(axis=1)
    own = [evidence[:, 1], matches.pixels, *([evidence[:, -1]] if matches.parts else [])]
    return Baseline(Calibration("baseline", evidence[there], 0, BASELINE_RULE), scores, np.stack(own, axis=1)[there])


def _outside_group(train: Embeddings, groups: Groups, asked: NDArray[np.int64], **options: Any) -> NDArray[np.float32]:
    """Similarity of the training images `asked` [a] to the nearest outside their own group; -2 where there is none."""
    label, found = groups.label, np.full(len(asked), NOTHING, np.float32)
    left = np.ones(len(asked), bool)
    if groups.closest is not None:
        # What grouped them compared all with all: nothing is left to do but for images of groups of three and more.
        index, score = groups.closest.index[asked], groups.closest.score[asked]
        other = (index >= 0) & (label[index] != label[asked][:, None])
        best = other.argmax(axis=1)[:, None]
        left = ~other.any(axis=1)
        found = np.where(left, found, np.take_along_axis(score, best, axis=1)[:, 0])
        if len(label) <= REFERENCE_BLOCK and left.any():
            left[:] = True  # in small blocks a matrix product may round otherwise
    if left.any():
        found[left] = nearest_by(
            options.pop("engine"),
            train.vectors[asked[left]],
            train.vectors,
            1,
            train.cells,
            query_labels=label[asked[left]],
            reference_labels=label,
            **options,
        ).score[:, 0]
    return found


def _pictures(train: Embeddings, groups: Groups, options: EngineOptions) -> NDArray[np.int64]:
    """Label of the picture that each training image [n] shows; where there are many, its near-duplicate group.

    Two images show one picture within LOOK_ALIKE_BITS by PDQ, and within SAME_GROUP_BITS where they are in one group: a
    shifted or recompressed copy is then the same, and another framing of the scene is not.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(train.rows)
    if n > PICTURES:
        return groups.label
    hashes = embed(train.corpus.take(train.rows), parts.load("descriptors", "pdq"), **options)

    bits = (SAME_GROUP_BITS, LOOK_ALIKE_BITS)
    found = components_at(hashes.vectors, [1 - (each + 0.5) / 128 for each in bits], workers=options["workers"])
    within = np.tile(n + np.arange(n, dtype=np.int64), (2, 1))  # of an image that is gone by now: its own
    within[:, hashes.rows] = found
    _, of_group = np.unique(np.stack([within[0], groups.label]), axis=1, return_inverse=True)
    # Images and labels are nodes; an image lies on an edge to each of its labels.
    rows = np.concatenate([np.arange(n), np.arange(n)])
    columns = n + np.concatenate([within[1], 2 * n + of_group.ravel()])
    size = 4 * n
    graph = coo_array((np.ones(2 * n, bool), (rows, columns)), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    return np.asarray(label[:n], np.int64)


def removed_ids(images: Embeddings, alike: NDArray[np.bool_]) -> list[str]:
    """Ids of the look-alikes, for the report."""
    return list(images.corpus.pick("id", images.rows[alike]).to_pylist())
