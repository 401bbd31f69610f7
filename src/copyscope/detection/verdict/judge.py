"""Judge generated images: match, calibrate, measure sensitivity, decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope.detection.dedup.groups import Groups
from copyscope.detection.descriptors import Descriptor
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching.blank import blank_rows, without_rows
from copyscope.detection.matching.edges import Edges
from copyscope.detection.matching.match import Matches, match
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.part_search import PartSearch
from copyscope.detection.matching.registration import Register
from copyscope.engine import EngineOptions, without_engine
from copyscope.stats import Estimate

from . import calibration as calibrate
from .calibration import Baseline
from .sensitivity import GROUPS, PlantedCopies, planted_copies
from .verdict import FDR, Calibration, Planted, Verdict, verdict

LOOK_ALIKES = pa.schema(
    {"id": pa.string(), "match": pa.string()} | dict.fromkeys(("score", "verified", "combined"), pa.float32())
)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on.

    Attributes:
        verdict: which generated images are copies, and what may be said.
        blank: which readable images are blank, bool [n] of "generated" and of the calibration images.
        matches: of the generated images.
        calibration: what p-values rest on.
        baseline: training images against one another.
        compared: matches of the calibration images; None where training images stand in.
        removed: ids of held-out images that are a training image by file or hash, taken out before.
        look_alikes: calibration images that score as light copies do: columns LOOK_ALIKES.
        differs: why held-out images are of another kind than the generated ones; None where they are not.
        nearer: of pairs of a generated and a control image with one prompt and seed, the share in which the generated
            image is nearer to the training set; None where there are no such pairs.
    """

    verdict: Verdict
    blank: dict[str, NDArray[np.bool_]]
    matches: Matches
    calibration: Calibration
    baseline: Baseline
    compared: Matches | None
    removed: list[str]
    look_alikes: pa.Table
    differs: str | None
    nearer: Estimate | None

    def of_sources(self, train: Embeddings, source: NDArray[np.int64]) -> Judgement:
        """Put images of `train` in the place of those judged by: each of these stands for one at its `source` [m]."""
        compared = self.compared and self.compared.of_sources(train, source)
        return dataclasses.replace(
            self,
            matches=self.matches.of_sources(train, source),
            compared=compared,
            look_alikes=_look_alikes(compared, self.verdict),
        )


def judge(
    described: Mapping[str, Embeddings],
    groups: Groups,
    descriptor: Descriptor,
    verify: Verify,
    *,
    sensitivity: int = GROUPS,
    register: Register | None = Register(),
    edges: Edges | None = Edges(),
    parts: PartSearch | None = None,
    trust_held_out: bool = False,
    n_excluded: int = 0,
    excuse: Callable[[Matches], Matches] | None = None,
    fdr: float = FDR,
    seed: int = 0,
    **options: Unpack[EngineOptions],
) -> Judgement:
    """Judge the generated images of an audit.

    Args:
        described: "generated" and "train", and at most one of "held-out" and "control".
        groups: near-duplicate groups of the training images.
        descriptor: what described them.
        verify: the pixel comparison.
        sensitivity: training groups of which copies are planted; 0 = sensitivity is not measured.
        register: brings the best candidates into register; None = nobody does.
        edges: finds the training image with the same edges; None = nobody does.
        parts: looks for training images in parts of the images too; None = nobody looks.
        trust_held_out: calibrate on held-out images even where they are of another kind.
        n_excluded: held-out images that a person took out before.
        excuse: takes the pairs that are no copies, as people decided, out of the matches; None = there are none.
        fdr: false discovery rate of the list of copies.
        seed: of the samples that are drawn.
        options: `cache`, `workers`, `engine` and `progress` of `match`.
    """
    generated, train = described["generated"], described["train"]
    settings = without_engine(options)
    blank = {name: blank_rows(described[name], **settings) for name in described if name != "train"}
    looks: dict[str, Any] = {"register": register, "edges": edges, "parts": parts}
    matches = match(generated, train, verify, labels=groups.label, **looks, **options)
    matches = matches if excuse is None else excuse(matches)
    # Where training images stand in for unseen ones they are compared in all ways, and where a copy must be beyond them
    # their parts are looked at too.
    own_parts = dataclasses.replace(parts, labels=groups.label) if parts and "held-out" not in described else None
    alone = not {"held-out", "control"} & set(described)
    whole: dict[str, Any] = {"register": register, "edges": edges} if alone else {}
    baseline = calibrate.baseline(train, groups, verify, part_search=own_parts, seed=seed, **whole, **options)
    calibration, compared = baseline.calibration, None
    removed, differs, nearer = list[str](), None, None
    if "held-out" in described:
        held = without_rows(described["held-out"], blank["held-out"])
        calibration, compared, alike = calibrate.held_out(held, train, groups, verify, **looks, **options)
        removed = calibrate.removed_ids(held, alike)
        differs = calibrate.differs(compared.queries.vectors, generated.vectors, train.vectors, seed=seed)
    elif "control" in described:
        control = without_rows(described["control"], blank["control"])
        calibration, compared = calibrate.controls(control, train, groups, verify, **looks, **options)
        nearer = calibrate.nearer_than_control(matches, compared)
        if n_same := int(compared.identical.sum()):
            are = "is a training image itself" if n_same == 1 else "are training images themselves"
            differs = f"{n_same} of {len(compared.identical)} control images {are}: was the fine-tuning switched off?"
    n_blank = int(sum(blank[name].sum() for name in ("held-out", "control") if name in blank))
    calibration = dataclasses.replace(calibration, n_excluded=n_excluded, n_blank=n_blank)

    def beyond(found: Matches | PlantedCopies) -> NDArray[np.bool_] | None:
        if calibration.method != "controls":
            return None
        return baseline.beyond(found.evidence, found.pixels, calibration.scores)

    planted = None
    if sensitivity:
        copies = planted_copies(train, groups, descriptor, verify, n_groups=sensitivity, seed=seed, **looks, **options)
        planted = {kind: Planted(each.evidence, beyond(each)) for kind, each in copies.items()}
    judged = verdict(
        matches.evidence,
        calibration,
        planted=planted,
        identical=matches.identical,
        blank=blank["generated"],
        beyond_own=beyond(matches),
        differs=None if trust_held_out else differs,
        n_missing=generated.n_missing,
        fdr=fdr,
    )
    matches = matches.choose(judged.copied, calibration.scores)
    return Judgement(
        judged,
        blank,
        matches,
        calibration,
        baseline,
        compared,
        removed,
        _look_alikes(compared, judged),
        differs,
        nearer,
    )


def _look_alikes(compared: Matches | None, judged: Verdict) -> pa.Table:
    """Calibration images that score as light copies do, the nearest first."""
    if compared is None:
        return LOOK_ALIKES.empty_table()
    rows = np.flatnonzero(judged.look_alikes)
    rows = rows[np.argsort(-compared.evidence[rows, 1], kind="stable")]
    queries, references = compared.queries, compared.references
    return pa.table(
        {
            "id": queries.corpus.pick("id", queries.rows[rows]),
            "match": references.corpus.pick("id", references.rows[compared.match[rows]]),
            **{name: values[rows] for name, values in compared.scores.items()},
        },
        LOOK_ALIKES,
    )
