"""`lint`: what in a training set is likely to be copied, before training."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from copyscope import parts, stats
from copyscope._version import __version__
from copyscope.curation.decisions import Decisions
from copyscope.data.account import SetAccount
from copyscope.data.corpus import Corpus
from copyscope.detection.causes.causes import COMPLEXITY, RISK_SCHEMA, ImageFacts
from copyscope.detection.causes.findings import SIMPLE
from copyscope.detection.dedup.groups import Groups, GroupsSummary, duplicates, representatives
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.protocols import protocol as named_protocol
from copyscope.detection.search.ivf import SearchReport, search_report, with_ivf
from copyscope.engine import CacheOptions, Engine, open_engine
from copyscope.errors import InputError
from copyscope.imaging import images
from copyscope.machine import Progress
from copyscope.stats import EstimateDict

from .one_pass import read_train
from .previews import gallery
from .results import Result, accounts, failures, versions

SCHEMA = "copyscope.lint/1"
MEASURED = 20_000
COUNTED = 100_000
"""Images, where there are so many that they lie in cells, whose captions are looked for among all to count those that
are shared."""
PIECE, CARDS = 65_536, 4096


CaptionCounts = TypedDict(
    "CaptionCounts",
    {
        "with": Annotated[int, "have a caption"],
        "without": Annotated[int, "have none"],
        "shared": Annotated[
            int, "share a caption with another image; by cells, as [a sample](numbers.md#many-training-images) says"
        ],
        "near_shared": Annotated[int, "nearly share one with a further image; likewise"],
    },
)


class ActionCounts(TypedDict):
    """Risk cards by action."""

    deduplicate: Annotated[int, "near-duplicate groups"]
    recaption: Annotated[int, "simple pictures under a caption of their own"]


class LintProtocol(TypedDict):
    """Protocol of a lint."""

    name: Annotated[str, "protocol, or the descriptor's spec"]
    descriptor: Annotated[str, "descriptor's spec"]
    duplicates: Annotated[float, "similarity of near-duplicates"]
    fingerprint: Annotated[str, "sha256 of the weights, or a library's version"]


class LintOptions(TypedDict):
    """Options that change the result of a lint."""

    protocol: Annotated[str, "protocol"]


class LintRecipe(TypedDict):
    """What a lint was made of."""

    train: Annotated[str, "path or URL as given"]
    options: Annotated[LintOptions, "`protocol`"]
    versions: Annotated[dict[str, str], "versions, by package; its keys may change"]
    seed: Annotated[int, "seed"]


class Draws(TypedDict):
    """What weights do in training."""

    n_most: Annotated[int, "images that are drawn most"]
    times: Annotated[float, "times as often as the least drawn"]
    share: Annotated[float, "their share of all draws"]


class LintSummary(TypedDict):
    """Summary of a lint."""

    schema: Annotated[str, "`copyscope.lint/1`"]
    copyscope: Annotated[str, "version that made it"]
    created: Annotated[str, "when, ISO 8601, UTC"]
    seconds: Annotated[float, "how long it took"]
    sentence: Annotated[str, "what was found, in words"]
    n_train: Annotated[int, "images, unreadable ones included"]
    n_missing: Annotated[int, "images that cannot be read"]
    accounts: Annotated[list[SetAccount], "what became of all that lay in the set, as in an audit"]
    draws: Annotated[Draws | None, "what weights (repeats) do; null where all images are drawn alike"]
    n_outside: Annotated[int, "images that [lie outside the folder](corpora.md#what-is-read): listed or linked to"]
    frames: Annotated[
        str,
        "`first`: of an animation or a TIFF of several pages, the first frame or page alone [is "
        "compared](corpora.md#how-an-image-becomes-pixels)",
    ]
    duplicates: Annotated[GroupsSummary, "near-duplicate groups, with the keys they have in an audit"]
    duplicated_share: Annotated[EstimateDict, "share of readable images that repeat another one"]
    captions: Annotated[CaptionCounts, "readable images by their captions"]
    actions: Annotated[ActionCounts, "risk cards by action"]
    n_measured: Annotated[int, "images without near-duplicates whose complexity was measured"]
    units: Annotated[
        dict[str, str], "unit of each complexity measure: `entropy`, `jpeg_size`, `total_variation`, `mixed`"
    ]
    simple: Annotated[float, "a picture whose `mixed` complexity is below it is simple"]
    search: Annotated[SearchReport, "as in an audit"]
    protocol: Annotated[LintProtocol, "as in an audit, without threshold and pixel comparison"]
    recipe: Annotated[LintRecipe, "what to give to get this result again"]


class Lint(Result):
    """Result of `lint`: a summary that is plain JSON, and tables. `docs/json.md` describes both."""

    summary: LintSummary
    schema = SCHEMA

    def page(self) -> str:
        """The report as one HTML page: near-duplicate groups and risk records."""
        from copyscope.report import render_lint

        return render_lint(self)

    def __rich__(self) -> Any:
        from copyscope.report.terminal import lint_panel

        return lint_panel(self.summary)

    def _repr_html_(self) -> str:
        from copyscope.report.terminal import lint_snippet

        return lint_snippet(self.summary)


def lint(
    train: str | Path | Corpus,
    protocol: str = "sscd-288",
    *,
    decisions: str | Path | Decisions | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> Lint:
    """Find what in `train` is likely to be copied: near-duplicates, and plain pictures under a caption of their own.

    Complexity is measured on at most MEASURED images without near-duplicates, drawn at random, and on one image a
    group. Of a training set that is searched by an IVF index a sample of COUNTED images tells how many share captions.

    Args:
        train: anything `Corpus.open` takes, or a Corpus.
        protocol: a name in `PROTOCOLS` or a descriptor spec.
        decisions: what people decided, a file of `copyscope decide`; nothing is advised about licensed and ignored
            images. None = nothing.
        seed: of the random samples taken.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        engine: who describes and searches, a spec or an Engine; None = this process.
        progress: called with a label, the number done and the total.

    Returns:
        The findings with their tables.

    Raises:
        InputError: the folder cannot be used, or no image in it can be read.
        PartError: the protocol names no descriptor.
    """
    began = time.monotonic()
    corpus = train if isinstance(train, Corpus) else Corpus.open(train)
    decided = Decisions.read(decisions) if decisions is not None else None
    rules = named_protocol(protocol)
    options: CacheOptions = {"cache": cache, "workers": workers, "progress": progress}
    descriptor = rules.load()
    engine = open_engine(engine) if engine is not None else None
    described = embed(read_train(corpus, descriptor, grouped=True, engine=engine, **options), descriptor, **options)
    failed = failures({"train": described})
    if not len(described.rows):
        first_error = f"The first says: {failed['error'][0]}" if len(failed) else "Give a folder of images"
        raise InputError(f"None of the {len(corpus)} images in {corpus.origin} can be read.\n{first_error}")
    described = with_ivf(described, **options)
    groups = duplicates(described, rules.duplicates, decisions=decided, engine=engine, **options)
    first = representatives(groups)
    grouped = groups.sizes > 1
    rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
    single = np.sort(rng.permutation(first[~grouped])[:MEASURED])
    shown = np.concatenate([groups.kept, single])
    counted = np.arange(len(described.rows))
    if described.cells is not None:
        counted = np.sort(rng.permutation(counted)[:COUNTED])
    profile = ImageFacts.of(described, groups, shown, counted, **options)
    risk = _cards(profile, shown, described)
    said: dict[str, Any] = {}
    if decided is not None and groups.honoured is not None:
        risk = _without_decided(risk, described, groups, decided)
        failed = pa.concat_tables([failed, decided.failures()])
        said = {"decisions": decided.summary(groups.honoured)}
    tables = {"groups": groups.table(), "risk": risk, "failures": failed}
    tables["thumbnails"] = gallery({"train": described}, tables)
    summary = groups.summary()
    actions = {name: _count(risk["action"], name) for name in ("deduplicate", "recaption")}
    repeated = summary["n_images_in_groups"] - summary["n_groups"]
    draws = _draws(described)
    return Lint(
        {
            "schema": SCHEMA,
            "copyscope": __version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 2),
            "sentence": _sentence(len(described.rows), described.n_missing, summary, actions["recaption"], draws)
            + (f" {said['decisions']['sentence']}" if said else ""),
            "n_train": len(corpus),
            "n_missing": described.n_missing,
            "n_outside": corpus.n_outside,
            "accounts": accounts({"train": corpus}),
            "draws": draws,
            "frames": images.FRAMES,
            "duplicates": summary,
            "duplicated_share": stats.proportion(repeated, len(described.rows), missing=described.n_missing).as_dict(),
            "captions": _captions(described, profile, counted),
            "actions": actions,
            "n_measured": len(single),
            "simple": SIMPLE,
            "units": {name: parts.part_class("measures", name).unit for name in COMPLEXITY},  # type: ignore[attr-defined]
            "search": search_report(described, workers=workers, progress=progress),
            "protocol": {
                "name": rules.name,
                "descriptor": rules.descriptor,
                "duplicates": rules.duplicates,
                "fingerprint": described.fingerprint,
            },
            "recipe": {
                "train": corpus.origin,
                "options": {"protocol": rules.name},
                "versions": versions(),
                "seed": seed,
            },
            **said,
        },
        tables,
    )


def _captions(described: Embeddings, profile: ImageFacts, counted: NDArray[np.int64]) -> dict[str, int]:
    """How many readable images have captions, and share them, as the share of the `counted` positions says."""
    n = len(described.rows)
    having = 0
    for start in range(0, n, PIECE):
        own = described.corpus.pick("captions", described.rows[start : start + PIECE])
        having += pa.compute.sum(pa.compute.greater(pa.compute.list_value_length(own), 0)).as_py() or 0
    at = profile.at(counted)
    sharing = {"shared": profile.sharing.shared[at], "near_shared": profile.sharing.near_shared[at]}
    found = {name: round(n / len(at) * int((values > 0).sum())) for name, values in sharing.items()}
    return {"with": having, "without": n - having} | found


def _cards(profile: ImageFacts, shown: NDArray[np.int64], described: Embeddings) -> pa.Table:
    """A risk card for each shown image that something should be done about: large groups first, then the simplest."""
    rest = {"times_copied", "share_low", "share_high", "prompts"}
    schema = pa.schema([field for field in RISK_SCHEMA if field.name not in rest])
    sizes = profile.sizes[profile.groups.label[shown]]
    mixed = profile.complexity[profile.at(shown), -1]
    order = np.lexsort((shown, np.where(np.isnan(mixed), np.inf, mixed), -sizes))
    pieces = [schema.empty_table()]
    for start in range(0, len(order), CARDS):
        some = order[start : start + CARDS]
        ids = described.corpus.pick("id", described.rows[shown[some]]).to_pylist()
        cards = [
            {"id": name} | profile.lint_card(position) for name, position in zip(ids, shown[some].tolist(), strict=True)
        ]
        pieces.append(pa.Table.from_pylist([card for card in cards if card["action"] != "keep"], schema=schema))
    return pa.concat_tables(pieces).combine_chunks()


def _without_decided(risk: pa.Table, described: Embeddings, groups: Groups, decisions: Decisions) -> pa.Table:
    """The cards but for those of images that are licensed, with all of their group, or to be ignored."""
    said = decisions.within(described.corpus, described.rows)
    whole = {group: set(np.flatnonzero(groups.label == group).tolist()) for group in groups.label[list(said.licensed)]}
    spared = said.ignored | {row for row in said.licensed if whole[groups.label[row]] <= said.licensed}
    ids = described.corpus.pick("id", described.rows[sorted(spared)])
    remaining = risk.filter(pa.compute.invert(pa.compute.is_in(risk["id"], value_set=ids.combine_chunks())))
    if groups.honoured is not None:
        groups.honoured.n_licensed += len(risk) - len(remaining)
    return remaining


def _count(column: pa.ChunkedArray, value: str) -> int:
    return int(pa.compute.sum(pa.compute.equal(column, value)).as_py() or 0)


def _draws(described: Embeddings) -> Draws | None:
    """Measure what weights (repeats) do; None where all images are drawn alike.

    The images that are drawn most, how many times as often as the least drawn, and their share of all draws.
    """
    weights = described.corpus.pick("weight", described.rows).to_numpy()
    drawn = weights[weights > 0]
    if not len(drawn) or drawn.min() == drawn.max():
        return None
    most = weights == drawn.max()
    return {
        "n_most": int(most.sum()),
        "times": float(drawn.max() / drawn.min()),
        "share": float(weights[most].sum() / weights.sum()),
    }


def _sentence(n: int, n_missing: int, summary: GroupsSummary, plain: int, draws: Draws | None) -> str:
    repeated, n_groups, full = summary["n_images_in_groups"] - summary["n_groups"], summary["n_groups"], summary["full"]
    images = ("readable " if n_missing else "") + _form(n, "image", "images")
    said = []
    if repeated:
        groups = f"{n_groups} near-duplicate {_form(n_groups, 'group', 'groups')}"
        captions = f", {full} of them with a caption that comes back too" if full else ""
        said.append(
            f"{repeated} of {n} {images} {_form(repeated, 'repeats', 'repeat')} another one, in {groups}{captions}"
        )
    if plain:
        stand = _form(plain, "picture stands under a caption of its", "pictures stand under captions of their")
        said.append(f"{plain} plain {stand} own")
    often = ""
    if draws:
        most = draws["n_most"]
        often = (
            f" By their weights, {most} {_form(most, 'image is', 'images are')} drawn {draws['times']:g} times as "
            f"often as the least drawn: {draws['share']:.0%} of all draws."
        )
    if not said:
        return f"No near-duplicates among {n} {images}, and no plain picture under a caption of its own.{often}"
    return "; ".join(said) + "." + often


def _form(n: int, one: str, more: str) -> str:
    return one if n == 1 else more
