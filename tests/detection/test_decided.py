"""Audit, match, index, serve and guard honour what people decided."""

from __future__ import annotations

import hashlib
import json

import pytest

from copyscope import Corpus, Index
from copyscope.detection.audit import audit
from copyscope.detection.lookup import lookup
from copyscope.imaging import images
from copyscope.serve.check import answer
from tests.cli.test_main import run

FAST = "sscd-distilled"


def name(path):
    """An image as `copyscope decide` names it, under a name that it had before."""
    return {"id": "an earlier name.png", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.fixture(scope="module")
def copied(world):
    """(generated, training image) of exact copies, one of an image without near-duplicates."""
    exact = [each for each, kind in world.kinds.items() if kind == "exact" and world.truth[each] not in world.group]
    return [(each, world.truth[each]) for each in exact]


@pytest.fixture(scope="module")
def file(world, copied, tmp_path_factory):
    """The first copy is "different", the training image of the second is licensed, and a line is broken."""
    (one, its), (_, other) = copied[:2]
    path = tmp_path_factory.mktemp("decided") / "decisions.jsonl"
    lines = [
        {"verdict": "different", "images": [name(world.generated / one), name(world.train / its)]},
        {"verdict": "licensed", "images": [name(world.train / other)], "why": "ours"},
        {"verdict": "licensed", "images": ["gone.png"]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{}\n")
    return path


def test_an_audit_calls_neither_a_copy_and_says_so(world, copied, file):
    arguments = (world.generated, world.train, world.held_out, FAST)
    options = {"sensitivity": 0, "parts": "off"}
    before = audit(*arguments, **options)
    after = audit(*arguments, **options, decisions=file)
    excused = {copied[0][0], copied[1][0]}
    found = [{row["id"] for row in each.copies} for each in (before, after)]
    assert excused <= found[0]
    assert found[1] == found[0] - excused
    said = after.summary["decisions"]
    assert (said["n_apart"], said["n_licensed"], said["n_unmatched"]) == (1, 1, 1)
    assert after.sentence.endswith(said["sentence"])
    assert "1 pair told apart, 1 pair with a licensed image." in said["sentence"]
    assert after.tables["failures"].to_pylist() == [
        {"corpus": "decisions", "id": f"{file}:4", "error": "no list of images"}
    ]
    matches = {(row["query_id"], row["reference_id"]) for row in after.tables["matches"].to_pylist()}
    assert not set(copied[:2]) & matches


def test_match_has_no_such_pair(world, copied, file):
    code, stdout, _ = run("match", world.generated, world.train, "-p", FAST, "-k", 3, "--decisions", file, "--json")
    found = json.loads(stdout)
    assert code == 0
    pairs = {(row["query_id"], row["reference_id"]) for row in found["matches"]}
    assert not set(copied[:2]) & pairs
    assert (found["decisions"]["n_apart"], found["decisions"]["n_licensed"]) == (1, 1)
    assert found["sentence"].endswith(found["decisions"]["sentence"])
    assert not {each for each, _ in copied[:2]} & {row["query_id"] for row in found["copies"] if row["identical"]}


def test_an_index_and_all_that_asks_it_have_no_such_hit(world, copied, file, tmp_path):
    Index.build(world.train, tmp_path / "index", FAST, held_out=Corpus.open(world.held_out).take(range(20)))
    plain, decided = Index.open(tmp_path / "index"), Index.open(tmp_path / "index", decisions=file)
    (one, its), (two, other) = copied[:2]
    asked = Corpus.open(world.generated)
    asked = asked.take([asked.ids.index(one), asked.ids.index(two)])
    assert [hits[0].id for hits in plain.match(asked, 3, local=False)] == [its, other]
    for hits, gone in zip(decided.match(asked, 3, local=False), (its, other), strict=True):
        assert len(hits) == 3
        assert gone not in {hit.id for hit in hits}
    found = lookup(decided, [asked], 3, local=False)
    assert found.summary["n_identical"] == 0
    assert (found.summary["decisions"]["n_apart"], found.summary["decisions"]["n_licensed"]) == (1, 1)
    assert found.sentence.endswith(found.summary["decisions"]["sentence"])
    assert found.tables["failures"]["id"].to_pylist() == [f"{file}:4"]
    assert decided.summary()["decisions"]["n_unmatched"] == 1
    # A picture without a file is in no pair; what is licensed is no copy of it either: as serve and guard ask.
    pictures = [images.decode(asked.read(row)) for row in range(2)]
    assert [
        hits[0].id == gone for hits, gone in zip(decided.match(pictures, 3, local=False), (its, other), strict=True)
    ] == [
        True,
        False,
    ]
    answers = [answer(index, asked.read(1), 10**7, 3, False, 0.05) for index in (plain, decided)]
    assert [each.identical for each in answers] == [True, False]


def test_a_picture_all_of_whose_matches_are_excused_is_not_blank(world, copied, tmp_path):
    train = Corpus.open(world.train)
    few = train.take([train.ids.index(copied[1][1]), *range(3)])
    Index.build(few, tmp_path / "index", FAST, held_out=Corpus.open(world.held_out).take(range(20)))
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"verdict": "licensed", "images": few.ids}) + "\n")
    found = lookup(Index.open(tmp_path / "index", decisions=path), [world.generated], 3, local=False)
    assert (found.summary["n_blank"], len(found.tables["matches"])) == (0, 0)
