"""A grid of recipes -> trained models, their images, audits of these -> one table and one report. Run again = resume.

The arms are those of `plan`. Each has a folder `OUT/arms/SLUG/{run,generated,audit}`, and its `arm.json` is written
last: an arm that has one is never run again.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

import copyscope

from . import images, outcomes, recipes
from .corpus import Corpus
from .errors import CopyscopeError, ImageError, InputError
from .machine import Progress
from .plan import Arm, Plan, plan
from .prepare import prepare

if TYPE_CHECKING:
    from .copying.audit import Audit

SCHEMA = "copyscope.experiment/1"
#: What an audit says beside the outcomes of its images: name -> where in its summary.
AUDITED = {
    "above_threshold": ("similarity", "estimates", "above_threshold"),
    "held_out_p95": ("similarity", "held_out", "estimates", "p95"),
    "baseline_p95": ("similarity", "baseline", "estimates", "p95"),
    "frechet_distance": ("quality", "frechet_distance"),
    "precision": ("quality", "precision"),
    "recall": ("quality", "recall"),
    "diversity_generated": ("quality", "diversity_generated"),
    "text_image_alignment": ("quality", "text_image_alignment"),
}
#: Images of an arm that a report shows: the first ones, as they come, so that nobody has chosen them.
SHEET, SHEET_SIDE = 12, 96

Engine = Callable[[Callable[[Arm], None], Sequence[Arm]], object]
"""Calls the function on every arm, in any order and place, and returns when all are done."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The result of an experiment: a summary that is plain JSON, and tables.

    `arms` has a row an arm, `contrasts` the paired differences to the arm with a key's first value, `curves` the
    replication over the steps of training where it was watched, `sheets` small pictures.
    """

    summary: dict[str, Any]
    tables: dict[str, pa.Table]

    @property
    def table(self) -> pa.Table:
        """One row an arm: its values, and each number as `NAME`, `NAME_low`, `NAME_high`, `NAME_n`."""
        return self.tables["arms"]

    def save(self, folder: str | Path) -> Path:
        """Write `report.html`, one Parquet file a table and, last, `summary.json`. Returns the folder."""
        from .copying.results import save_result
        from .report.experiment import render

        return save_result(folder, self.summary, self.tables, render(self))

    @classmethod
    def load(cls, folder: str | Path) -> Experiment:
        """What `save` wrote. Raises InputError when the folder holds no such result."""
        from .copying.results import load_result

        return cls(*load_result(folder, SCHEMA))

    def __repr__(self) -> str:
        return f"<Experiment {self.summary['name']}: {self.summary['sentence']}>"


def run(
    toml: str | os.PathLike[str],
    out: str | Path | None = None,
    *,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Experiment:
    """Run every arm that is not finished, and save the result of all in `out`. For what is given, see `plan.plan`.

    An arm that fails becomes a row with its `error`, is tried again next time, and stops no other. engine: where arms
    run; unless given, one after another in this process. Raises InputError where an arm was begun by other values, and
    where no arm could be finished.
    """
    planned = plan(toml, out, settings)
    for arm in planned.arms:
        _refuse_other(arm)
    for recipe, folder in {str(arm.images): (arm.data, arm.images) for arm in planned.arms}.values():
        prepare(recipe, folder, progress=progress)
    if engine is None:
        for arm in planned.arms:
            run_arm(arm, progress)
    else:
        engine(run_arm, planned.arms)
    experiment = collect(planned)
    experiment.save(planned.out)
    return experiment


def run_arm(arm: Arm, progress: Progress | None = None) -> None:
    """Train, generate, audit; what is finished is kept. What goes wrong is written to `failed.json` in its folder."""
    if (arm.folder / "arm.json").is_file():
        return
    arm.folder.mkdir(parents=True, exist_ok=True)
    (arm.folder / "failed.json").unlink(missing_ok=True)
    _write(arm.folder / "recipe.json", arm.recipe | {"provenance": recipes.provenance()})
    try:
        found = _run_arm(arm, functools.partial(_told, progress, arm.slug) if progress else None)
    except CopyscopeError as error:
        _write(arm.folder / "failed.json", {"error": str(error)})
    else:
        _write(arm.folder / "arm.json", found)


def status(
    toml: str | os.PathLike[str], out: str | Path | None = None, *, settings: Sequence[str] = ()
) -> list[dict[str, str]]:
    """For each arm `arm` (its slug), `state` ("done", "failed", "under way" or "to do") and `detail`."""
    found = []
    for arm in plan(toml, out, settings).arms:
        state, detail = "to do", ""
        if (arm.folder / "arm.json").is_file():
            state = "done"
        elif (arm.folder / "failed.json").is_file():
            state, detail = "failed", str(_read(arm.folder / "failed.json")["error"])
        elif (arm.folder / "recipe.json").is_file():
            state, detail = "under way", _reached(arm)
        found.append({"arm": arm.slug, "state": state, "detail": detail})
    return found


def collect(planned: Plan) -> Experiment:
    """The result of the arms finished so far; the others are rows without numbers. Raises InputError if none is."""
    done = [arm for arm in planned.arms if (arm.folder / "arm.json").is_file()]
    rows = [_row(arm) for arm in planned.arms]
    failed = [row for row in rows if row["error"]]
    if not done:
        first = f"No arm could be finished. {failed[0]['arm']}: {failed[0]['error']}" if failed else ""
        raise InputError(first or f"No arm in {planned.out} is finished.\nRun the experiment first")
    compared = list(_contrasts(planned, done))
    sheets = [_of(arm, pq.read_table(arm.folder / "sheet.parquet")) for arm in done]
    audits = [_read(arm.folder / "audit" / "summary.json") for arm in done]
    curves = pa.concat_tables([_of(arm, _curve(arm)) for arm in done])
    summary = {
        "schema": SCHEMA,
        "copyscope": copyscope.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(sum(row["seconds"] or 0 for row in rows), 1),
        "name": planned.recipe.name,
        "about": planned.recipe.about,
        "sentence": _sentence(rows, len(done)),
        "n_arms": len(rows),
        "n_done": len(done),
        "n_failed": len(failed),
        "protocol": audits[0]["protocol"],
        "calibration": " ".join(sorted({found["calibration"]["sentence"] for found in audits})),
        "measures": outcomes.MEASURES,
        "arms": rows,
        "contrasts": compared,
        "curves": curves.drop_columns("label").to_pylist(),
        "recipe": recipes.as_dict(planned.recipe) | {"provenance": recipes.provenance()},
    }
    tables = {
        "arms": outcomes.arms_table(rows),
        "contrasts": pa.Table.from_pylist(compared, outcomes.CONTRASTS),
        "curves": curves,
        "sheets": pa.concat_tables(sheets),
    }
    return Experiment(summary, tables)


def _run_arm(arm: Arm, progress: Progress | None) -> dict[str, Any]:
    """What `arm.json` holds; `outcomes.parquet` and `sheet.parquet` are written on the way."""
    from .copying.audit import audit
    from .copying.results import write_table
    from .diffusion.generate import generate
    from .diffusion.train import train
    from .watch import make_watch

    began = time.monotonic()
    training, held_out = prepare(arm.data, arm.images)
    watched = arm.train.sample_every or arm.train.stop_at_replication
    watch = make_watch(training, held_out, arm.audit.protocol) if watched else None
    trained = train(training, arm.folder / "run", arm.train, watch=watch, progress=progress)
    generated = generate(arm.folder / "run", arm.folder / "generated", arm.sample, progress=progress)
    judged = audit(
        generated, training, held_out, arm.audit.protocol,
        fdr=arm.audit.fdr, clip=arm.audit.clip or None, seed=arm.audit.seed, progress=progress,
    )  # fmt: skip
    judged.save(arm.folder / "audit")
    table = outcomes.outcomes(
        judged.tables["generated"],
        {row["id"]: row for row in generated.table.select(["id", "seed", "source_id"]).to_pylist()},
        _pairs(pq.read_table(arm.folder / "run" / "train.parquet", columns=["id", "duplicated"])),
        _pairs(judged.tables["groups"].select(["id", "group"])),
    )
    write_table(arm.folder, "outcomes", table)
    write_table(arm.folder, "sheet", _sheet(table, generated, training))
    estimates = {name: estimate.as_dict() for name, estimate in outcomes.rates(table).items()}
    return {
        "answer": judged.summary["verdict"]["answer"],
        "n_generated": judged.summary["n_generated"],
        "n_missing": judged.summary["n_missing"],
        "n_train": judged.summary["n_train"],
        "steps": trained.summary["steps"],
        "train_seconds": trained.summary["seconds"],
        "seconds": round(time.monotonic() - began, 1),
        "estimates": estimates | {name: _found(judged, path) for name, path in AUDITED.items()},
    }


def _found(judged: Audit, path: Sequence[str]) -> dict[str, Any]:
    """An estimate of the audit's summary; one without value where the audit has none."""
    value: Any = judged.summary
    for key in path:
        value = (value or {}).get(key)
    return value or dict.fromkeys(outcomes.ENDS, None) | {"n": 0}


