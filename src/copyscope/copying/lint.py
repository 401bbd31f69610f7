"""Before training: what in a data set is likely to be copied."""

from __future__ import annotations

import dataclasses
import datetime
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

import copyscope
from copyscope import parts, stats
from copyscope.corpus import Corpus
from copyscope.engine import Engine
from copyscope.errors import InputError
from copyscope.machine import Progress

from .causes import COMPLEXITY, RISK_SCHEMA, Profile, representatives
from .cells import how_searched, in_cells
from .duplicates import duplicates
from .embed import embed
from .gallery import gallery
from .protocols import protocol as named_protocol
from .results import failures, load_result, save_result, versions

SCHEMA = "copyscope.lint/1"
MEASURED = 20_000


@dataclasses.dataclass(frozen=True)
class Lint:
    """The result of `lint`: a summary that is plain JSON, and tables. `docs/json.md` describes both."""

    summary: dict[str, Any]
    tables: dict[str, pa.Table]

    def save(self, folder: str | Path) -> Path:
        """Write `report.html`, one Parquet file a table and, last, `summary.json`. Returns the folder."""
        from copyscope.report import render_lint

        return save_result(folder, self.summary, self.tables, render_lint(self))

    @classmethod
    def load(cls, folder: str | Path) -> Lint:
        """What `save` wrote. Raises InputError when the folder holds no finished lint."""
        return cls(*load_result(folder, SCHEMA))

    def __repr__(self) -> str:
        return f"<Lint: {self.summary['sentence']}>"

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
    seed: int = 0,
    cache: Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> Lint:
    """What in `train` is likely to be copied: near-duplicates, and plain pictures under a caption of their own.

    train: anything `Corpus.open` takes, or a Corpus. protocol: a name in `PROTOCOLS` or a descriptor spec. Complexity
    is measured on at most MEASURED images without near-duplicates, drawn at random by `seed`, and on one image a group.
    cache, workers, engine: as in `embed`. Raises InputError when the folder cannot be used, or no image can be read.
    """
    began = time.time()
    corpus = train if isinstance(train, Corpus) else Corpus.open(train)
    rules = named_protocol(protocol)
    options: dict[str, Any] = {"cache": cache, "workers": workers, "progress": progress}
    described = embed(corpus, rules.load(), engine=engine, **options)
    failed = failures({"train": described})
    if not len(described.rows):
        first_error = f"The first says: {failed['error'][0]}" if len(failed) else "Give a folder of images"
        raise InputError(f"None of the {len(corpus)} images in {corpus.origin} can be read.\n{first_error}")
    described = in_cells(described, **options)
    groups = duplicates(described, rules.duplicates, **options)
    first = representatives(groups)
    grouped = groups.sizes > 1
    rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
    single = np.sort(rng.permutation(first[~grouped])[:MEASURED])
    shown = np.concatenate([first[grouped], single])
    profile = Profile.of(described, groups, np.sort(shown), **options)
    cards = _cards(profile, shown, _ranks(profile.complexity[:, -1], shown, single), described.ids)
    risk = pa.Table.from_pylist(cards, schema=RISK_SCHEMA)
    risk = risk.drop_columns(["times_copied", "share_low", "share_high", "prompts"])
    tables = {"groups": groups.table(), "risk": risk, "failures": failed}
    tables["thumbnails"] = gallery({"train": described}, tables)
    summary = groups.summary()
    captions = [bool(own) for own in profile.captions]
    repeated = summary["n_images_in_groups"] - summary["n_groups"]
    return Lint(
        {
            "schema": SCHEMA,
            "copyscope": copyscope.__version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - began, 2),
            "sentence": _sentence(len(described.rows), described.n_missing, summary, cards),
            "n_train": len(corpus),
            "n_missing": described.n_missing,
            "duplicates": summary,
            "duplicated_share": stats.proportion(repeated, len(described.rows), missing=described.n_missing).as_dict(),
            "captions": {
                "with": sum(captions),
                "without": len(captions) - sum(captions),
                "shared": int((profile.sharing.shared > 0).sum()),
                "near_shared": int((profile.sharing.near_shared > 0).sum()),
            },
            "actions": {name: sum(card["action"] == name for card in cards) for name in ("deduplicate", "recaption")},
            "n_measured": len(single),
            "units": {name: parts.part_class("measures", name).unit for name in COMPLEXITY},  # type: ignore[attr-defined]
            "search": how_searched(described, workers=workers),
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
        },
        tables,
    )


def _ranks(mixed: NDArray[np.float64], shown: NDArray[np.int64], single: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the measured images without near-duplicates that are at most as complex as each shown one.

    NaN where the complexity is unknown. An image counts itself and its ties: a set of one, or of equals, has no
    simplest pictures.
    """
    ordered = np.sort(mixed[single][np.isfinite(mixed[single])])
    ranks = np.searchsorted(ordered, mixed[shown], side="right") / max(len(ordered), 1)
    return np.where(np.isfinite(mixed[shown]), ranks, np.nan)


def _cards(
    profile: Profile, shown: NDArray[np.int64], ranks: NDArray[np.float64], ids: list[str]
) -> list[dict[str, Any]]:
    """A risk card for each shown image that something should be done about: large groups first, then the simplest."""
    found: list[tuple[tuple[float, ...], dict[str, Any]]] = []
    for position, rank in zip(shown.tolist(), ranks.tolist(), strict=True):
        card = profile.lint_card(position, rank)
        if card["action"] != "keep":
            order = (-card["group_size"], np.inf if np.isnan(rank) else rank, position)
            found.append((order, {"id": ids[position]} | card))
    return [card for _, card in sorted(found, key=lambda pair: pair[0])]


def _sentence(n: int, n_missing: int, summary: dict[str, Any], cards: list[dict[str, Any]]) -> str:
    repeated, n_groups, full = summary["n_images_in_groups"] - summary["n_groups"], summary["n_groups"], summary["full"]
    plain = sum(card["action"] == "recaption" for card in cards)
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
