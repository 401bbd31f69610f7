"""`leaks`: which images of one set stand, changed or not, in another: train in test, unlicensed in licensed."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import pyarrow as pa

from copyscope._version import __version__
from copyscope.curation.decisions import Decisions
from copyscope.data.corpus import Corpus
from copyscope.data.joined import JoinedCorpus, name_of
from copyscope.detection.dedup.groups import Groups, GroupsSummary, duplicates
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.protocols import protocol as named_protocol
from copyscope.detection.search.ivf import with_ivf
from copyscope.detection.verdict.same_files import refuse_same_files
from copyscope.engine import Engine, open_engine
from copyscope.errors import InputError
from copyscope.imaging import images
from copyscope.machine import Progress

from .lint import LintOptions, LintProtocol
from .one_pass import read_train
from .previews import gallery
from .results import Result, failures, versions

SCHEMA = "copyscope.leaks/1"


class LeakSet(TypedDict):
    """Images of one of the sets that stand in others."""

    set: Annotated[str, "path or URL as given"]
    n: Annotated[int, "images"]
    n_missing: Annotated[int, "of them, those that cannot be read"]
    n_leaked: Annotated[int, "of them, those that stand in another set"]


class LeaksRecipe(TypedDict):
    """What leaks were found with."""

    sets: Annotated[list[str], "paths or URLs as given"]
    options: Annotated[LintOptions, "`protocol`"]
    versions: Annotated[dict[str, str], "versions, by package; its keys may change"]


class LeaksSummary(TypedDict):
    """Summary of `leaks`."""

    schema: Annotated[str, "`copyscope.leaks/1`"]
    copyscope: Annotated[str, "version that made it"]
    created: Annotated[str, "when, ISO 8601, UTC"]
    seconds: Annotated[float, "how long it took"]
    sentence: Annotated[str, "what was found, in words"]
    sets: Annotated[list[LeakSet], "the sets"]
    n_groups: Annotated[int, "near-duplicate groups with images of several sets"]
    n_exact_groups: Annotated[int, "of them, those with images that agree in every pixel"]
    n_leaked: Annotated[int, "images of the first set that stand in another"]
    n_missing: Annotated[int, "images of all sets that cannot be read"]
    n_outside: Annotated[int, "images that [lie outside the folder](corpora.md#what-is-read)"]
    frames: Annotated[str, "as in an audit"]
    duplicates: Annotated[GroupsSummary, "groups across sets, with the keys they have in an audit"]
    protocol: Annotated[LintProtocol, "as in a lint"]
    recipe: Annotated[LeaksRecipe, "what to give to get this result again"]


class Leaks(Result):
    """The result of `leaks`: a summary that is plain JSON, and tables. `docs/json.md` describes both."""

    schema = SCHEMA

    def page(self) -> str:
        """The report: groups of images that are in several sets."""
        from copyscope.report.leaks import render

        return render(self)

    @property
    def lists(self) -> dict[str, pa.Table]:
        """`drop`: the images of the first set that stand in another, as `--without` of other commands takes it."""
        return {"drop": self.tables["drop"]}


def leaks(
    sets: Sequence[str | Path | Corpus],
    protocol: str = "sscd-288",
    *,
    decisions: str | Path | Decisions | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> Leaks:
    """Find the images of one set that stand, changed or not, in another.

    They are the near-duplicate groups, as `duplicates` finds them, that have images of several sets.

    Args:
        sets: two or more; paths or URLs that `Corpus.open` takes, or corpora. The first is the one to be cleaned: the
            table `drop` lists its images that stand in another.
        protocol: a name in `PROTOCOLS` or a descriptor spec.
        decisions: what people decided, a file of `copyscope decide`; None = nothing.
        cache: as in `embed`.
        workers: as in `embed`.
        engine: as in `embed`.
        progress: is told how far it is.

    Raises:
        InputError: there are fewer than two sets, two of them are one folder or share image files, or no image can be
            read.
    """
    began = time.monotonic()
    corpora = [each if isinstance(each, Corpus) else Corpus.open(each) for each in sets]
    names = [name_of(corpus) for corpus in corpora]
    if len(corpora) < 2:
        raise InputError("Images leak from one set into another, and there is one.\nName two sets or more")
    if len(set(names)) < len(names):
        raise InputError(f"One set is named twice: {', '.join(names)}.\nName two sets or more")
    refuse_same_files(dict(zip(names, corpora, strict=True)))
    decided = Decisions.read(decisions) if decisions is not None else None
    rules = named_protocol(protocol)
    descriptor = rules.load()
    options: dict[str, Any] = {"cache": cache, "workers": workers, "progress": progress}
    engine = open_engine(engine) if engine is not None else None
    joined = JoinedCorpus.of(corpora)
    described = embed(read_train(joined, descriptor, engine=engine, **options), descriptor, **options)
    failed = failures({"train": described})
    if not len(described.rows):
        raise InputError(f"None of the {len(joined)} images in {joined.origin} can be read.\nName folders of images")
    described = with_ivf(described, **options)
    groups = duplicates(described, rules.duplicates, decisions=decided, engine=engine, **options)
    table = _across(groups)
    drop = _drop(table, names[0])
    failed = failed.set_column(
        0, "corpus", pa.array([_set_of(name, names) for name in failed["id"].to_pylist()], pa.string())
    )
    said: dict[str, Any] = {}
    if decided is not None and groups.honoured is not None:
        failed = pa.concat_tables([failed, decided.failures()])
        said = {"decisions": decided.summary(groups.honoured)}
    tables = {"groups": table, "drop": drop, "failures": failed}
    tables["thumbnails"] = gallery({"train": described}, tables | {"risk": table.slice(0, 0)})
    n_groups = len(table["group"].unique())
    sizes = [len(corpus) for corpus in corpora]
    missing = np.bincount(
        [names.index(name) for name in failed["corpus"].to_pylist() if name in names], minlength=len(names)
    )
    leaked = {name: sum(each == name for each in table["set"].to_pylist()) for name in names}
    sentence = _sentence(names, leaked, sizes, n_groups) + (f" {said['decisions']['sentence']}" if said else "")
    counts = {"n_groups": n_groups, "n_exact_groups": len(set(table.filter(_exact(table))["group"].to_pylist()))}
    return Leaks(
        {
            "schema": SCHEMA,
            "copyscope": __version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 2),
            "sentence": sentence,
            "sets": [
                {"set": name, "n": n, "n_missing": int(gone), "n_leaked": leaked[name]}
                for name, n, gone in zip(names, sizes, missing, strict=True)
            ],
            **counts,
            "n_leaked": leaked[names[0]],
            "n_missing": described.n_missing,
            "n_outside": joined.n_outside,
            "frames": images.FRAMES,
            "duplicates": groups.summary() | counts | {"n_images_in_groups": len(table)},
            "protocol": {
                "name": rules.name,
                "descriptor": rules.descriptor,
                "duplicates": rules.duplicates,
                "fingerprint": described.fingerprint,
            },
            "recipe": {"sets": names, "options": {"protocol": rules.name}, "versions": versions()},
            **said,
        },
        tables,
    )


def _across(groups: Groups) -> pa.Table:
    """The rows of the groups that have images of several sets; group numbers are those of all groups."""
    table = groups.table()
    places = {name: at for at, name in enumerate(groups.corpus.ids)}
    rows = np.array([places[name] for name in table["id"].to_pylist()], np.int64)
    for name in ("set", "id_in_set"):
        table = table.append_column(name, groups.corpus.pick(name, rows))
    sets: dict[int, set[str]] = {}
    for group, name in zip(table["group"].to_pylist(), table["set"].to_pylist(), strict=True):
        sets.setdefault(group, set()).add(name)
    return table.filter(pa.array([len(sets[group]) > 1 for group in table["group"].to_pylist()], pa.bool_()))


def _drop(table: pa.Table, first: str) -> pa.Table:
    """Images of the first set in groups of several: id, group, and an image of another set that it is the same as."""
    others: dict[int, str] = {}
    for row in table.to_pylist():
        if row["set"] != first:
            others.setdefault(row["group"], row["id"])
    rows = [
        {"id": row["id_in_set"], "group": row["group"], "same_as": others[row["group"]]}
        for row in table.to_pylist()
        if row["set"] == first and row["group"] in others
    ]
    return pa.Table.from_pylist(rows, pa.schema({"id": pa.string(), "group": pa.int64(), "same_as": pa.string()}))


def _exact(table: pa.Table) -> pa.Array:
    return pa.array([many > 1 for many in table["exact"].to_pylist()], pa.bool_())


def _set_of(id: str, names: list[str]) -> str:
    """Which set an image of a joined corpus is of, the longest name that its id begins with."""
    return max((name for name in names if id.startswith(f"{name}/")), key=len, default="")


def _sentence(names: list[str], leaked: dict[str, int], sizes: list[int], n_groups: int) -> str:
    others = names[1] if len(names) == 2 else "another set"
    n, of = leaked[names[0]], sizes[0]
    if not n_groups:
        return f"No image of {names[0]} was found in {others}."
    groups = f"{n_groups} {'group' if n_groups == 1 else 'groups'}"
    if not n:
        return f"No image of {names[0]} was found in another set; the other sets share images, in {groups}."
    return f"{n} of {of} images of {names[0]} {'stands' if n == 1 else 'stand'} in {others} too, in {groups}."
