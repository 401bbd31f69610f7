"""Keys and types of the JSON that the command line puts together; `docs/json.md` is made of them."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from copyscope.detection.dedup.groups import GroupsSummary
from copyscope.detection.index.hits import HitRow
from copyscope.detection.lookup import LookupSummary
from copyscope.detection.match_sentences import MatchRow, MatchSummary
from copyscope.stats import EstimateDict


class GroupRow(TypedDict):
    """An image of a near-duplicate group."""

    id: Annotated[str, "image"]
    group: Annotated[int, "number of its group"]
    size: Annotated[int, "images in the group"]
    exact: Annotated[int, "images with the very same pixels"]
    kept: Annotated[bool, "whether `curate` keeps it"]
    duplication: Annotated[str, "`full`, `partial` or `uncaptioned`"]
    captions: Annotated[list[str], "its captions"]


class DuplicatesSummary(GroupsSummary):
    """Summary of `duplicates`."""

    schema: Annotated[str, "`copyscope.duplicates/1`"]
    n_missing: Annotated[int, "images that cannot be read"]
    groups: Annotated[list[GroupRow], "one object an image of a group: a row of the table `groups`"]


PlanSummary = TypedDict(
    "PlanSummary",
    {
        "result": Annotated[str, "folder of the lint or audit"],
        "drop": Annotated[int, "images dropped"],
        "down-weight": Annotated[int, "images drawn less often"],
        "recaption": Annotated[int, "images with new captions"],
        "keep": Annotated[int, "images that stay of their groups"],
        "left to you": Annotated[int, "images of which a person must decide"],
        "n_unmatched": Annotated[int, "images of the result that CORPUS does not have"],
    },
)
"""Images by what is done with them."""


class Reads(TypedDict):
    """What a trainer reads of a layout."""

    caption: Annotated[str, "column, file or key of the one caption"]
    captions: Annotated[str, "of all captions, for images planted as partial duplicates"]
    weight: Annotated[str, "of how often an image is to be drawn"]


class CurateSummary(TypedDict):
    """Summary of `curate`."""

    schema: Annotated[str, "`copyscope.curate/1`"]
    path: Annotated[str, "the folder written"]
    kind: Annotated[str, "[how it will be recognised](corpora.md#what-is-recognised)"]
    layout: Annotated[str, "what `--layout` says"]
    reads: Annotated[Reads, "what a trainer reads of that layout"]
    n: Annotated[int, "images written"]
    n_duplicated: Annotated[
        int,
        "of them, those that this or an earlier `--duplication` planted, to be drawn more often; not the duplicates "
        "of the data set",
    ]
    n_dropped: Annotated[
        int, "near-duplicates dropped by `--drop-duplicates keep-one` or `remove`, listed in `dropped.csv`"
    ]
    n_groups: Annotated[int, "near-duplicate groups they are of"]
    n_missing: Annotated[int, "images that cannot be read, listed in `skipped.jsonl`"]
    plan: NotRequired[Annotated[PlanSummary, "what was done of what a result advises (`--from-lint`, `--from-audit`)"]]


class Without(TypedDict):
    """What a removal list did."""

    list: Annotated[str, "path or URL as given"]
    n_listed: Annotated[int, "different entries of it"]
    n_removed: Annotated[int, "images that they name, left out or removed"]
    n_unmatched: Annotated[int, "entries that name no image"]


class LeftOut(TypedDict):
    """What `--without` and images outside the folder add to a summary."""

    without: NotRequired[Annotated[Without, "what the list did"]]
    n_outside: NotRequired[Annotated[int, "images that [lie outside the folder](corpora.md#what-is-recognised)"]]


class GeneratedSummary(TypedDict):
    """Summary of `generate`."""

    schema: Annotated[str, "`copyscope.generated/1`"]
    path: Annotated[str, "the folder of the images"]
    n: Annotated[int, "images"]
    recipe: Annotated[dict[str, Any], "[its values](recipes.md#samplerecipe)"]


class MatchOutput(MatchSummary):
    """Summary of `match` with its matches."""

    matches: Annotated[list[MatchRow], "a row of the table `matches` each"]


class LookupOutput(LookupSummary):
    """Summary of `match --index` with its matches."""

    matches: Annotated[list[HitRow], "the first matches of each image"]


class PartEntry(TypedDict):
    """A protocol or part, of `parts`."""

    name: Annotated[str, "name"]
    spec: Annotated[str, "how it is called, with its defaults"]
    about: Annotated[str, "what it is"]
    door: NotRequired[Annotated[str, "of mitigations: base class"]]
    stages: NotRequired[Annotated[list[str], "of mitigations: where it acts"]]
    needs: NotRequired[Annotated[list[str], "of mitigations and signals: what it needs"]]


class DataSet(TypedDict):
    """A data set that `fetch` knows."""

    name: Annotated[str, "name"]
    megabytes: Annotated[float, "size of the download"]
    licence: Annotated[str, "licence"]
    about: Annotated[str, "what it is"]


class Fetched(TypedDict):
    """What `fetch NAME` fetched."""

    name: Annotated[str, "name"]
    path: Annotated[str, "where it is"]


class DoctorRow(TypedDict):
    """A check of `doctor`."""

    what: Annotated[str, "what was looked at"]
    ok: Annotated[bool, "whether it can be used"]
    says: Annotated[str, "what was found, or what to do"]


class ArmState(TypedDict):
    """State of an arm, of `experiment status`."""

    arm: Annotated[str, "name of its folder below `arms/`"]
    state: Annotated[str, "`done`, `failed`, `under way` or `to do`"]
    detail: Annotated[str, "how far it has come, or why it failed"]


class Truth(TypedDict):
    """Score of the demo."""

    known: Annotated[EstimateDict, "share of the images from training captions that are copies"]
    own: Annotated[EstimateDict, "of these copies, share matched to the image whose caption was the prompt"]
    unknown: Annotated[EstimateDict, "share of the images from captions never trained on that are copies"]


class DemoOutput(TypedDict):
    """Output of `demo`."""

    summary: Annotated[dict[str, Any], "of the [audit](#audit)"]
    truth: Annotated[Truth, "[the demo's score](assets.md#the-demo)"]
    report: Annotated[str, "path of the report"]


class PlannedCorpus(TypedDict):
    """A set of images that an audit would compare."""

    path: Annotated[str, "path or URL as given"]
    kind: Annotated[str, "[how it was recognised](corpora.md#what-is-recognised)"]
    n: Annotated[int, "images"]


class AuditPlan(TypedDict):
    """Output of `audit --dry-run`."""

    generated: Annotated[PlannedCorpus, "generated images"]
    train: Annotated[PlannedCorpus, "training images"]
    held_out: NotRequired[Annotated[PlannedCorpus, "held-out images"]]
    control: NotRequired[Annotated[PlannedCorpus, "control images"]]
    protocol: Annotated[str, "protocol, or the descriptor's spec"]
    descriptor: Annotated[str, "descriptor's spec"]
    threshold: Annotated[float, "similarity above which the literature says replication"]
    fdr: Annotated[float, "false discovery rate"]
    sensitivity: Annotated[int, "training groups of which copies would be planted at most"]
    parts: Annotated[str, "`auto`, `on` or `off`"]
    seed: Annotated[int, "seed"]
    out: Annotated[str | None, "folder of the results"]
