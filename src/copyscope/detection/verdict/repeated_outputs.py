"""Outputs that a model repeats although the training set holds nothing like them.

Groups of near-equal generated images from different prompts, none of them a copy of a training image: the training set
that was given is not complete, or the model has collapsed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope import stats
from copyscope.detection.dedup.caption_overlap import normalise
from copyscope.detection.dedup.groups import duplicates
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching.ncc import Verify
from copyscope.engine import CacheOptions
from copyscope.machine import Progress

LEAST = 3
"""Fewest generations of one picture that count as repeated: two that agree are found by chance among many prompts."""
SAME = 0.9
"""Least pixel score to the centre of the group; see `Verify`."""
STARS = 8
"""So many groups are looked for in one group of the descriptor's."""
LISTED, IDS, PROMPTS = 50, 20, 5
"""Most groups that are listed, and most ids and prompts of each."""


@dataclasses.dataclass(frozen=True)
class Repeat:
    """One picture that was made again and again.

    Attributes:
        rows: corpus rows of its images [size], the centre first, then the most alike.
        similarity: [size], of each to the centre, by the descriptor.
        verified: [size], likewise by pixels.
        n_prompts: how many different prompts they have; 0 where none is known.
        n_generations: images without re-runs (same prompt and seed, or same file).
    """

    rows: NDArray[np.int64]
    similarity: NDArray[np.float32]
    verified: NDArray[np.float32]
    n_prompts: int
    n_generations: int


