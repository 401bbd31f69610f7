"""The JSON of every command is of the types from which docs/json.md is made."""

from __future__ import annotations

import dataclasses
import json

import pytest

import copyscope
from copyscope.detection.index.hits import Hit
from copyscope.detection.summaries import Failures
from copyscope.stats import EstimateDict
from tests.cli.test_main import FAST, run
from tests.json_types import PAGE, check, misfits


def output(*arguments):
    code, stdout, _ = run(*arguments)
    assert code == 0
    return json.loads(stdout)


@pytest.mark.parametrize("held_out", ["--held-out", "--control", None])
def test_the_json_of_an_audit_is_of_its_type(held_out, world):
    sets = [held_out, world.held_out] if held_out else []
    summary = output("audit", world.generated, world.train, *sets, *FAST, "--sensitivity", 4, "--json")
    check("audit", summary)
    assert summary["copies"]
    check("dry run", output("audit", world.generated, world.train, *sets, "--dry-run"))


@pytest.mark.parametrize("command", ["lint", "duplicates", "match", "embed"])
def test_the_json_of_other_commands_is_of_its_type(command, world, tmp_path):
    (tmp_path / "list.txt").write_text("0000.png\n")
    sets = [world.generated] if command == "match" else ["--without", tmp_path / "list.txt"]
    summary = output(command, *sets, world.train, *FAST, "-o", tmp_path / "out", "--json")
    check(command, summary)
    assert ("without" in summary) == (command != "match")
    assert f"`{summary['schema']}`" in "".join(PAGE.table(command))


def test_the_json_of_embeddings_in_parts_is_of_its_type(world, tmp_path):
    from copyscope.detection.embedding import parquet
    from tests.test_engine import Backwards

    (tmp_path / "list.txt").write_text("0000.png\n")
    given = {"engine": Backwards(), "without": tmp_path / "list.txt"}
    manifest, _ = parquet.write(world.train, tmp_path / "out", "phash", **given)
    check("embeddings in parts", manifest)


def test_the_json_of_an_index_and_of_its_matches_is_of_its_type(world, tmp_path):
    from copyscope.serve.check import answer

    train = copyscope.Corpus.open(world.train).take(range(4))
    index = copyscope.Index.build(train, tmp_path / "index", "sscd-distilled")
    for command in ("show", "check", "compact"):
        check("index", output("index", command, index.folder, "--json"))
    # A training image: only a copy fills all keys.
    picture = tmp_path / "asked.png"
    picture.write_bytes(train.read(0))
    found = output("match", picture, "--index", index.folder, "--json")
    check("index matches", found)
    assert found["copies"]
    for body in (train.read(0), next(world.generated.glob("*.png")).read_bytes()):
        check("check", dataclasses.asdict(answer(index, body, 10**6, 3, True, 0.5)))


def test_the_json_of_the_commands_about_copyscope_is_of_its_type():
    for name in ("doctor", "fetch"):
        rows = output(name, "--json")
        assert rows
        for row in rows:
            check(name, row)
    for rows in output("parts", "--json").values():
        for row in rows:
            check("parts", row)


ESTIMATE = {"value": 0.5, "low": None, "high": 1, "n": 2}


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (ESTIMATE, EstimateDict, []),
        (ESTIMATE | {"n": 2.0}, EstimateDict, [".n: 2.0 is no integer"]),
        (ESTIMATE | {"n": True}, EstimateDict, [".n: True is no integer"]),
        (ESTIMATE | {"value": "0.5"}, EstimateDict, [".value: '0.5' is no number"]),
        (ESTIMATE | {"more": 1}, EstimateDict, [".more: not documented"]),
        ({"value": 1.0, "low": 1.0, "high": 1.0}, EstimateDict, [".n: missing"]),
        ({"generated": 1, "train": 2}, Failures, []),
        ({"generated": 1, "train": 2, "held-out": None}, Failures, [".held-out: None is no integer"]),
        ([ESTIMATE, 3], list[EstimateDict], ["[]: 3 is no object"]),
        ({"a": ESTIMATE, "b": None}, dict[str, EstimateDict | None], []),
        ({"a": 1}, list[int] | None, [": {'a': 1} is no list"]),
    ],
)
def test_the_check_sees_what_is_missing_unknown_or_of_another_type(value, kind, said):
    assert list(misfits(value, kind)) == said


def test_types_are_named_as_the_page_names_them():
    assert PAGE.word(float | None) == "number or null"
    assert PAGE.word(list[EstimateDict] | None) == "list of Estimates or null"
    rows = dict(line.split(" | ")[:2] for line in PAGE.lines(Hit))
    assert rows["| `box`"] == "list of 4 numbers or null"


def test_every_key_says_what_it_is():
    assert [
        line for name in PAGE.KINDS for line in PAGE.table(name)[3:-1] if not line.split(" | ")[2].strip(" |")
    ] == []
