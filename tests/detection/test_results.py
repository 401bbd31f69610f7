"""A result as a folder: whole or not there, and a clear word where it cannot be written or read."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pyarrow as pa
import pytest

from copyscope.detection import results
from copyscope.detection.lookup import Lookup
from copyscope.detection.results import check_folder, load_result, read_schema, save_result
from copyscope.errors import InputError
from copyscope.experiment.run import Experiment
from copyscope.files import write_file
from tests.errors import two_lines

SUMMARY = {"schema": "test/1", "value": 0.5, "text": "größer ‮ 日本"}
TABLES = {"rows": pa.table({"id": ["a", None]}), "none": pa.table({"id": pa.array([], pa.string())})}


def test_saving_then_loading_is_the_identity_and_leaves_nothing_else(tmp_path):
    folder = save_result(tmp_path / "a" / "b", SUMMARY, TABLES, "<p>ü</p>")
    summary, tables = load_result(folder, "test/1")
    assert summary == SUMMARY
    assert set(tables) == set(TABLES)
    assert all(tables[name].equals(table) for name, table in TABLES.items())
    assert (folder / "report.html").read_text(encoding="utf-8") == "<p>ü</p>"
    assert read_schema(str(folder)) == "test/1"
    names = {"summary.json", "SHA256SUMS", "report.html", "rows.parquet", "none.parquet"}
    assert {path.name for path in folder.iterdir()} == names


def test_while_a_result_is_written_over_another_there_is_no_finished_one(tmp_path, monkeypatch):
    save_result(tmp_path, SUMMARY, TABLES, "")

    def stop(path, write):
        assert not (tmp_path / "summary.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "write_file", stop)
    with pytest.raises(KeyboardInterrupt):
        save_result(tmp_path, SUMMARY, TABLES, "")
    with pytest.raises(InputError) as caught:
        load_result(tmp_path, "test/1")
    two_lines(caught, "No finished result", "copyscope audit")


def test_the_summary_is_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(results, "write_file", lambda path, write: written.append(path.name) or write_file(path, write))
    save_result(tmp_path, SUMMARY, TABLES, "")
    assert written == ["rows.parquet", "none.parquet", "report.html", "SHA256SUMS", "summary.json"]


def test_a_number_that_json_has_not_is_refused_before_anything_calls_it_finished(tmp_path):
    with pytest.raises(ValueError):
        save_result(tmp_path, {"schema": "test/1", "value": float("nan")}, {}, "")
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No finished result"),
        ("{half", "Cannot read"),
        ("[1]", "it holds no object"),
        ('{"schema": "test/2"}', "'test/2'"),
        ("{}", "None"),
    ],
)
def test_what_is_no_result_is_told(tmp_path, text, says):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(InputError) as caught:
        load_result(tmp_path, "test/1")
    two_lines(caught, says)


def test_bytes_that_are_no_text_are_told(tmp_path):
    (tmp_path / "summary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError) as caught:
        read_schema(tmp_path)
    two_lines(caught, "Cannot read")


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        for call in (
            lambda folder=folder: save_result(folder, SUMMARY, {}, ""),
            lambda folder=folder: check_folder(folder),
            lambda folder=folder: write_file(folder / "x", lambda path: path.write_text("")),
        ):
            with pytest.raises(InputError) as caught:
                call()
            two_lines(caught, "Cannot write results to", "-o")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_permission_is_told_before_the_work(tmp_path, monkeypatch):
    check_folder(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(InputError) as caught:
        check_folder(tmp_path / "new" / "deep")
    two_lines(caught, "Permission denied")
    assert asked == [(tmp_path, os.W_OK)]


def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path):
    def write(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "rows").write_text("old")
    with pytest.raises(InputError) as caught:
        write_file(tmp_path / "rows", write)
    two_lines(caught, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
    assert (tmp_path / "rows").read_text() == "old"


def test_a_write_that_fails_otherwise_leaves_no_temporary_file(tmp_path):
    def write(path):
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_file(tmp_path / "rows", write)
    assert list(tmp_path.iterdir()) == []


def test_the_summary_is_json_in_utf_8(tmp_path):
    save_result(tmp_path, SUMMARY, {}, "")
    assert json.loads((tmp_path / "summary.json").read_bytes().decode()) == SUMMARY
    assert "größer" in (tmp_path / "summary.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1.png",
        "@x",
        "\t=1",
        "\r=1",
        "\n=1",
        "'=1",
        "''@",
        "'",
        "plain",
        "1-1",
        " =1",
        "\u00a0\t@x",
        "\ufeff=1",
        "\uff1d1",
    ],
)
def test_no_cell_of_a_list_is_a_formula_and_it_names_the_same_images(text, tmp_path):
    from copyscope.data.removals import read_list
    from copyscope.detection.dedup.deduplicate import write_list

    save_result(tmp_path, {}, {}, "", {"some": pa.table({"id": [text, "end"], "score": [-0.5, -1.0]})})
    row = {"id": text, "kept_id": text, "group": 1, "score": -0.5, "pixels": 0.5}
    write_list([row, row | {"id": "end"}], tmp_path / "dropped.csv")
    for name in ("some.csv", "dropped.csv"):
        with (tmp_path / name).open(newline="") as file:
            cells = [row["id"] for row in csv.DictReader(file)]
        assert cells[1] == "end"
        assert cells[0].lstrip().lstrip("\ufeff")[:1] not in tuple("=+-@\uff1d")
        assert cells[0][:1] not in tuple("\t\r\n")
        assert [entry for entry in read_list(tmp_path / name) if entry != "end"] == [text] * bool(text)


@pytest.mark.parametrize("name", ["summary.json", "rows.parquet"])
def test_a_flipped_byte_is_said_with_the_name_of_its_file(name, tmp_path):
    save_result(tmp_path, SUMMARY, TABLES, "")
    whole = (tmp_path / name).read_bytes()
    for offset in range(0, len(whole), max(1, len(whole) // 40)):
        data = bytearray(whole)
        data[offset] ^= 1
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError) as caught:
            load_result(tmp_path, "test/1")
        two_lines(caught, str(tmp_path))
    (tmp_path / name).write_bytes(whole)
    assert load_result(tmp_path, "test/1")[0] == SUMMARY


def test_a_table_that_went_missing_is_said_and_a_result_without_checksums_is_read(tmp_path):
    save_result(tmp_path, SUMMARY, TABLES, "")
    (tmp_path / "none.parquet").unlink()
    with pytest.raises(InputError) as caught:
        load_result(tmp_path, "test/1")
    two_lines(caught, "none.parquet")
    (tmp_path / "SHA256SUMS").unlink()
    assert load_result(tmp_path, "test/1")[1].keys() == {"rows"}
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError) as caught:
        load_result(tmp_path, "test/1")
    two_lines(caught, "rows.parquet")


def test_sha256sum_reads_the_checksums(tmp_path):
    import subprocess

    save_result(tmp_path, SUMMARY, TABLES, "")
    assert subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path).returncode == 0


def test_parquet_of_ours_tells_its_rot(tmp_path):
    from copyscope.data.parquet_pages import read_table
    from copyscope.files import write_parquet

    path = tmp_path / "a.parquet"
    write_parquet(pa.table({"x": np.arange(5000)}), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_table(path)
    two_lines(caught, "a.parquet")
    with pytest.raises(InputError) as caught:
        read_table(tmp_path)
    two_lines(caught, str(tmp_path))


@pytest.mark.parametrize("kind", ["audit", "lint", "lookup", "experiment"])
@pytest.mark.parametrize("values", [{}, {"verdict": "x", "arms": 5, "copies": 1, "n": "x", "protocol": [1]}])
def test_a_report_of_a_summary_that_lacks_all_is_no_traceback(kind, values, tmp_path, monkeypatch, capsys):
    from copyscope.cli import main
    from copyscope.detection import audit, lint, lookup
    from copyscope.experiment import run

    schema = {"audit": audit, "lint": lint, "lookup": lookup, "experiment": run}[kind].SCHEMA
    (tmp_path / "summary.json").write_text(json.dumps({"schema": schema} | values))
    monkeypatch.setattr("sys.argv", ["copyscope", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main.main()
    said = capsys.readouterr().err.splitlines()
    assert (caught.value.code, len(said)) in [(2, 2), (0, 0)]
    if caught.value.code:
        assert str(tmp_path) in said[0]


def test_a_result_says_schema_and_page_and_has_all_else_from_its_base(tmp_path):
    class Small(results.Result):
        schema = "test/1"

        def page(self):
            return f"<p>{self.sentence}</p>"

        @property
        def lists(self):
            return {"some": self.tables["a"]}

    made = Small({"schema": "test/1", "sentence": "Two."}, {"a": pa.table({"id": ["x", "y"]})})
    assert made.save(tmp_path) == tmp_path
    assert Small.load(tmp_path) == made
    assert repr(made) == "<Small: Two.>"
    assert (tmp_path / "report.html").read_text() == "<p>Two.</p>"
    assert (tmp_path / "some.csv").read_text().split() == ["id", "x", "y"]
    with pytest.raises(TypeError, match="abstract"):
        results.Result({}, {})
    with pytest.raises(AttributeError):
        made.summary = {}


@pytest.mark.parametrize(("kind", "name"), [(Lookup, "Lookup"), (Experiment, "Experiment e")])
def test_results_print_as_their_sentence(kind, name):
    assert repr(kind({"name": "e", "sentence": "Two."}, {})) == f"<{name}: Two.>"
