"""`lint`: what in a training set is likely to be copied, before training."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from copyscope import parts, stats
from copyscope._version import __version__
from copyscope.curation.decisions import Decisions
from copyscope.data.corpus import Corpus
from copyscope.detection.causes.causes import COMPLEXITY, RISK_SCHEMA, ImageFacts
from copyscope.detection.causes.findings import SIMPLE
from copyscope.detection.dedup.groups import Groups, duplicates, representatives
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.protocols import protocol as named_protocol
from copyscope.detection.search.ivf import search_report, with_ivf
from copyscope.engine import Engine, open_engine
from copyscope.errors import InputError
from copyscope.imaging import images
from copyscope.machine import Progress
from copyscope.options import CacheOptions

from .one_pass import read_train
from .previews import gallery
from .results import Result, failures, versions

SCHEMA = "copyscope.lint/1"
MEASURED = 20_000
COUNTED = 100_000
"""Images, where there are so many that they lie in cells, whose captions are looked for among all to count those that
are shared."""
PIECE, CARDS = 65_536, 4096


class Lint(Result):
    """Result of `lint`: a summary that is plain JSON, and tables. `docs/json.md` describes both."""

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
    return Lint(
        {
            "schema": SCHEMA,
            "copyscope": __version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 2),
            "sentence": _sentence(len(described.rows), described.n_missing, summary, actions["recaption"])
            + (f" {said['decisions']['sentence']}" if said else ""),
            "n_train": len(corpus),
            "n_missing": described.n_missing,
            "n_outside": corpus.n_outside,
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
    kept = risk.filter(pa.compute.invert(pa.compute.is_in(risk["id"], value_set=ids.combine_chunks())))
    if groups.honoured is not None:
        groups.honoured.n_licensed += len(risk) - len(kept)
    return kept


def _count(column: pa.ChunkedArray, value: str) -> int:
    return int(pa.compute.sum(pa.compute.equal(column, value)).as_py() or 0)


def _sentence(n: int, n_missing: int, summary: dict[str, Any], plain: int) -> str:
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
    if not said:
        return f"No near-duplicates among {n} {images}, and no plain picture under a caption of its own."
    return "; ".join(said) + "."


def _form(n: int, one: str, more: str) -> str:
    return one if n == 1 else more