def _sheet(table: pa.Table, generated: Corpus, training: Corpus) -> pa.Table:
    """The first images of an arm beside their matches, as WebP; null where one cannot be read."""
    rows = table.slice(0, SHEET).to_pylist()
    places = [{name: row for row, name in enumerate(corpus.ids)} for corpus in (generated, training)]
    for row in rows:
        for name, key, corpus, place in zip(
            ("made", "real"), ("id", "match"), (generated, training), places, strict=True
        ):
            row[name] = _thumbnail(corpus, place[row[key]]) if row[key] in place else None
    return pa.Table.from_pylist(rows, SHEETS)


def _thumbnail(corpus: Corpus, row: int) -> bytes | None:
    try:
        return images.encode(images.thumbnail(images.decode(corpus.read(row)), SHEET_SIDE), "webp", 88)
    except ImageError:
        return None


SHEETS = pa.schema([*(outcomes.SCHEMA.field(name) for name in ("id", "prompt", "match", "similarity", "copied", "own")),
                    pa.field("made", pa.binary()), pa.field("real", pa.binary())])  # fmt: skip
CURVES = ["step", "value", "low", "high", "n"]


def _row(arm: Arm) -> dict[str, Any]:
    """An arm as a row of the summary; numbers are null where it is not finished."""
    row: dict[str, Any] = {"arm": arm.slug, "label": arm.label, "values": arm.values, "seed": arm.seed, "error": None}
    if (arm.folder / "arm.json").is_file():
        return row | _read(arm.folder / "arm.json")
    if (arm.folder / "failed.json").is_file():
        row["error"] = str(_read(arm.folder / "failed.json")["error"])
    absent = ("answer", "n_generated", "n_missing", "n_train", "steps", "train_seconds", "seconds")
    nothing = dict.fromkeys(outcomes.ENDS, None) | {"n": 0}
    return row | dict.fromkeys(absent) | {"estimates": dict.fromkeys((*outcomes.MEASURES, *AUDITED), nothing)}


