"""Properties of training images (duplication, captions, complexity) and risk cards."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections import Counter
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope import parts, stats
from copyscope.detection.dedup.caption_overlap import CaptionSharing, caption_sharing
from copyscope.detection.dedup.groups import Groups, representatives
from copyscope.detection.embedding.compute import compute
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.fill import Feature
from copyscope.detection.matching.match import Matches
from copyscope.detection.measures import Item, Measure, complexity_view
from copyscope.detection.verdict.answer import COPIES
from copyscope.detection.verdict.verdict import Verdict
from copyscope.engine import CacheOptions
from copyscope.errors import ImageError
from copyscope.machine import Progress

from .exposure import exposure
from .findings import Findings, explain, lint_action, risk_action

CONTROLS = 2000
UNCOPIED_CARDS = 100
PROMPTS_KEPT = 20
COMPLEXITY = ("entropy", "jpeg_size", "total_variation", "mixed")


@dataclasses.dataclass(frozen=True)
class Causes:
    """Findings, risk records and reasons of an audit.

    Attributes:
        findings: what goes with copying.
        risk: a row a training image to look at.
        complexity: of the matched images.
        reasons: position of a query -> sentence.
    """

    findings: Findings
    risk: pa.Table
    complexity: pa.Table
    reasons: dict[int, str]


def causes(
    matches: Matches,
    judged: Verdict,
    groups: Groups,
    *,
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Causes:
    """Explain a verdict by what is known of the matched training images.

    The joint model looks at distinct training images, one a near-duplicate group. Where most prompts are training
    captions (`exposure`), these are the groups whose captions were prompts, with the number of generated images asked
    for with them and of the copies among those; above CONTROLS groups without a copy, a random share of the images that
    copy nothing stands for all. Elsewhere they are all the copied groups and a random sample of at most CONTROLS
    others.

    Correlations run over the generated images and the image each is most similar to, as in DCR.

    Args:
        matches: of the generated images.
        judged: the verdict on them.
        groups: near-duplicate groups of the training images.
        seed: of the samples.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.
    """
    copied = np.flatnonzero(judged.copied)
    copied_groups = Counter(groups.label[matches.match[copied]].tolist())
    first = representatives(groups)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    exposed = exposure(matches, judged.copied, groups, progress)
    if exposed.known:
        drawn = exposed.thinned(CONTROLS, rng)
        chosen = np.flatnonzero(drawn.images)
    else:
        spared = np.ones(len(first), dtype=bool)
        spared[list(copied_groups)] = False
        others = rng.permutation(np.flatnonzero(spared))
        chosen = np.sort(np.concatenate([np.array(sorted(copied_groups), dtype=np.int64), others[:CONTROLS]]))
    top = matches.nearest.index[:, 0]
    large = groups.sizes > 1
    large[list(copied_groups)] = False
    uncopied = first[np.flatnonzero(large)[:UNCOPIED_CARDS]]
    profile = ImageFacts.of(
        matches.references,
        groups,
        np.concatenate([first[chosen], top, matches.match]),
        uncopied,
        cache=cache,
        workers=workers,
        progress=progress,
    )
    images = profile.table(first[chosen]).append_column(
        "copied", pa.array(np.isin(chosen, list(copied_groups)).astype(bool))
    )
    if exposed.known:
        images = images.append_column("n_images", pa.array(drawn.images[chosen]))
        images = images.append_column("n_copies", pa.array(drawn.copies[chosen]))
    queries, references = matches.queries, matches.references
    generated = profile.table(top)
    generated = generated.append_column("score", pa.array(matches.similarity))
    generated = generated.append_column("match", references.corpus.pick("id", references.rows[top]))
    complexity = generated.select(["match", "score", *COMPLEXITY])
    complexity = complexity.add_column(0, "id", queries.corpus.pick("id", queries.rows))
    complexity = complexity.append_column("copied", pa.array(judged.copied))
    risk, reasons = _risk(matches, judged, groups, profile, uncopied)
    findings = explain(images, generated, seed=seed)
    findings = dataclasses.replace(findings, notes=(*findings.notes, *exposed.notes()))
    return Causes(findings, risk, complexity, reasons)


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """Captions, complexity, sharing and groups of some training images, the asked ones.

    Attributes:
        asked: positions [m], in order.
        captions: of each, lists of strings [m].
        sharing: of each [m], among all.
        complexity: float64 [m COMPLEXITY], NaN where not measured.
        groups: near-duplicate groups of all.
        sizes: of the groups [g].
    """

    asked: NDArray[np.int64]
    captions: pa.Array
    sharing: CaptionSharing
    complexity: NDArray[np.float64]
    groups: Groups
    sizes: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        train: Embeddings,
        groups: Groups,
        positions: NDArray[np.int64],
        captions_of: NDArray[np.int64] | None = None,
        **options: Unpack[CacheOptions],
    ) -> ImageFacts:
        """Measure pictures and captions of some training images.

        Args:
            train: the training images.
            groups: their near-duplicate groups.
            positions: readable images whose pictures are measured.
            captions_of: further images whose captions alone are compared with all; None = no others.
            options: `cache`, `workers` and `progress` of `compute`.
        """
        positions = np.unique(positions)
        asked = positions if captions_of is None else np.union1d(positions, captions_of)
        complexity = np.full((len(asked), len(COMPLEXITY)), np.nan)
        if len(positions):
            _, rows, values = compute(train.corpus.take(train.rows[positions]), complexity_work(), **options)
            complexity[np.searchsorted(asked, positions[rows])] = values

        def read(some: NDArray[np.int64]) -> list[list[str] | None]:
            return list(train.corpus.pick("captions", train.rows[some]).to_pylist())

        sharing = caption_sharing(read, len(train.rows), asked, options.get("progress"))
        captions = train.corpus.pick("captions", train.rows[asked]).combine_chunks()
        return cls(asked, captions, sharing, complexity, groups, groups.sizes)

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place among the asked images of each of `positions`."""
        return np.searchsorted(self.asked, positions).astype(np.int64)

    def captions_at(self, position: int) -> list[str]:
        """Captions of an asked image."""
        return list(self.captions[int(np.searchsorted(self.asked, position))].as_py() or [])

    def item(self, position: int) -> Item:
        """The training image as the caption measures see it."""
        at = int(np.searchsorted(self.asked, position))
        return Item(None, self.captions_at(position), int(self.sharing.shared[at]), int(self.sharing.near_shared[at]))

    def kind(self, position: int) -> str:
        """Duplication of an image: "full", "partial", "uncaptioned", or "none" without near-duplicates."""
        return self.groups.kind[int(self.groups.label[position])]

    def size(self, position: int) -> int:
        """Size of the image's near-duplicate group."""
        return int(self.sizes[self.groups.label[position]])

    def table(self, positions: NDArray[np.int64]) -> pa.Table:
        """Every measure and covariate of the images at `positions`, a row each."""
        items = [self.item(int(position)) for position in positions]
        sizes = self.sizes[self.groups.label[positions]]
        complexity = self.complexity[self.at(positions)]
        columns: dict[str, Any] = {name: complexity[:, column] for column, name in enumerate(COMPLEXITY)}
        for name in ("caption_uniqueness", "caption_length"):
            measure: Measure = parts.load("measures", name)
            columns[name] = np.array([measure.measure(item) for item in items], dtype=np.float64)
        columns["group_size"] = sizes
        columns["log_group_size"] = np.log(sizes)
        full = [self.kind(int(position)) == "full" for position in positions]
        columns["full_duplication"] = np.array(full, dtype=np.float64)
        return pa.table(columns)

    def card(self, position: int) -> dict[str, Any]:
        """Part of a risk record that does not depend on any generated image."""
        item = self.item(position)
        length = parts.load("measures", "caption_length").measure(item)
        values = self.complexity[int(np.searchsorted(self.asked, position))].tolist()
        complexity = {name: _null(value) for name, value in zip(COMPLEXITY, values, strict=True)}
        return {
            "captions": item.captions,
            "group_size": self.size(position),
            "duplication": self.kind(position),
            "shared_captions": item.shared,
            "near_shared_captions": item.near_shared,
            "caption_length": _null(length),
            **complexity,
        }

    def lint_card(self, position: int) -> dict[str, Any]:
        """Risk record of lint: the facts and what `lint_action` says.

        Args:
            position: of the image.
        """
        card = self.card(position)
        action, reason = lint_action(
            card["group_size"],
            card["duplication"],
            card["shared_captions"],
            card["near_shared_captions"],
            len(card["captions"]),
            card["mixed"],
        )
        return card | {"action": action, "reason": reason}


