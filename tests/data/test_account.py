"""The account of a corpus: counts, reasons, names, the warning; and weights in every form of number."""

from __future__ import annotations

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from copyscope.cli import main
from copyscope.data.account import MOST_KINDS, MOST_NAMES, Account, kind_of
from copyscope.data.corpus import Corpus
from tests.pictures import fill, write


def test_all_files_are_accounted_for(tmp_path):
    fill(tmp_path, "a.png", "b.png", "c.png", "b_mask.png", "._a.png", ".thumbs/a.png", "__MACOSX/a.png")
    write(
        tmp_path,
        {"a.txt": "fox", "b.caption": "hen", "z.txt": "x", "other.json": "{}", "README.txt": "x", "LICENSE": ""},
    )
    write(tmp_path, {"metadata.csv": "file_name,text\na.png,red fox\ngone.png,x\n", "set.toml": "", "all.zip": "PK"})
    write(tmp_path, {".DS_Store": "x"})
    account = Corpus.open(tmp_path).account
    unused = {
        "hidden": ["._a.png", ".thumbs/", "__MACOSX/"],
        "not opened: name it to read it": ["all.zip"],
        "a mask or conditioning image of another image": ["b_mask.png"],
        "no captions in it": ["other.json"],
        "if it is a trainer's configuration, name the file itself": ["set.toml"],
        "no image has this name": ["z.txt"],
    }
    assert account.summary() == {
        "line": account.line(),
        "warning": "",
        "n": 4,
        "errors": [{"kind": "listed, but not there", "n": 1}],
        "n_captioned": 2,
        "captions_from": [
            {"source": "metadata.csv", "n": 2}, {"source": "NAME.caption", "n": 1}, {"source": "NAME.txt", "n": 1},
        ],
        "n_unused": 8,
        "unused": [{"why": why, "n": len(names), "first": names} for why, names in unused.items()],
        "split": None,
        "splits": [],
        "notes": [],
    }  # fmt: skip
    json.dumps(account.summary())
    line = account.line()
    for said in (
        "4 images",
        "1 with an error (listed, but not there 1)",
        "captions for 2 (",
        "8 files not used (",
        "._a.png",
    ):
        assert said in line
    assert "\n" not in line


def test_counts_are_exact_and_names_bounded(tmp_path):
    fill(tmp_path, "a.png")
    write(tmp_path, {f"n{number}.txt": "x" for number in range(50)})
    entry = Corpus.open(tmp_path).account.unused["no image has this name"]
    assert (entry.n, len(entry.names)) == (50, MOST_NAMES)
    account = Account()
    for number in range(200):
        account.pass_over("x" * 999 + f"{number}.png", f"reason {number}")
    assert account.n_unused == 200
    assert len(account.unused) == MOST_KINDS + 1
    assert len(account.unused["reason 0"].names[0]) <= 200
    assert len(account.line()) < 1000


def test_half_without_captions_where_caption_files_lie_about_is_said_first(tmp_path):
    fill(tmp_path, "a.png", "b.png", "c.png")
    write(tmp_path, {"a.txt": "fox", "x1.txt": "hen", "x2.txt": "owl"})
    warning = Corpus.open(tmp_path).account.warning
    assert warning.startswith(
        "only 1 of 3 images have captions, and 2 files that may hold some were not used (x1.txt, x2.txt"
    )
    found = CliRunner().invoke(main.app, ["embed", str(tmp_path), "-p", "phash", "-o", str(tmp_path / ".out")])
    first, second, *_ = found.stderr.splitlines()
    assert first == f"{tmp_path}: {warning}."
    assert second.startswith(f"{tmp_path}: 3 images; captions for 1 (NAME.txt 1); 2 files not used")
    write(tmp_path, {"b.txt": "hen"})
    assert Corpus.open(tmp_path).account.warning == ""


def test_without_caption_files_there_is_nothing_to_warn_of(tmp_path):
    account = Corpus.open(fill(tmp_path, "a.png", "a_mask.png")).account
    assert account.warning == ""
    assert account.line().startswith("1 image; no captions; 1 files not used")


def test_what_is_derived_from_a_corpus_keeps_its_account(tmp_path):
    corpus = Corpus.open(fill(tmp_path, "a.png", "b.png"))
    assert corpus.take([0]).with_column("error", [None]).account is corpus.account


def test_kinds_of_errors():
    assert kind_of("listed in a, but not there.csv, but several images have that name") == (
        "listed, but several images have that name"
    )
    assert kind_of("too large: 9 x 9 pixels") == "too large"


# Weights


def weights(corpus):
    return dict(
        zip(
            corpus.ids,
            zip(corpus.table["weight"].to_pylist(), corpus.table["error"].to_pylist(), strict=True),
            strict=True,
        )
    )


GOOD = {"0.50": 0.5, "1e-3": 0.001, "2.00": 2.0, "3": 3.0, " 4 ": 4.0, "007": 7.0, "": 1.0, "0": 0.0}
BAD = ["heavy", "-1", "nan", "inf", "1,5", "0x10", "1e999"]


def test_weights_in_csv(tmp_path):
    values = [*GOOD, *BAD]
    fill(tmp_path, *(f"{number:02}.png" for number in range(len(values))))
    rows = "".join(f'{number:02}.png,"{value}"\n' for number, value in enumerate(values))
    found = list(weights(Corpus.open(write(tmp_path, {"metadata.csv": "file_name,weight\n" + rows}))).values())
    assert found[: len(GOOD)] == [(value, None) for value in GOOD.values()]
    for value, (_, error) in zip(BAD, found[len(GOOD) :], strict=True):
        assert error == f"its weight is not a number from 0: {value!r}", value


def test_weights_in_json(tmp_path):
    values = ["3", 0.5, 2, None, "2.00", True, [2], {"a": 1}, -1, float("nan"), 10**60]
    fill(tmp_path, *(f"{number:02}.png" for number in range(len(values))))
    lines = "".join(json.dumps({"file_name": f"{n:02}.png", "weight": value}) + "\n" for n, value in enumerate(values))
    found = list(weights(Corpus.open(write(tmp_path, {"metadata.jsonl": lines}))).values())
    assert found[:5] == [(3, None), (0.5, None), (2, None), (1, None), (2, None)]
    assert [bool(error) for _, error in found[5:]] == [True, True, True, True, True, False]


@pytest.mark.parametrize("place", ["metadata", "images"])
def test_weights_in_parquet(tmp_path, place):
    values = {
        "d": pa.array([Decimal("2.50"), Decimal("-1")]), "i": pa.array([3, -3], pa.int8()),
        "f": pa.array([0.25, float("nan")], pa.float32()), "s": pa.array(["1e1", "x"]),
    }  # fmt: skip
    for name, column in values.items():
        folder = fill(tmp_path / name, "a.png", "b.png")
        if place == "metadata":
            pq.write_table(pa.table({"file_name": ["a.png", "b.png"], "weight": column}), folder / "metadata.parquet")
        else:
            cells = [(folder / each).read_bytes() for each in ("a.png", "b.png")]
            pq.write_table(pa.table({"image": cells, "id": ["a", "b"], "weight": column}), folder / "x.parquet")
            for each in ("a.png", "b.png"):
                (folder / each).unlink()
        (one, no_error), (_, error) = weights(Corpus.open(folder)).values()
        assert (one, no_error) == ({"d": 2.5, "i": 3, "f": 0.25, "s": 10}[name], None)
        assert error.startswith("its weight is not a number from 0")
