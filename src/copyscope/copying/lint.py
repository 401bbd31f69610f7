"""Before training: what in a data set is likely to be copied."""

from __future__ import annotations

import dataclasses
import datetime
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import copyscope
from copyscope import stats
from copyscope.corpus import Corpus
from copyscope.errors import InputError
from copyscope.machine import Progress

from .causes import RISK_SCHEMA, Profile, representatives
from .duplicates import duplicates
from .embed import embed
from .explain import lint_action
from .gallery import gallery
from .protocols import protocol as named_protocol
from .results import load_result, save_result

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


def lint(
    train: str | Path | Corpus,
    protocol: str = "sscd-288",
    *,
    seed: int = 0,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Lint:
    """What in `train` is likely to be copied: near-duplicates, captions that repeat with them or key one image, plain pictures.

    train: anything `Corpus.open` takes, or a Corpus. The complexity of pictures is measured on at most MEASURED images
    without near-duplicates, drawn at random by `seed`. Raises InputError when the folder cannot be used.
    """
    began = time.time()
    corpus = train if isinstance(train, Corpus) else Corpus.open(train)
    rules = named_protocol(protocol)
    options: dict[str, Any] = {"cache": cache, "workers": workers, "progress": progress}
    described = embed(corpus, rules.load(), **options)
    if not len(described.rows):
        raise InputError(f"None of the {len(corpus)} images in {corpus.origin} can be read.\nLook at one of them")
    groups = duplicates(described, rules.duplicates, **options)
    first = representatives(groups)
    grouped = groups.sizes > 1
    rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
    single = np.sort(rng.permutation(first[~grouped])[:MEASURED])
    profile = Profile.of(described, groups, np.sort(np.concatenate([first[grouped], single])), **options)
    mixed = profile.complexity[:, -1]
    ranked = np.sort(mixed[single])
    cards = []
    for position in [*first[grouped].tolist(), *single.tolist()]:
        card = profile.card(position)
        rank = float(np.searchsorted(ranked, mixed[position]) / max(len(ranked), 1))
        action, reason = lint_action(
            card["group_size"],
            card["duplication"],
            card["shared_captions"],
            card["near_shared_captions"],
            len(profile.captions[position]),
            rank,
        )
        if action != "keep":
            cards.append({"position": position, "rank": rank} | card | {"action": action, "reason": reason})
    cards.sort(key=lambda card: (-card["group_size"], card["rank"]))
    ids = described.ids
    risk = pa.Table.from_pylist([card | {"id": ids[card["position"]]} for card in cards], schema=RISK_SCHEMA)
    risk = risk.drop_columns(["times_copied", "share_low", "share_high", "prompts"])
    errors = described.corpus.table.filter(pa.compute.is_valid(described.corpus.table["error"]))
    tables = {
        "groups": groups.table(),
        "risk": risk,
        "failures": errors.select(["id", "error"]).add_column(0, "corpus", pa.array(["train"] * len(errors), pa.string())),
    }
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
            "sentence": _sentence(len(described.rows), summary, cards),
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
            "protocol": {"name": rules.name, "descriptor": rules.descriptor, "duplicates": rules.duplicates},
            "recipe": {"train": corpus.origin, "seed": seed},
        },
        tables,
    )


def _sentence(n: int, summary: dict[str, Any], cards: list[dict[str, Any]]) -> str:
    repeated = summary["n_images_in_groups"] - summary["n_groups"]
    recaption = sum(card["action"] == "recaption" for card in cards)
    if not repeated and not recaption:
        return f"Nothing in these {n} images invites copying more than the rest: no near-duplicates, no plain picture under a caption of its own."  # fmt: skip
    said = []
    if repeated:
        said.append(
            f"{repeated} of {n} images repeat another one ({summary['n_groups']} near-duplicate groups, "
            f"{summary['full']} of them with the caption repeated too): deduplicate before training"
        )
    if recaption:
        said.append(f"{recaption} plain pictures stand under a caption of their own: give them several, more general ones")
    return "; ".join(said) + "."