def _contrasts(planned: Plan, done: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    """Each arm against the one that has the first value of a key and all else alike; then the mean over the seeds."""
    tables = {arm.folder: pq.read_table(arm.folder / "outcomes.parquet") for arm in done}
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for key, choices in planned.grid.items():
        for arm in done:
            wanted = arm.values | {key: choices[0]}
            first = next((each for each in done if each.values == wanted and each.seed == arm.seed), None)
            if first is None or first is arm:
                continue
            names = {"key": key, "from": first.said(key), "to": arm.said(key), "at": arm.without(key)}
            for row in outcomes.contrasts(tables[first.folder], tables[arm.folder]):
                place = (*names.values(), row["measure"])
                found.setdefault(place, []).append(names | {"seed": arm.seed} | row)
    for rows in found.values():
        yield from rows
        if len(rows) > 1:
            mean = outcomes.over_seeds([row["difference"] for row in rows]).as_dict()
            yield rows[0] | {"seed": None, "p_value": None, "difference": mean.pop("value")} | mean


def _curve(arm: Arm) -> pa.Table:
    """Replication over the steps of training; empty where nobody watched."""
    names = ["step", "replication", "replication_low", "replication_high", "replication_n"]
    history = pq.read_table(arm.folder / "run" / "history.parquet", columns=names)
    return history.filter(history["replication"].is_valid()).rename_columns(CURVES)


def _of(arm: Arm, table: pa.Table) -> pa.Table:
    """The table with the arm's slug and label before its columns."""
    for name, text in (("label", arm.label), ("arm", arm.slug)):
        table = table.add_column(0, name, pa.array([text] * len(table), pa.string()))
    return table


def _sentence(rows: Sequence[Mapping[str, Any]], n_done: int) -> str:
    values = {row["arm"]: row["estimates"]["replication_rate"]["value"] for row in rows}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return f"{n_done} of {len(rows)} arms are finished, and none has an image that can be read."
    label = {row["arm"]: row["label"] + (f", seed {row['seed']}" if row["seed"] else "") for row in rows}
    (least, low), (most, high) = (pick(known.items(), key=lambda item: item[1]) for pick in (min, max))
    begun = "" if n_done == len(rows) else f"{n_done} of {len(rows)} arms are finished. "
    if low == high:
        where = label[least] if len(known) == 1 else "every arm"
        return f"{begun}{100 * low:.1f} % of the images are copies in {where}."
    lowest, highest = f"{100 * low:.1f} % ({label[least]})", f"{100 * high:.1f} % ({label[most]})"
    return f"{begun}From {lowest} to {highest} of the images are copies."


def _refuse_other(arm: Arm) -> None:
    """Raises InputError when the arm's folder was begun by other values than these."""
    if not (arm.folder / "recipe.json").is_file():
        return
    begun = _read(arm.folder / "recipe.json")
    for table, values in arm.recipe.items():
        for field, value in values.items():
            before = begun.get(table, {}).get(field)
            if before != json.loads(json.dumps(value)):
                raise InputError(
                    f"{arm.folder} was begun with {table}.{field} = {before!r}, and now it is {value!r}.\n"
                    "Name another folder with -o, or set it back"
                )


def _reached(arm: Arm) -> str:
    """How far an arm under way has come, by what it has written."""
    made = arm.folder / "generated"
    if (made / "metadata.jsonl").is_file():
        return "auditing"
    if made.is_dir():
        return f"{sum(1 for _ in made.glob('*.png'))} of {arm.sample.n_images} images"
    steps = [int(path.name.rpartition("-")[2]) for path in (arm.folder / "run" / "checkpoints").glob("step-*[0-9]")]
    return f"step {max(steps)} of {arm.train.steps}" if steps else "begun"


def _pairs(table: pa.Table) -> dict[Any, Any]:
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _told(progress: Progress, slug: str, label: str, done: int, total: int) -> None:
    progress(f"{slug}: {label}", done, total)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    from .copying.embed import write_file

    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
