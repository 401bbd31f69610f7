"""Decisions: read and appended; groups, lint and curate as people decided."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from copyscope.cli import main
from copyscope.curation import decisions
from copyscope.curation.decisions import Decisions, Named
from copyscope.data.corpus import Corpus
from copyscope.errors import InputError
from tests.cli.test_main import FAST, run
from tests.pictures import fill

SHA = "ab" * 32


def lines(path, *values):
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in values))
    return path


def output(*arguments):
    code, stdout, stderr = run(*arguments)
    assert code == 0, stderr
    return json.loads(stdout)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_written_by_hand_is_read_and_broken_lines_are_rows_with_their_number(tmp_path):
    path = lines(
        tmp_path / "d.jsonl",
        "# by hand",
        {"verdict": "different", "images": ["a.png", SHA.upper()], "why": "two pages"},
        "",
        '{"verdict": "same", "images": ["a.png", "b.png"]',
        {"verdict": "equal", "images": ["a.png"]},
        {"verdict": "same", "images": ["a.png"]},
        {"verdict": "ignore", "images": [{"id": "c.png", "sha256": "12"}]},
        {"verdict": "ignore", "images": ["c.png"], "whom": "me"},
        {"verdict": "licensed", "images": [{"id": "c.png", "sha256": SHA}], "by": "me", "when": "2024"},
    )
    found = Decisions.read(path)
    assert [(each.verdict, each.images, each.line) for each in found.listed] == [
        ("different", (Named("a.png", None), Named(None, SHA)), 2),
        ("licensed", (Named("c.png", SHA),), 9),
    ]
    assert [row["line"] for row in found.errors] == [4, 5, 6, 7, 8]
    assert all(row["file"] == str(path) and row["error"] for row in found.errors)
    assert found.failures()["id"].to_pylist()[0] == f"{path}:4"
    with pytest.raises(InputError, match=r"no such file.\nMake the file with: copyscope decide"):
        Decisions.read(tmp_path / "none.jsonl")


def test_a_decision_is_appended_behind_a_line_without_its_end(tmp_path):
    path = tmp_path / "sub" / "d.jsonl"
    decisions.append(path, decisions.checked("licensed", [Named("é.png", SHA)], why="ours"))
    path.write_bytes(path.read_bytes() + b'{"verdict": "ignore", "images": ["b.png"]}')
    decisions.append(path, decisions.checked("different", [Named("a", None), Named("b", None)]))
    found = Decisions.read(path)
    assert [each.verdict for each in found.listed] == ["licensed", "ignore", "different"]
    assert found.listed[0].images == (Named("é.png", SHA),)
    assert not found.errors


def test_a_digest_finds_an_image_under_any_name_and_the_last_word_holds(tmp_path):
    corpus = Corpus.open(fill(tmp_path / "data", "a.png", "b.png", "c.png"))
    corpus = corpus.with_column("sha256", [SHA, "cd" * 32, "ef" * 32])
    path = lines(
        tmp_path / "d.jsonl",
        {"verdict": "different", "images": [{"id": "old name.png", "sha256": SHA}, "b.png"]},
        {"verdict": "different", "images": ["b.png", "c.png"]},
        {"verdict": "same", "images": ["c.png", "b.png"]},
        {"verdict": "ignore", "images": [{"id": "a.png", "sha256": "00" * 32}]},
    )
    found = Decisions.read(path).within(corpus, np.arange(3))
    assert found.pairs == {(0, 1): "different", (1, 2): "same"}
    assert found.found == {1, 2, 3}  # what is in a.png now is another picture
    assert not found.single


@pytest.fixture(scope="module")
def groups(world):
    """Ids of the near-duplicate groups of the world, the largest first."""
    found: dict[int, list[str]] = {}
    for row in output("duplicates", world.train, *FAST, "--json")["groups"]:
        found.setdefault(row["group"], []).append(row["id"])
    return list(found.values())


def test_a_pair_marked_different_never_comes_back(world, groups, tmp_path):
    one, other = sorted(groups[0])[-2:]  # the first two are one file
    path = tmp_path / "d.jsonl"
    code, stdout, _ = run("decide", "different", one, other, "--of", world.train, "--decisions", path, "--by", "me")
    assert (code, stdout.splitlines()[0]) == (0, f"different: {one}, {other}")
    assert json.loads(path.read_text())["images"][0] == {"id": one, "sha256": digest(world.train / one)}
    options = [*FAST, "--decisions", path, "--json"]
    found = output("duplicates", world.train, *options)
    label = {row["id"]: row["group"] for row in found["groups"]}
    assert label.get(one) != label.get(other) or label.get(one) is None
    assert len(label) >= sum(map(len, groups)) - 2
    said = found["decisions"]
    assert (said["n"], said["different"], said["n_apart"], said["n_unmatched"]) == (1, 1, 1, 0)
    assert said["sentence"] == f"1 decision of {path}: 1 pair told apart."
    linted = output("lint", world.train, *options)
    assert linted["decisions"] == said
    assert linted["sentence"].endswith(said["sentence"])
    made = output("curate", world.train, "-o", tmp_path / "out", "--drop-duplicates", "keep-one", *options)
    assert made["decisions"]["n_apart"] == 1
    assert {one, other} <= set(Corpus.open(tmp_path / "out").ids) or len(groups[0]) > 2


def test_images_marked_same_are_one_group_and_one_is_kept(world, groups, tmp_path):
    grouped = {id for ids in groups for id in ids}
    one, other = [id for id in Corpus.open(world.train).ids if id not in grouped][:2]
    path = lines(tmp_path / "d.jsonl", {"verdict": "same", "images": [one, other]})
    options = [*FAST, "--decisions", path, "--json"]
    found = output("duplicates", world.train, *options)
    label = {row["id"]: row["group"] for row in found["groups"]}
    assert label[one] == label[other]
    made = output("curate", world.train, "-o", tmp_path / "out", "--drop-duplicates", "keep-one", *options)
    assert made["decisions"]["n_joined"] == 1
    assert len({one, other} & set(Corpus.open(tmp_path / "out").ids)) == 1
    assert "a decision says that it is the same picture" in (tmp_path / "out" / "dropped.csv").read_text()


def test_ignored_groups_and_licensed_images_are_not_advised_on(world, groups, tmp_path):
    path = tmp_path / "d.jsonl"
    result = tmp_path / "lint"
    before = output("lint", world.train, *FAST, "--json", "-o", result)
    run("decide", "ignore", "--group", 0, "--result", result, "--of", world.train, "--decisions", path)
    run("decide", "licensed", *groups[1], "--of", world.train, "--decisions", path)
    path.write_text(path.read_text() + "nonsense\n")
    code, stdout, stderr = run("lint", world.train, *FAST, "--decisions", path, "--json", "-o", tmp_path / "after")
    after = json.loads(stdout)
    assert code == 0
    assert "d.jsonl, line 3: " in stderr
    assert after["duplicates"]["n_groups"] == before["duplicates"]["n_groups"] - 1
    assert after["actions"]["deduplicate"] == before["actions"]["deduplicate"] - 2
    said = after["decisions"]
    assert said["n_ignored"] == len(groups[0]) * (len(groups[0]) - 1) // 2
    assert (said["n_licensed"], [row["line"] for row in said["errors"]]) == (1, [3])
    from copyscope.detection.lint import Lint

    assert Lint.load(tmp_path / "after").tables["failures"].to_pylist()[-1]["id"] == f"{path}:3"
    assert run("lint", world.train, *FAST, "--decisions", path, "--strict")[0] == 1


def test_what_cannot_be_decided_is_said(world, tmp_path):
    id = Corpus.open(world.train).ids[0]
    for arguments, said in (
        (["different", id, "--of", world.train], "2 to 1,000 images, not 1"),
        (["equal", id, "--of", world.train], "not one of same, different"),
        (["ignore", "no.png", "--of", world.train], "No image 'no.png'"),
        (["ignore", id], "--of CORPUS"),
    ):
        with pytest.raises(InputError, match=said):
            main.app(["decide", *map(str, arguments), "--decisions", str(tmp_path / "d")], standalone_mode=False)
    assert not (tmp_path / "d").exists()
