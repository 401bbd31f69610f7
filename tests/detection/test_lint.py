"""Lint before training, against worlds whose near-duplicates and captions are known."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import copyscope
from copyscope import stats
from copyscope.data.corpus import Corpus
from copyscope.detection import lint as module
from copyscope.detection.lint import lint
from copyscope.detection.search import ivf
from copyscope.errors import InputError
from copyscope.imaging import images
from copyscope.report import render_lint
from copyscope.report.terminal import lint_figures
from copyscope.report.wording import lint_limits
from tests import worlds
from tests.pictures import fill


def run(folder: Path) -> copyscope.Lint:
    return copyscope.lint(folder, "sscd-distilled")


@pytest.fixture(scope="module")
def linted(world):
    return run(world.train)


@pytest.fixture
def single(tmp_path):
    """A folder of one image with a caption of its own."""
    image, caption = worlds.picture(np.random.default_rng(3))
    (tmp_path / "one.png").write_bytes(images.encode(image, "png"))
    (tmp_path / "one.txt").write_text(caption)
    return tmp_path


def members(result):
    found: dict[int, set[str]] = {}
    for row in result.tables["groups"].to_pylist():
        found.setdefault(row["group"], set()).add(row["id"])
    return found


def test_groups_and_their_kinds_are_those_of_the_truth(world, linted):
    truth: dict[int, set[str]] = {}
    for name, group in world.group.items():
        truth.setdefault(group, set()).add(name)
    assert sorted(map(sorted, members(linted).values())) == sorted(map(sorted, truth.values()))
    for row in linted.tables["groups"].to_pylist():
        assert row["duplication"] == world.duplication[world.group[row["id"]]]
        assert row["size"] == len(truth[world.group[row["id"]]])
    duplicates = linted.summary["duplicates"]
    assert (duplicates["n_groups"], duplicates["n_images_in_groups"], duplicates["largest"]) == (3, 10, 5)
    assert (duplicates["full"], duplicates["partial"], duplicates["uncaptioned"]) == (2, 1, 0)
    assert duplicates["n_exact_groups"] == 3


def test_share_of_repeats_has_the_exact_binomial_interval(linted):
    share = linted.summary["duplicated_share"]
    assert share["value"] == pytest.approx(7 / 60)
    assert share["n"] == 60
    # Clopper-Pearson for 7 of 60 (R: binom.test(7, 60)).
    assert (share["low"], share["high"]) == (pytest.approx(0.0482, abs=1e-4), pytest.approx(0.2257, abs=1e-4))
    assert linted.summary["sentence"].startswith(
        "7 of 60 images repeat another one, in 3 near-duplicate groups, 2 of them with a caption that comes back too"
    )


def test_captions_are_counted(linted):
    # Shared: the 2 + 5 images of the full groups; nearly: the 3 whose captions differ in the number of the view.
    assert linted.summary["captions"] == {"with": 60, "without": 0, "shared": 7, "near_shared": 3}


def test_every_group_is_to_be_deduplicated_and_no_picture_is_recaptioned_for_being_the_simplest(world, linted):
    cards = linted.tables["risk"].to_pylist()
    assert [card["group_size"] for card in cards] == [5, 3, 2]
    assert [card["action"] for card in cards] == ["deduplicate"] * 3
    assert {world.group[card["id"]] for card in cards} == {0, 1, 2}
    assert linted.summary["actions"] == {"deduplicate": 3, "recaption": 0}
    assert linted.summary["n_measured"] == 50


def test_plain_pictures_under_captions_of_their_own_are_to_be_recaptioned(world, tmp_path):
    for path in sorted(world.train.glob("*.png"))[10:20]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / path.name).with_suffix(".txt").write_text(f"scene {path.stem}")
    for number, corners in enumerate([(40, 40, 90, 200), (100, 20, 220, 80), (150, 150, 230, 230)]):
        plain = Image.new("RGB", (256, 256), "white")
        plain.paste((20, 20, 20), corners)
        plain.save(tmp_path / f"plain {number}.png")
        (tmp_path / f"plain {number}.txt").write_text(f"logo of firm {number}")
    result = run(tmp_path)
    cards = [card for card in result.tables["risk"].to_pylist() if card["action"] == "recaption"]
    assert {card["id"] for card in cards} == {f"plain {number}.png" for number in range(3)}
    assert [card["mixed"] for card in cards] == sorted(card["mixed"] for card in cards)
    assert all("from 4 on it would be none" in card["reason"] for card in cards)
    assert result.summary["actions"]["recaption"] == 3
    assert "3 plain pictures stand under captions of their own" in result.summary["sentence"]


def test_unreadable_files_are_counted_and_listed(world, tmp_path):
    for path in sorted(world.train.glob("*.png"))[:12]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "torn.png").write_bytes((tmp_path / "0000.png").read_bytes()[:300])
    result = run(tmp_path)
    assert (result.summary["n_train"], result.summary["n_missing"]) == (15, 3)
    failures = result.tables["failures"].to_pylist()
    assert {row["id"] for row in failures} == {"empty.png", "page.jpg", "torn.png"}
    assert all(row["corpus"] == "train" and row["error"] for row in failures)
    share = result.summary["duplicated_share"]
    assert (share["value"], share["n"]) == (pytest.approx(7 / 12), 12)
    # The upper end is the one that would hold had all three repeated another image: 10 of 15.
    assert share["high"] == pytest.approx(stats.proportion(10, 15).high)
    assert " of 12 readable images " in result.summary["sentence"]


def test_lint_duplicates_and_curate_keep_the_same_image_of_a_group(world, tmp_path):
    from copyscope.curation.export import write
    from copyscope.detection.dedup.deduplicate import deduplicated

    corpus = Corpus.open(world.train)
    # The last of each group is the best captioned.
    last = {group: name for name, group in sorted(world.group.items())}
    said = [[*own, "and much more to say of it"] if id in last.values() else own
            for id, own in zip(corpus.ids, corpus.captions, strict=True)]  # fmt: skip
    corpus = corpus.with_column("captions", said)
    found = lint(corpus, "sscd-distilled")
    groups = found.tables["groups"].to_pylist()
    kept = [row["id"] for row in groups if row["kept"]]
    first = {row["group"]: row["id"] for row in reversed(groups)}
    assert set(first.values()) == set(kept)
    cards = [row["id"] for row in found.tables["risk"].to_pylist() if row["action"] == "deduplicate"]
    assert sorted(cards) == sorted(kept)
    left, dropped = deduplicated(corpus, "keep-one", "sscd-distilled")
    assert {row["kept_id"] for row in dropped} <= set(kept) <= set(left.ids)
    assert len(write(left, tmp_path / "out")) == len(corpus) - len(dropped)
    assert set(kept) & set(last.values())


def test_a_set_without_captions_is_never_to_be_recaptioned(world, tmp_path):
    for path in world.train.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    result = run(tmp_path)
    assert result.summary["captions"] == {"with": 0, "without": 60, "shared": 0, "near_shared": 0}
    assert result.summary["duplicates"]["uncaptioned"] == 3
    assert result.summary["actions"] == {"deduplicate": 3, "recaption": 0}
    assert result.summary["sentence"] == "7 of 60 images repeat another one, in 3 near-duplicate groups."


def test_one_image_is_neither_a_repeat_nor_the_simplest(single):
    result = run(single)
    assert result.summary["actions"] == {"deduplicate": 0, "recaption": 0}
    assert result.summary["duplicated_share"]["value"] == 0
    assert result.tables["risk"].num_rows == result.tables["groups"].num_rows == 0
    assert result.summary["sentence"] == (
        "No near-duplicates among 1 image, and no plain picture under a caption of its own."
    )
    assert "No risk cards: no near-duplicates" in render_lint(result)


def test_two_copies_of_one_image_are_said_in_the_singular(single):
    (single / "two.png").write_bytes((single / "one.png").read_bytes())
    (single / "two.txt").write_text((single / "one.txt").read_text())
    assert run(single).summary["sentence"] == (
        "1 of 2 images repeats another one, in 1 near-duplicate group, 1 of them with a caption that comes back too."
    )


def test_nothing_readable_is_told_with_the_first_reason(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>")
    with pytest.raises(InputError) as told:
        run(tmp_path)
    assert str(told.value) == f"None of the 2 images in {tmp_path} can be read.\nThe first says: empty file"


def test_saving_then_loading_is_the_identity(linted, tmp_path):
    folder = linted.save(tmp_path / "out")
    again = copyscope.Lint.load(folder)
    assert again.summary == linted.summary
    assert set(again.tables) == set(linted.tables)
    assert all(again.tables[name].equals(table) for name, table in linted.tables.items())
    page = (folder / "report.html").read_text()
    assert again.save(folder) == folder
    assert (folder / "report.html").read_text() == page == render_lint(linted)


def test_an_audit_is_no_lint(tmp_path):
    (tmp_path / "summary.json").write_text('{"schema": "copyscope.audit/1"}')
    with pytest.raises(InputError, match=r"reads 'copyscope\.lint/1'"):
        copyscope.Lint.load(tmp_path)


def test_the_json_contract_is_kept(world, linted):
    summary = json.loads(json.dumps(linted.summary, allow_nan=False))
    assert summary == linted.summary
    assert summary["schema"] == "copyscope.lint/1"
    assert summary["protocol"]["name"] == "sscd-distilled"
    assert len(summary["protocol"]["fingerprint"]) == 64
    assert summary["units"]["entropy"] == "nats"
    recipe = summary["recipe"]
    assert (recipe["train"], recipe["options"], recipe["seed"]) == (str(world.train), {"protocol": "sscd-distilled"}, 0)
    assert {"times_copied", "prompts"}.isdisjoint(linted.tables["risk"].column_names)
    assert "captions" in linted.tables["risk"].column_names


def test_the_same_set_gives_the_same_result_again(world, linted):
    again = run(world.train)
    volatile = ("created", "seconds")
    assert {name: value for name, value in again.summary.items() if name not in volatile} == {
        name: value for name, value in linted.summary.items() if name not in volatile
    }
    assert all(again.tables[name].equals(table) for name, table in linted.tables.items())


def test_at_most_so_many_images_are_measured(world, linted, monkeypatch):
    monkeypatch.setattr(module, "MEASURED", 20)
    result = run(world.train)
    assert result.summary["n_measured"] == 20
    assert result.summary["actions"]["deduplicate"] == 3


def test_people_see_it_in_a_terminal_and_in_a_notebook(linted):
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(linted)
    assert "deduplicate 3 groups, recaption 0 images" in console.export_text()
    assert "11.7% [4.8%, 22.6%] n=60" in linted._repr_html_()
    assert repr(linted).startswith("<Lint: 7 of 60 images")


def test_many_images_say_of_captions_what_few_do(world, linted, monkeypatch):
    monkeypatch.setattr(ivf, "EXACT_ROWS", 10)
    monkeypatch.setattr(ivf, "PROBE_FRACTION", 1)
    monkeypatch.setattr(ivf, "NEAR", 99)
    monkeypatch.setattr(module, "PIECE", 7)
    monkeypatch.setattr(module, "CARDS", 3)
    told = set()
    found = copyscope.lint(world.train, "sscd-distilled", progress=lambda label, done, total: told.add(label))
    assert "captions" in told
    assert found.summary["search"]["method"] == "cells"
    assert found.summary["captions"] == linted.summary["captions"]
    assert found.summary["actions"] == linted.summary["actions"]
    assert found.tables["risk"].equals(linted.tables["risk"])
    assert "about 7 share one, about 3 nearly" in str(lint_figures(found.summary))
    assert any("100,000 drawn at random" in said for said in lint_limits(found.summary)["tested"])
    assert not any("100,000" in said for said in lint_limits(linted.summary)["tested"])


def test_of_many_images_a_sample_counts_shared_captions_and_every_card_is_of_all(world, linted, monkeypatch):
    monkeypatch.setattr(ivf, "EXACT_ROWS", 10)
    monkeypatch.setattr(ivf, "PROBE_FRACTION", 1)
    monkeypatch.setattr(ivf, "NEAR", 99)
    monkeypatch.setattr(module, "COUNTED", 30)
    found = run(world.train)
    assert found.tables["risk"].equals(linted.tables["risk"])
    captions = found.summary["captions"]
    assert (captions["with"], captions["without"]) == (60, 0)
    # Twice what half of the images say.
    assert captions["shared"] % 2 == captions["near_shared"] % 2 == 0
    assert captions["shared"] + captions["near_shared"] > 0
    assert captions == run(world.train).summary["captions"]


def test_weights_are_said_with_what_they_do(tmp_path):
    fill(tmp_path, *(f"20_sks dog/{number}.png" for number in range(3)), "1_dog/a.png", "1_dog/b.png")
    found = copyscope.lint(tmp_path, "phash", cache=tmp_path / ".cache").summary
    assert found["draws"] == {"n_most": 3, "times": 20.0, "share": 60 / 62}
    assert found["sentence"].endswith("3 images are drawn 20 times as often as the least drawn: 97% of all draws.")
    fill(tmp_path / "alike", "a.png")
    assert copyscope.lint(tmp_path / "alike", "phash", cache=tmp_path / ".cache").summary["draws"] is None