@dataclasses.dataclass(frozen=True)
class Repeats:
    """The repeated pictures of a set of generated images, the largest group first."""

    generated: Embeddings
    groups: tuple[Repeat, ...]

    @property
    def sentence(self) -> str | None:
        """Sentence on the repeated outputs; None where there are none."""
        if not self.groups:
            return None
        images = sum(len(group.rows) for group in self.groups)
        if len(self.groups) == 1:
            what, it = f"one picture again and again, in {images} images", "it"
        else:
            what, it = f"{len(self.groups)} pictures again and again, in {images} images", "them"
        return (
            f"The model makes {what}. No match of {it} was found in the training set that you gave: the set is not "
            "complete, or the model has collapsed."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: counts, and the first groups with the first of their ids and prompts."""
        n = len(self.generated.rows)
        images = sum(len(group.rows) for group in self.groups)
        return {
            "n_groups": len(self.groups),
            "n_images": images,
            "share": stats.proportion(images, n).as_dict(),
            "sentence": self.sentence,
            "groups": [self._plain(group) for group in self.groups[:LISTED]],
        }

    def _plain(self, group: Repeat) -> dict[str, Any]:
        corpus = self.generated.corpus
        prompts = dict.fromkeys(corpus.prompts[row].strip() for row in group.rows)
        size = len(group.rows)
        return {
            "size": size,
            "share": stats.proportion(size, len(self.generated.rows)).as_dict(),
            "ids": corpus.pick("id", group.rows[:IDS]).to_pylist(),
            "prompts": [text for text in prompts if text][:PROMPTS],
            "n_prompts": group.n_prompts,
            "n_generations": group.n_generations,
            # The centre is itself to the bit.
            "similarity": round(float(np.median(group.similarity[1:])), 4),
            "similarity_least": round(float(group.similarity.min()), 4),
            "verified": round(float(np.median(group.verified[1:])), 4),
            "verified_least": round(float(group.verified.min()), 4),
        }


def repeated_outputs(
    generated: Embeddings,
    has_source: NDArray[np.bool_],
    threshold: float,
    *,
    blank: NDArray[np.bool_] | None = None,
    verify: Verify = Verify(),
    least: int = LEAST,
    same: float = SAME,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Repeats:
    """Find groups of near-equal generated images without a source in the training set.

    Images of one file, of one prompt and seed, or of one prompt and equal bytes are one generation. Where prompts are
    known, a group must have two different ones.

    Args:
        generated: the readable generated images [n].
        has_source: bool [n], which of them are copies of a training image, identical to one, or so near to one that
            they may be copies. A group with such a member has a source and is left out.
        threshold: similarity of near-duplicates, as in `duplicates`.
        blank: bool [n], images of one colour, left out; None = no image is blank.
        verify: the pixel comparison.
        least: fewest generations in a group.
        same: pixel score that each member must reach to the centre of its group.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.
    """
    n = len(generated.rows)
    usable = np.ones(n, dtype=bool) if blank is None else ~blank
    if usable.sum() < least:
        return Repeats(generated, ())
    places = np.flatnonzero(usable)
    used = dataclasses.replace(generated, rows=generated.rows[places], vectors=generated.vectors[places], cells=None)
    options: CacheOptions = {"cache": cache, "workers": workers, "progress": progress}
    label = duplicates(used, threshold, verify=verify, **options).label
    prompts = np.array([normalise(used.corpus.prompts[row]) for row in used.rows], dtype=object)
    generation = _generations(used, prompts)
    order = np.argsort(label, kind="stable")
    members = [
        part
        for part in np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
        if len(np.unique(generation[part])) >= least
    ]
    if not members:
        return Repeats(generated, ())
    looked_at = np.sort(np.concatenate(members))
    thumbnails = verify.thumbnails(used.corpus, used.rows[looked_at], **options)
    groups: list[Repeat] = []
    for left in members:
        for _ in range(STARS):
            if len(np.unique(generation[left])) < least:
                break
            # The centre of a group is its member nearest to the mean; so a full collapse costs one comparison an image.
            held = used.vectors[left]
            scores = held @ held[int(np.argmax(held @ held.mean(axis=0)))]
            order = np.argsort(-scores, kind="stable")
            left, scores = left[order], scores[order]
            alike = int((scores >= threshold).sum())
            pictures = thumbnails[np.searchsorted(looked_at, left[:alike])]
            verified = verify.compare(pictures, pictures[:1], np.zeros((alike, 1), np.int64), workers=workers)[:, 0]
            near = np.flatnonzero(verified >= same) if alike else np.zeros(0, np.intp)
            near = np.union1d(near, [0])
            rows = left[near]
            texts = {text for text in prompts[rows] if text}
            count = len(np.unique(generation[rows]))
            # Where prompts are known, one prompt alone is no surprise.
            if count >= least and len(texts) != 1 and not has_source[places[rows]].any():
                groups.append(Repeat(used.rows[rows], scores[near], verified[near], len(texts), count))
            left = np.delete(left, near)
    groups.sort(key=lambda group: (-len(group.rows), int(group.rows.min())))
    return Repeats(generated, tuple(groups))


def _generations(generated: Embeddings, prompts: NDArray[Any]) -> NDArray[np.int64]:
    """Number of the generation of each image [n], the same for images that were generated once.

    These are images of one file, of one prompt and seed, or of one prompt and equal bytes.
    """
    corpus, rows = generated.corpus, generated.rows
    names = corpus.table.column_names
    files = corpus.pick("image", rows).to_pylist()
    digests = corpus.pick("sha256", rows).to_pylist() if "sha256" in names else [None] * len(rows)
    seeds = corpus.pick("seed", rows).to_pylist() if "seed" in names else [None] * len(rows)
    first: dict[Any, int] = {}
    found = np.arange(len(rows), dtype=np.int64)
    for row, (file, digest, seed, prompt) in enumerate(zip(files, digests, seeds, prompts, strict=True)):
        keys: list[Any] = [("file", file)] if file is not None else []
        if digest is not None:
            keys.append(("bytes", digest, prompt))
        if prompt and seed is not None:
            keys.append(("seed", prompt, seed))
        found[row] = min((first[key] for key in keys if key in first), default=row)
        for key in keys:
            first.setdefault(key, int(found[row]))
    return found
