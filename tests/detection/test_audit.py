"""The one call, against worlds whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

import copyscope
from copyscope.data.corpus import Corpus
from copyscope.detection import audit as audit_module
from copyscope.detection import audit_result
from copyscope.detection.embedding.protocols import PROTOCOLS
from copyscope.detection.search import ivf
from copyscope.detection.verdict import judge as judge_module
from copyscope.detection.verdict import same_files
from copyscope.errors import InputError
from copyscope.imaging import images
from copyscope.report.terminal import audit_figures
from copyscope.report.wording import limits


@pytest.fixture(scope="module")
def audited(world):
    return copyscope.audit(world.generated, world.train, world.held_out, protocol="sscd-distilled")


@pytest.fixture
def sick(world, tmp_path):
    """A generated folder with three files that cannot be read among eight that can."""
    folder = tmp_path / "sick"
    folder.mkdir()
    for path in sorted(world.generated.glob("*.png"))[:8]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>")
    (folder / "torn.png").write_bytes((folder / "0000.png").read_bytes()[:300])
    return folder


def test_the_copies_are_those_of_the_truth_with_their_sources(world, audited):
    copies = {name: source for name, source in world.truth.items() if source}
    flagged = {row["id"] for row in audited.copies}
    # At a false discovery rate of 5 %, one of some seventeen may be flagged wrongly.
    assert flagged >= set(copies)
    assert len(flagged - set(copies)) <= 1
    for row in audited.copies:
        if row["id"] not in copies:
            continue
        same = row["match"] == copies[row["id"]]
        assert same or world.group.get(row["match"], -1) == world.group.get(copies[row["id"]], -2)
    assert audited.summary["verdict"]["answer"] == "copies"
    assert audited.summary["replication_rate"]["value"] == pytest.approx(len(flagged) / len(world.truth))
    assert audited.summary["estimated_rate"]["low"] <= len(copies) / len(world.truth)
    assert audited.summary["estimated_rate"]["high"] >= len(copies) / len(world.truth)


def test_the_json_contract_is_kept(audited):
    summary = json.loads(json.dumps(audited.summary, allow_nan=False))
    assert summary["schema"] == "copyscope.audit/1"
    assert set(summary["replication_rate"]) == {"value", "low", "high", "n"}
    for series in (summary["similarity"], summary["similarity"]["baseline"], summary["similarity"]["held_out"]):
        assert {"mean", "std", "p75", "p90", "p95"} <= set(series)
        assert all(isinstance(series[name], float) for name in ("mean", "std", "p75", "p90", "p95"))
    assert {"id", "match", "score", "p_value", "group_size"} <= set(summary["copies"][0])
    combined = [row["combined"] for row in summary["copies"]]
    assert combined == sorted(combined, reverse=True)
    assert summary["n_missing"] == 0
    assert summary["calibration"]["method"] == "held-out"


def test_saving_then_loading_is_the_identity(audited, tmp_path):
    folder = audited.save(tmp_path / "out")
    again = copyscope.Audit.load(folder)
    assert again.summary == json.loads(json.dumps(audited.summary))
    assert set(again.tables) == set(audited.tables)
    assert all(again.tables[name].equals(table) for name, table in audited.tables.items())
    page = (folder / "report.html").read_text()
    again.save(folder)
    assert (folder / "report.html").read_text() == page


def test_an_unfinished_or_foreign_folder_is_told(audited, tmp_path):
    with pytest.raises(InputError, match="No finished result"):
        copyscope.Audit.load(tmp_path)
    (tmp_path / "summary.json").write_text('{"schema": "copyscope.audit/99"}')
    with pytest.raises(InputError, match="Run the command"):
        copyscope.Audit.load(tmp_path)


def test_similarity_is_that_of_the_vectors(world, audited):
    from copyscope.detection.descriptors.sscd_distilled import SscdDistilled

    vectors = {}
    for name, folder in (("g", world.generated), ("t", world.train)):
        paths = sorted(folder.glob("*.png"))
        vectors[name] = SscdDistilled().describe([images.decode(path) for path in paths])
    top = (vectors["g"] @ vectors["t"].T).max(axis=1)
    assert audited.summary["similarity"]["mean"] == pytest.approx(top.mean(), abs=1e-5)
    assert audited.summary["similarity"]["p95"] == pytest.approx(np.quantile(top, 0.95), abs=1e-5)


def test_permuting_the_generated_images_permutes_the_rows(world, audited):
    corpus = Corpus.open(world.generated)
    order = np.random.default_rng(0).permutation(len(corpus))
    other = copyscope.audit(corpus.take(order), world.train, world.held_out, protocol="sscd-distilled")
    assert other.tables["generated"].sort_by("id").equals(audited.tables["generated"].sort_by("id"))
    assert other.summary["replication_rate"] == audited.summary["replication_rate"]


def test_unreadable_images_are_counted_and_listed_and_widen_the_interval(world, sick):
    found = copyscope.audit(sick, world.train, world.held_out, protocol="sscd-distilled")
    assert found.summary["n_missing"] == 3
    assert found.summary["n_generated"] == 11
    rows = {row["id"]: row for row in found.tables["generated"].to_pylist()}
    assert {name for name, row in rows.items() if row["error"]} == {"empty.png", "page.jpg", "torn.png"}
    assert all(rows[name]["score"] is None and rows[name]["copied"] is None for name in ("empty.png", "page.jpg"))
    assert set(found.tables["failures"]["id"].to_pylist()) == {"empty.png", "page.jpg", "torn.png"}
    count = len(found.copies)
    from scipy.stats import beta

    assert found.summary["replication_rate"]["high"] == pytest.approx(beta.ppf(0.975, count + 4, 11 - count - 3))


def test_no_readable_generated_image_is_no_crash(world, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    found = copyscope.audit(tmp_path, world.train, protocol="sscd-distilled")
    assert found.summary["verdict"]["answer"] == "cannot tell"
    assert found.summary["n_missing"] == 1
    json.dumps(found.summary, allow_nan=False)
    found.save(tmp_path / "out")


def test_one_training_image_is_no_crash(world, tmp_path):
    (tmp_path / "a.png").write_bytes(next(iter(sorted(world.train.glob("*.png")))).read_bytes())
    found = copyscope.audit(world.generated, tmp_path, protocol="sscd-distilled")
    assert found.copies
    assert all(row["score"] > 0.9999 for row in found.copies)
    json.dumps(found.summary, allow_nan=False)
    found.save(tmp_path / "out")


def test_a_training_set_that_cannot_be_read_is_told(world, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"None of the 1 train images"):
        copyscope.audit(world.generated, tmp_path, protocol="sscd-distilled")


def test_the_same_folder_twice_is_told(world):
    with pytest.raises(InputError, match="are the same"):
        copyscope.audit(world.train, str(world.train) + "/", protocol="sscd-distilled")


def test_risk_cards_stand_for_the_copied_groups(world, audited):
    cards = [row for row in audited.tables["risk"].to_pylist() if row["times_copied"]]
    assert sum(card["times_copied"] for card in cards) == len(audited.copies)
    for card in cards:
        assert card["action"] in {"deduplicate", "recaption", "drop", "review", "keep"}
        assert card["prompts"]
        assert (card["action"] == "deduplicate") == (card["group_size"] > 1)


def test_the_ratio_test_is_blind_to_duplicated_images_and_by_group_it_is_not(audited):
    ratio = audited.summary["classical_tests"][0]
    duplicated = [row for row in ratio["by_group_size"] if row["size"] != "1"]
    assert sum(row["n_copies"] for row in duplicated) > 0
    assert sum(row["seen"] for row in duplicated) < sum(row["seen_group_aware"] for row in duplicated)


def test_it_shows_itself_in_a_terminal_and_in_a_notebook(audited):
    from rich.console import Console

    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(audited)
    console.file.close()
    assert "The model copies" in console.export_text()
    assert "The model copies" in repr(audited)
    page = audited._repr_html_()
    assert "replication rate" in page
    assert "<script" not in page


def test_hostile_text_is_shown_as_text_in_a_notebook(audited):
    sentence = "<script>alert(1)</script>"
    hostile = copyscope.Audit(
        audited.summary | {"verdict": {"answer": "copies", "sentence": sentence, "needed": None}}, {}
    )
    assert "<script>" not in hostile._repr_html_()


def test_alignment_is_the_mean_cosine_of_images_and_their_prompts_by_the_clip_given(world, clip_folder):
    from copyscope.detection.descriptors.clip import Clip

    found = copyscope.audit(world.generated, world.train, protocol="phash", clip=clip_folder)
    corpus, clip = Corpus.open(world.generated), Clip(str(clip_folder))
    pictures = [images.decode(corpus.read(row)) for row in range(len(corpus))]
    cosines = (clip.describe(pictures) * clip.describe_text(corpus.prompts)).sum(axis=1)
    assert found.summary["quality"]["text_image_alignment"]["value"] == pytest.approx(cosines.mean(), abs=1e-5)


def test_a_torch_free_audit_does_not_load_torch(world):
    code = (
        "import sys, copyscope\n"
        f"copyscope.audit({str(world.generated)!r}, {str(world.train)!r}, protocol='phash')\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tables_are_arrow_and_documented(audited):
    assert all(isinstance(table, pa.Table) for table in audited.tables.values())


def test_the_tables_tell_of_each_image_its_match_and_that_ones_group_and_captions(world, audited):
    train = Corpus.open(world.train)
    captions = dict(zip(train.ids, train.captions, strict=True))
    sizes = {name: sum(other == group for other in world.group.values()) for name, group in world.group.items()}
    rows = audited.tables["generated"].to_pylist()
    assert {row["group_size"] for row in rows} == {1, 2, 3, 5}
    for row in rows:
        assert row["match_captions"] == captions[row["match"]]
        assert row["group_size"] == sizes.get(row["match"], 1)
        assert world.group.get(row["next_match"], -1) != world.group.get(row["match"], -2)
        assert row["next_score"] <= row["similarity"] + 1e-6


def test_what_is_not_known_is_null_in_the_tables(world, tmp_path):
    (tmp_path / "a.png").write_bytes((world.train / "0020.png").read_bytes())
    found = copyscope.audit(world.generated, tmp_path, protocol="sscd-distilled")
    table = found.tables["generated"]
    assert table["next_match"].null_count == table["next_score"].null_count == len(table)
    assert set(table["match"].to_pylist()) == {"a.png"}
    assert found.summary["classical_tests"] == []


def test_the_seed_reaches_everything_that_draws(world, monkeypatch):
    seeds = {}

    def spy(owner, name):
        plain = getattr(owner, name)

        def call(*given, **options):
            seeds[name] = options["seed"] if "seed" in options else given[-1]
            return plain(*given, **options)

        monkeypatch.setattr(owner, name, call)

    spy(judge_module.calibrate, "baseline")
    spy(judge_module, "planted_copies")
    for name in ("causes", "quality"):
        spy(audit_module, name)
    spy(audit_result, "_histograms")
    found = copyscope.audit(world.generated, world.train, protocol="sscd-distilled", seed=7)
    assert seeds == dict.fromkeys(("baseline", "planted_copies", "causes", "quality", "_histograms"), 7)
    assert found.summary["recipe"]["seed"] == 7


def test_histograms_hold_every_score_up_to_a_sample_of_them(audited, monkeypatch):
    series = audited.tables["histograms"]["series"].to_pylist()
    n_removed = audited.summary["calibration"]["n_removed"]
    assert [series.count(name) for name in ("generated", "baseline", "held-out")] == [40, 60, 120 - n_removed]
    monkeypatch.setattr(audit_result, "HISTOGRAM_ROWS", 10)
    scores = np.linspace(0, 1, 30, dtype=np.float32)
    drawn = [audit_result._histograms({"generated": scores, "held-out": None}, seed) for seed in (0, 0, 1)]
    assert len(set(drawn[0]["score"].to_pylist()) & set(scores.tolist())) == 10
    assert drawn[0].equals(drawn[1])
    assert not drawn[0].equals(drawn[2])


def test_look_alikes_are_listed_and_those_only(world, tmp_path):
    for path in sorted(world.held_out.glob("*.png"))[:20]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "!copy.png").write_bytes((world.train / "0030.png").read_bytes())
    found = copyscope.audit(world.generated, world.train, tmp_path, protocol="sscd-distilled")
    removed = found.tables["removed"]["id"].to_pylist()
    assert "!copy.png" in removed
    assert found.summary["calibration"]["n_removed"] == len(removed) < 5
    assert found.summary["calibration"]["n"] == 21 - len(removed)


def test_a_held_out_set_of_nothing_but_look_alikes_calibrates_nothing(world, tmp_path):
    shutil.copytree(world.train, tmp_path / "again")
    found = copyscope.audit(world.generated, world.train, tmp_path / "again", protocol="sscd-distilled")
    assert found.summary["calibration"]["n"] == 0
    # What is a training image itself needs no calibration; the altered copies do.
    exact = {name for name, kind in world.kinds.items() if kind == "exact"}
    assert {row["id"] for row in found.copies} == exact
    json.dumps(found.summary, allow_nan=False)
    found.save(tmp_path / "out")


def test_a_held_out_set_that_cannot_be_read_is_told(world, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"None of the 1 held-out images"):
        copyscope.audit(world.generated, world.train, tmp_path, protocol="sscd-distilled")


def test_quality_is_of_the_generated_against_the_training_images(world, audited):
    from copyscope.detection.descriptors.sscd_distilled import SscdDistilled
    from copyscope.detection.embedding.embed import embed
    from copyscope.detection.verdict.quality import quality

    vectors = [embed(Corpus.open(path), SscdDistilled()).vectors for path in (world.generated, world.train)]
    expected = quality(*vectors, "sscd_distilled").as_dict()
    found = audited.summary["quality"]
    for name in ("frechet_distance", "precision", "recall", "diversity_generated", "diversity_train"):
        assert found[name]["value"] == pytest.approx(expected[name]["value"], rel=1e-4)
    assert found["diversity_generated"]["n"] == 40
    assert found["diversity_train"]["n"] == 60


@pytest.mark.parametrize("way", ["link", "inside", "listed"])
def test_one_file_in_two_of_the_sets_is_told_whatever_leads_to_it(world, tmp_path, way):
    generated = tmp_path / "train" / "generated"
    generated.mkdir(parents=True)
    for folder, name in ((generated, "0.png"), (generated.parent, "1.png")):
        (folder / name).write_bytes((world.train / "0000.png").read_bytes())
    given, says = (generated, tmp_path / "train"), "1 of the generated"
    if way == "link":
        (tmp_path / "link").symlink_to(generated)
        given, says = (tmp_path / "link", generated), "The generated and the train images are the same"
    elif way == "listed":
        (tmp_path / "list.csv").write_text("image,caption\ntrain/generated/0.png,a\n")
        given = (tmp_path / "list.csv", tmp_path / "train")
    with pytest.raises(InputError, match=says) as caught:
        copyscope.audit(*given, protocol="phash")
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_images_in_two_sets_are_counted_whichever_is_the_larger_one(world, monkeypatch, piece):
    monkeypatch.setattr(same_files, "PIECE", piece)
    corpus = Corpus.open(world.held_out)
    some, many = corpus.take([0, 1, 1, 5]), corpus.take(range(1, 30))
    assert same_files._shared(some, many) == (3, 4, 29)
    assert same_files._shared(many, some) == (2, 29, 4)
    assert same_files._shared(corpus.take(range(3)), corpus.take(range(50, 60))) == (0, 3, 10)


def test_parts_of_one_corpus_are_not_the_same(world):
    corpus = Corpus.open(world.held_out)
    found = copyscope.audit(corpus.take(range(30)), world.train, corpus.take(range(30, 120)), protocol="sscd-distilled")
    assert found.summary["calibration"]["n"] > 80
    with pytest.raises(InputError, match="10 of the generated and the held-out"):
        copyscope.audit(corpus.take(range(30)), world.train, corpus.take(range(20, 120)), protocol="sscd-distilled")


def test_an_image_twice_in_the_generated_set_is_judged_twice(world, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((world.train / "0030.png").read_bytes())
    rows = copyscope.audit(tmp_path, world.train, world.held_out, protocol="sscd-distilled").tables["generated"]
    assert rows["match"].to_pylist() == ["0030.png"] * 2
    assert rows["score"].to_pylist() == pytest.approx([1, 1], abs=1e-5)


def test_the_share_above_is_above_the_protocols_threshold(world, audited, monkeypatch):
    strict = dataclasses.replace(PROTOCOLS["sscd-distilled"], threshold=0.9)
    monkeypatch.setitem(PROTOCOLS, "sscd-distilled", strict)
    found = copyscope.audit(world.generated, world.train, protocol="sscd-distilled").summary
    scores = np.array(audited.tables["generated"]["similarity"].to_pylist())
    assert found["similarity"]["above_threshold"] == pytest.approx((scores > 0.9).mean())
    assert found["similarity"]["above_threshold"] < audited.summary["similarity"]["above_threshold"]
    assert found["protocol"]["threshold"] == 0.9


def test_an_audit_by_cells_that_miss_nothing_is_the_exact_one_and_tells_its_recall(world, audited, monkeypatch):
    monkeypatch.setattr(ivf, "EXACT_ROWS", 10)
    monkeypatch.setattr(ivf, "PROBE_FRACTION", 1)
    monkeypatch.setattr(ivf, "NEAR", 99)
    found = copyscope.audit(world.generated, world.train, world.held_out, "sscd-distilled")
    assert audited.summary["search"] == {"method": "exact", "cells": None, "recall": None}
    assert found.summary["search"]["method"] == "cells"
    assert found.summary["search"]["cells"] > 4
    assert found.summary["search"]["recall"]["value"] == 1
    assert found.summary["verdict"] == audited.summary["verdict"]
    assert found.summary["duplicates"] == audited.summary["duplicates"]
    rows, exact = (each.tables["generated"].to_pylist() for each in (found, audited))
    for row, other in zip(rows, exact, strict=True):
        for key in ("match", "copied", "next_match", "group_size"):
            assert row[key] == other[key], key
        assert row["combined"] == pytest.approx(other["combined"], abs=1e-5)
    assert "nearest image found for 100" in str(audit_figures(found.summary))
    assert any("cells were searched" in said for said in limits(found.summary)["tested"])
    assert copyscope.lint(world.train, "sscd-distilled").summary["search"]["recall"]["value"] == 1


def test_generated_images_that_are_the_training_images_are_copies_even_when_nothing_calibrates(world, tmp_path):
    for name in ("generated", "train"):
        (tmp_path / name).mkdir()
    for path in sorted(world.train.glob("*.png"))[-3:]:
        (tmp_path / "train" / path.name).write_bytes(path.read_bytes())
        from PIL import Image

        Image.open(path).save(tmp_path / "generated" / path.with_suffix(".bmp").name)
    found = copyscope.audit(tmp_path / "generated", tmp_path / "train", protocol="sscd-distilled")
    assert found.summary["verdict"]["answer"] == "copies"
    assert {row["match"][:4] for row in found.copies} == {row["id"][:4] for row in found.copies}
    assert len(found.copies) == 3