RISK_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("times_copied", pa.int64()),
        ("share_low", pa.float64()),
        ("share_high", pa.float64()),
        ("prompts", pa.list_(pa.string())),
        ("captions", pa.list_(pa.string())),
        ("group_size", pa.int64()),
        ("duplication", pa.string()),
        ("shared_captions", pa.int64()),
        ("near_shared_captions", pa.int64()),
        ("caption_length", pa.float64()),
        *((name, pa.float64()) for name in COMPLEXITY),
        ("action", pa.string()),
        ("reason", pa.string()),
    ]
)


def _risk(
    matches: Matches,
    judged: Verdict,
    groups: Groups,
    profile: ImageFacts,
    uncopied: NDArray[np.int64],
) -> tuple[pa.Table, dict[int, str]]:
    """A card each copied near-duplicate group, under its most copied member; then those of `uncopied` groups."""
    references, prompts, n = matches.references, matches.queries.corpus.prompts, len(judged.copied)
    cards: list[dict[str, Any]] = []
    reasons: dict[int, str] = {}
    copied = np.flatnonzero(judged.copied)
    by_group: dict[int, list[int]] = {}
    for query in copied.tolist():
        by_group.setdefault(int(groups.label[matches.match[query]]), []).append(query)
    for queries in by_group.values():
        position = int(Counter(matches.match[queries].tolist()).most_common(1)[0][0])
        times = len(queries)
        share = stats.proportion(times, n)
        card = profile.card(position)
        action, reason = risk_action(
            times,
            card["group_size"],
            card["duplication"],
            card["shared_captions"],
            card["near_shared_captions"],
            len(card["captions"]),
            judged.answer == COPIES,
        )
        said = dict.fromkeys(prompts[matches.queries.rows[query]] for query in queries)
        cards.append(
            {"id": references.corpus.id_of(references.rows[position])}
            | {"times_copied": times, "share_low": share.low, "share_high": share.high}
            | {"prompts": [text for text in said if text][:PROMPTS_KEPT]}
            | card
            | {"action": action, "reason": reason}
        )
        reasons |= dict.fromkeys(queries, reason)
    cards.sort(key=lambda card: (-card["times_copied"], -card["group_size"], card["id"]))
    never = stats.proportion(0, n)
    cards += [
        {"id": references.corpus.id_of(references.rows[position])}
        | {"times_copied": 0, "share_low": never.low, "share_high": never.high, "prompts": []}
        | profile.lint_card(position)
        for position in uncopied.tolist()
    ]
    return pa.Table.from_pylist(cards, schema=RISK_SCHEMA), reasons


def complexity_work() -> Feature:
    """Feature of an image's complexity, by each measure in COMPLEXITY."""
    # The size of a JPEG depends on who writes it.
    key = f"{', '.join(COMPLEXITY)}; pillow {importlib.metadata.version('pillow')}"
    return Feature("complexity", key, len(COMPLEXITY), np.float64, _complexity)


def _complexity(pictures: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    measures = [parts.load("measures", name) for name in COMPLEXITY]
    rows = []
    for picture in pictures:
        try:
            item = Item(complexity_view(picture), [])
        except ImageError:  # too elongated to be resized: its complexity is unknown, the image is not lost
            rows.append([np.nan] * len(measures))
            continue
        rows.append([measure.measure(item) for measure in measures])
    return np.array(rows, dtype=np.float64)


def _null(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
