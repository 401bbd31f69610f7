"""`experiment`: run all arms, collect results, resumable.

The arms are those of `plan`, and `arms` runs one. Trainings are in `OUT/runs/`, where arms that differ in sampling only
share one. Each arm has a folder `OUT/arms/SLUG/`, with what it made and its audits, and its `arm.json` is written last:
an arm that has one is never run again. Once all are, `recheck` is the second phase.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from copyscope import recipes
from copyscope._version import __version__
from copyscope.data.parquet_pages import read_table
from copyscope.detection.results import Result
from copyscope.documents import read_json
from copyscope.errors import InputError
from copyscope.machine import Progress

from . import arm as arms
from . import outcomes, recheck
from .arm import run_arm
from .leaderboard import leaderboard
from .plan import Arm, Plan, plan
from .prepare import prepare

SCHEMA = "copyscope.experiment/1"

Engine = Callable[[Callable[[Arm], None], Sequence[Arm]], object]
"""Calls the function on every arm, in any order and place, and returns when all are done."""


class Experiment(Result):
    """Result of an experiment: a summary that is plain JSON, and tables.

    `arms` has a row an arm, `contrasts` the paired differences to the arm with a key's first value, `curves` the
    replication over the steps of training where it was watched, `sheets` small pictures.
    """

    schema = SCHEMA

    @property
    def table(self) -> pa.Table:
        """Table with a row an arm: its values, and each number as `NAME`, `NAME_low`, `NAME_high`, `NAME_n`."""
        return self.tables["arms"]

    def page(self) -> str:
        """The report as one HTML page: arms, rates, paired differences, samples."""
        from copyscope.report.experiment import render

        return render(self)

    def __repr__(self) -> str:
        return f"<Experiment {self.summary['name']}: {self.sentence}>"


def run(
    toml: str | os.PathLike[str],
    out: str | Path | None = None,
    *,
    settings: Sequence[str] = (),
    trust_parts: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Experiment:
    """Run every arm of an experiment that is not finished, and save the result of all.

    An arm that fails becomes a row with its `error`, is tried again next time, and stops no other.

    Args:
        toml: file of the experiment.
        out: its folder; None = `runs/NAME`.
        settings: such as `train.steps=500`, as in `plan.plan`.
        trust_parts: as in `plan.plan`.
        progress: called with a label, the number done and the total.
        engine: where arms run, and then where they are rechecked; None = one after another in this process.

    Returns:
        The result.

    Raises:
        InputError: a value does not fit, an arm was begun by other values, there are too few held-out captions, or no
            arm could be finished.
        PartError: a part is unknown or not trusted.
    """
    planned = plan(toml, out, settings, trust_parts=trust_parts)
    for arm in planned.arms:
        _refuse_other(arm)
    for arm in {str(arm.images): arm for arm in planned.arms}.values():
        _, held_out = prepare(arm.data, arm.images, progress=progress)
        arms.general_prompts(arm, held_out)
    _each(run_arm, planned.arms, engine, progress)
    _each(recheck.recheck_arm, [arm for arm in planned.arms if recheck.due(arm)], engine, progress)
    experiment = collect(planned)
    experiment.save(planned.out)
    return experiment


def status(
    toml: str | os.PathLike[str],
    out: str | Path | None = None,
    *,
    settings: Sequence[str] = (),
    trust_parts: bool = False,
) -> list[dict[str, str]]:
    """State of every arm of an experiment.

    Args:
        toml: file of the experiment.
        out: its folder; None = `runs/NAME`.
        settings: as in `plan.plan`.
        trust_parts: as in `plan.plan`.

    Returns:
        For each arm `arm` (its slug), `state` ("done", "failed", "under way" or "to do") and `detail`.

    Raises:
        InputError: a value does not fit.
    """
    found = []
    for arm in plan(toml, out, settings, trust_parts=trust_parts).arms:
        state, detail = "to do", ""
        if (arm.folder / "arm.json").is_file():
            state, detail = "done", "to be rechecked" if recheck.due(arm) else ""
        elif (arm.folder / "failed.json").is_file():
            state, detail = "failed", str(read_json(arm.folder / "failed.json")["error"])
        elif (arm.folder / "recipe.json").is_file():
            state, detail = "under way", _reached(arm)
        found.append({"arm": arm.slug, "state": state, "detail": detail})
    return found


def collect(planned: Plan) -> Experiment:
    """Collect the arms finished so far into a result; the others are rows without numbers.

    Args:
        planned: the experiment.

    Returns:
        The result.

    Raises:
        InputError: no arm is finished.
    """
    done = [arm for arm in planned.arms if (arm.folder / "arm.json").is_file()]
    rows = [_row(arm) for arm in planned.arms]
    failed = [row for row in rows if row["error"]]
    if not done:
        first = f"No arm could be finished. {failed[0]['arm']}: {failed[0]['error']}" if failed else ""
        raise InputError(first or f"No arm in {planned.out} is finished.\nRun the experiment first")
    compared = list(_contrasts(planned, done))
    sheets = [_of(arm, read_table(arm.folder / "sheet.parquet")) for arm in done]
    audits = [read_json(arm.folder / "audit" / "summary.json") for arm in done]
    curves = pa.concat_tables([_of(arm, _curve(arm)) for arm in done])
    summary = {
        "schema": SCHEMA,
        "copyscope": __version__,
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
        "measures": outcomes.MEASURES | arms.MEASURES | recheck.MEASURES,
        "leaderboard": leaderboard(rows) if planned.recipe.arms else [],
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


CURVES = ["step", "value", "low", "high", "n"]


def _each(
    function: Callable[[Arm, Progress | None], None], chosen: Sequence[Arm], engine: Engine | None,
    progress: Progress | None,
) -> None:  # fmt: skip
    if engine is None:
        for arm in chosen:
            function(arm, progress)
    elif chosen:
        engine(function, chosen)  # type: ignore[arg-type]  # progress has a default


def _row(arm: Arm) -> dict[str, Any]:
    """An arm as a row of the summary; numbers are null where it is not finished, or has none."""
    row: dict[str, Any] = {"arm": arm.slug, "label": arm.label, "name": arm.name or None, "run": arm.run.name}
    row |= {"first": arm.first.name if arm.first else None, "values": arm.values, "seed": arm.seed}
    row |= {"error": _error(arm, "failed.json"), "recheck_error": _error(arm, "recheck-failed.json")}
    row |= dict.fromkeys(("answer", "n_generated", "n_missing", "n_train", "steps", "train_seconds", "seconds"))
    estimates = dict.fromkeys((*outcomes.MEASURES, *arms.AUDITED, *arms.MEASURES, *recheck.MEASURES), arms.NOTHING)
    if (arm.folder / "arm.json").is_file():
        row |= read_json(arm.folder / "arm.json")
        estimates |= row["estimates"]
        estimates |= (recheck.finished(arm) or {"estimates": {}})["estimates"]
    return row | {"estimates": estimates}


def _error(arm: Arm, name: str) -> str | None:
    """What went wrong the last time, as a file of the arm says."""
    path = arm.folder / name
    return str(read_json(path)["error"]) if path.is_file() else None


def _contrasts(planned: Plan, done: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    """The paired differences of two arms at a time; then, of each, the mean over the seeds."""
    tables = {arm.folder: outcomes.read(arm.folder) for arm in done}
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for key, first, arm in _compared(planned, done):
        names = {"key": key, "from": first.said(key), "to": arm.said(key), "at": arm.without(key)}
        for row in outcomes.contrasts(tables[first.folder], tables[arm.folder]):
            place = (*names.values(), row["measure"])
            found.setdefault(place, []).append(names | {"seed": arm.seed} | row)
    for rows in found.values():
        yield from rows
        if len(rows) > 1:
            mean = outcomes.over_seeds([row["difference"] for row in rows])
            yield rows[0] | {"seed": None, "p_value": None} | outcomes.difference_of(mean)


def _compared(planned: Plan, done: Sequence[Arm]) -> Iterator[tuple[str, Arm, Arm]]:
    """Pairs of arms that are compared, all of one seed: (key, first, arm).

    Each listed arm and the first listed one, at one cell of the grid; then each arm and the one that has the first
    value of a key of the grid and all else alike.
    """
    for arm in done:
        yield from (("arm", first, arm) for first in done if first.folder == arm.first)
    for key, choices in planned.grid.items():
        for arm in done:
            wanted = (arm.name, arm.cell | {key: choices[0]}, arm.seed)
            same = (first for first in done if (first.name, first.cell, first.seed) == wanted and first is not arm)
            yield from ((key, first, arm) for first in same)


def _curve(arm: Arm) -> pa.Table:
    """Replication over the steps of training; empty where nobody watched."""
    names = ["step", "replication", "replication_low", "replication_high", "replication_n"]
    # Arms of version 0.1 have the run in their own folder.
    run = arm.run if arm.run.is_dir() else arm.folder / "run"
    history = read_table(run / "history.parquet", names)
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
    begun = read_json(arm.folder / "recipe.json")
    for table, values in arm.recipe.items():
        # What is not in the file was not yet a field then.
        defaults = {field.name: field.default for field in dataclasses.fields(getattr(arm, table))}
        for field, value in values.items():
            before = begun.get(table, {}).get(field, defaults[field])
            if json.loads(json.dumps(before, default=str)) != json.loads(json.dumps(value)):
                raise InputError(
                    f"{arm.folder} was begun with {table}.{field} = {before!r}, and now it is {value!r}.\n"
                    "Name another folder with -o, or set it back"
                )


def _reached(arm: Arm) -> str:
    """How far an arm under way has come, by what it has written."""
    for name, wanted in (("general", arm.audit.general), ("generated", arm.sample.n_images)):
        made = arm.folder / name
        if (made / "metadata.jsonl").is_file():
            return "auditing"
        if made.is_dir():
            return f"{sum(1 for _ in made.glob('*.png'))} of {wanted} images" + (" (general)" * (name == "general"))
    steps = [int(path.name.rpartition("-")[2]) for path in (arm.run / "checkpoints").glob("step-*[0-9]")]
    return f"step {max(steps)} of {arm.train.steps}" if steps else "begun"
