"""The one call, against worlds whose truth is known."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

import copyscope
from copyscope import images
from copyscope.corpus import Corpus
from copyscope.errors import InputError


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
    assert {row["id"] for row in audited.copies} == set(copies)
    for row in audited.copies:
        same = row["match"] == copies[row["id"]]
        assert same or world.group.get(row["match"], -1) == world.group.get(copies[row["id"]], -2)
    assert audited.summary["verdict"]["answer"] == "copies"
    assert audited.summary["replication_rate"]["value"] == pytest.approx(len(copies) / len(world.truth))


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
    from copyscope.copying.descriptors.sscd_distilled import SscdDistilled

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
    assert found.summary["verdict"]["answer"] == "cannot tell"
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
        assert card["action"] in {"deduplicate", "recaption", "drop", "keep"}
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
    from copyscope.copying.descriptors.clip import Clip

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
