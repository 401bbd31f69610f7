"""Containers of a stranger: tars that loop, Parquet and zips that expand, JSON and TOML without end, odd names."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from copyscope import Corpus, documents, recipes
from copyscope.data import parquet_pages
from copyscope.data.table import MAX_NAME, MAX_TEXT, TableBuilder
from copyscope.data.tars import compressed
from copyscope.data.tars.headers import TarDamage, members
from copyscope.errors import ImageError, InputError
from copyscope.experiment.plan import plan
from tests.errors import two_lines

PNG = io.BytesIO()
Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(PNG, "PNG")
PNG = PNG.getvalue()


def errors_of(corpus):
    return dict(zip(corpus.ids, corpus.table["error"].to_pylist(), strict=True))


def read_apart(path):
    """Rows, errors and MiB of memory that another process takes to open and read all of a corpus."""
    code = """
import json, resource, sys
from copyscope import Corpus
from copyscope.errors import CopyscopeError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
try:
    corpus = Corpus.open(sys.argv[1])
    errors = [str(data) for _, data in corpus.stream() if isinstance(data, Exception)]
    print(json.dumps([len(corpus), errors[:3], peak() - before]))
except CopyscopeError as error:
    print(json.dumps([0, [str(error)], peak() - before]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(done.stdout)


# Tars


def header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data):
    return data + bytes(-len(data) % 512)


GOOD = header("good.png", len(PNG)) + padded(PNG)


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        (header("back.png", -512) + bytes(1024), "a member of -512 bytes"),
        (header("back.png", -(2**60)), "a member of -1152921504606846976 bytes"),
        (header("x", -512, tarfile.XHDTYPE) + bytes(1024), "a member of -512 bytes"),
        (header("far.png", 2**70), "truncated"),
        (header("x", 2**40, tarfile.GNUTYPE_LONGNAME), "headers without end"),
        (header("x", 0, tarfile.XHDTYPE) * 1000, "headers without end"),
        (header("x", 512, tarfile.XHDTYPE) + padded(b"13 size=-512\n"), "whose size is no number"),
        (header("x", 512, tarfile.XHDTYPE) + padded(b"99999 size=1\n"), "a damaged header of attributes"),
        (header("x", 512, tarfile.XHDTYPE) + padded(b"0 path=a\n"), "a damaged header of attributes"),
        (header("x", 512, tarfile.XHDTYPE) + padded(b"22 GNU.sparse.major=1\n"), "a sparse file"),
        (header("s.png", 0, tarfile.GNUTYPE_SPARSE), "a sparse file"),
        (b"x" * 512, "truncated or damaged header"),
    ],
)
def test_a_tar_that_goes_back_or_never_ends_is_damage_after_what_could_be_read(tmp_path, rest, says):
    (tmp_path / "a.tar").write_bytes(GOOD + rest)
    corpus = Corpus.open(tmp_path / "a.tar")
    assert corpus.read(0) == PNG
    assert says in errors_of(corpus)["a.tar"]
    with pytest.raises(TarDamage):
        list(members(io.BytesIO(GOOD + rest), len(GOOD + rest)))


def test_a_tar_is_read_as_tarfile_reads_it(tmp_path):
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
            for name in (
                "a.png",
                "d" * 90 + "/b.png",
                "é.png",
                "long/" + "x" * (180 if kind != tarfile.USTAR_FORMAT else 60),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(PNG)
                tar.addfile(info, io.BytesIO(PNG))
            for other in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                info = tarfile.TarInfo(f"other{other!r}")
                info.type, info.linkname = other, "z" * 150 if kind != tarfile.USTAR_FORMAT else "z"
                tar.addfile(info)
        data = (tmp_path / "a.tar").read_bytes()
        with tarfile.open(tmp_path / "a.tar") as tar:
            expected = [(each.name, each.offset_data, each.size) for each in tar if each.isfile()]
        assert [tuple(each) for each in members(io.BytesIO(data), len(data))] == expected


def test_sidecars_in_a_tar_are_bounded_and_gzip_in_it_is_no_image(tmp_path):
    long = b"x" * 2_000_000
    bomb = gzip.compress(bytes(10_000_000))
    rest = header("good.txt", len(long)) + padded(long)
    rest += header("zipped.png", len(bomb)) + padded(bomb) + header("deep.png", len(PNG)) + padded(PNG)
    rest += header("deep.json", 100_000) + padded(b"[" * 100_000)
    (tmp_path / "a.tar").write_bytes(GOOD + rest + bytes(1024))
    corpus = Corpus.open(tmp_path / "a.tar")
    assert "2,000,000 bytes" in errors_of(corpus)["good"]
    assert errors_of(corpus)["deep"] is None
    from copyscope.imaging import images

    with pytest.raises(ImageError, match="not an image"):
        images.decode(corpus.read(corpus.ids.index("zipped")))


def test_a_tar_bomb_is_unpacked_to_a_bound(tmp_path, monkeypatch):
    (tmp_path / "b.tar").write_bytes(gzip.compress(GOOD + bytes(3 << 20)))
    assert errors_of(Corpus.open(tmp_path / "b.tar"))["good"] is None
    monkeypatch.setattr(compressed, "MOST_BYTES", 2 << 20)
    with pytest.raises(InputError, match="unpacks to more than 2 MiB") as caught:
        Corpus.open(tmp_path / "b.tar")
    two_lines(caught)


# Parquet


def repeated(value, n, kind):
    return pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array([value], kind))


def test_captions_of_a_megabyte_that_repeat_are_errors_of_their_rows(tmp_path):
    captions = repeated("y" * 1_200_000, 20_000, pa.string())
    table = pa.table({"image": repeated(PNG, 20_000, pa.binary()), "caption": captions})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    n, errors, mebibytes = read_apart(tmp_path / "a.parquet")
    assert n == 20_000
    assert "1,200,000 bytes of text" in errors[0]
    assert mebibytes < 700


def test_text_that_repeats_below_that_is_bounded_in_all(tmp_path):
    captions = repeated("y" * 90_000, 20_000, pa.string())
    table = pa.table({"image": repeated(PNG, 20_000, pa.binary()), "caption": captions})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    _, errors, mebibytes = read_apart(tmp_path / "a.parquet")
    assert "its text is more than 256 MiB" in errors[-1]
    assert mebibytes < 1200


@pytest.mark.parametrize("stored", [True, False], ids=["as a dictionary", "as bytes"])
def test_images_of_megabytes_that_repeat_are_held_once(tmp_path, stored):
    table = pa.table({"image": repeated(PNG + bytes(3_000_000), 3000, pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", store_schema=stored)
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    n, errors, mebibytes = read_apart(tmp_path / "a.parquet")
    assert (n, errors) == (3000, [])
    assert mebibytes < 400
    corpus = Corpus.open(tmp_path / "a.parquet")
    assert corpus.read(2999) == PNG + bytes(3_000_000)


def test_a_page_is_measured_before_arrow_makes_room_for_it(tmp_path, monkeypatch):
    table = pa.table({"image": pa.array([PNG], pa.binary()), "caption": ["y" * 40_000_000]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    monkeypatch.setattr(parquet_pages, "MAX_PAGE", 30_000_000)
    with pytest.raises(InputError, match="a page that decompresses to 38 MiB") as caught:
        Corpus.open(tmp_path / "a.parquet")
    two_lines(caught)
    # The footer says less than the page, as whoever wrote it likes; 15: a number, 1, 2 and 3 fields on.
    page = b"\x15\x00\x15\x80\xa0\xa4\xa7\x0e\x15\x10\x2c\x15\x02\x00\x00" + bytes(8)
    chunk = parquet_pages.Chunk("a", 1, 10, len(page), 0, 0, False)
    monkeypatch.undo()
    with pytest.raises(parquet_pages.ParquetBomb, match="decompresses to 1,831 MiB"):
        parquet_pages.column_size(io.BytesIO(page), chunk)


def test_what_pages_decompress_to_is_what_the_metadata_of_an_honest_file_says():
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "image": pa.array([{"bytes": rng.bytes(300), "path": "a"} for _ in range(2000)]),
            "caption": [f"caption {row % 7}" for row in range(2000)],
            "captions": [["z" * (row % 5), None, "w"] if row % 3 else None for row in range(2000)],
            "number": list(range(2000)),
            "flag": [True] * 2000,
        }
    )
    for options in (
        {}, {"compression": "zstd"}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"compression": "none"},
        {"row_group_size": 500, "data_page_size": 1000, "write_page_index": True},
    ):  # fmt: skip
        file = io.BytesIO()
        pq.write_table(table, file, **options)
        parquet, groups = parquet_pages.opened(file)
        for group in range(parquet.num_row_groups):
            for place in range(parquet.metadata.num_columns):
                claimed = parquet.metadata.row_group(group).column(place).total_uncompressed_size
                column = parquet.metadata.row_group(group).column(place)
                chunk = groups[group][place]
                assert (chunk.path, chunk.n_values) == (column.path_in_schema, column.num_values)
                assert chunk.coded == any("DICTIONARY" in each for each in column.encodings)
                found = parquet_pages.column_size(file, chunk)
                # The metadata counts the headers of the pages too.
                assert 0 <= claimed - found.total <= 200 * (1 + found.total // 900)
        names = table.column_names[1:]
        assert list(parquet_pages.records(parquet, groups, file, names, walk=True)) == table.select(names).to_pylist()


def test_a_damaged_footer_is_said_and_ends_no_process(tmp_path):
    pq.write_table(pa.table({"image": [PNG], "n": [1]}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    rng = np.random.default_rng(0)
    footers = [bytes(size), b"\x15" * size, *(rng.bytes(size) for _ in range(20))]
    for place in range(0, size, 3):
        changed = bytearray(data[-8 - size : -8])
        changed[place] ^= 1 + int(rng.integers(255))
        footers.append(bytes(changed))
    for footer in footers:
        with contextlib.suppress(parquet_pages.ParquetBomb):
            parquet_pages.chunks(io.BytesIO(data[: -8 - size] + footer + data[-8:]))
    with pytest.raises(parquet_pages.ParquetBomb, match="a footer of 1,024 MiB"):
        parquet_pages.chunks(io.BytesIO(data[:-8] + (1 << 30).to_bytes(4, "little") + b"PAR1"))


def test_more_rows_than_a_file_can_hold_are_refused(tmp_path):
    n = 30_000_000
    pq.write_table(
        pa.table({"image": pa.nulls(n, pa.binary())}), tmp_path / "a.parquet", compression="zstd", row_group_size=n
    )
    with pytest.raises(InputError, match="30,000,000 rows in") as caught:
        Corpus.open(tmp_path / "a.parquet")
    two_lines(caught)


def test_metadata_and_results_in_parquet_are_bounded_too(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(PNG)
    pq.write_table(pa.table({"file_name": ["a.png"], "text": ["y" * 1_100_000]}), tmp_path / "metadata.parquet")
    with pytest.raises(InputError, match="row 1: 1,1") as caught:
        Corpus.open(tmp_path)
    two_lines(caught)
    path = tmp_path / "table.parquet"
    pq.write_table(
        pa.table({"a": repeated("y" * 1_000_000, 5000, pa.string()), "n": [1] * 5000}), path, compression="zstd"
    )
    with pytest.raises(InputError, match="more than 1,024 MiB") as caught:
        parquet_pages.read_table(path)
    two_lines(caught)
    pq.write_table(pa.table({"a": ["x", None], "b": [[1], []]}), path)
    assert parquet_pages.read_table(path).to_pylist() == [{"a": "x", "b": [1]}, {"a": None, "b": []}]


# Zips


def test_a_zip_of_a_gigabyte_of_zeros_is_an_error_of_its_row(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", PNG)
        with archive.open("bomb.png", "w") as file:
            for _ in range(450):
                file.write(bytes(1 << 20))
    n, errors, mebibytes = read_apart(f"zip://::{tmp_path / 'a.zip'}")
    assert (n, errors) == (2, ["too large: more than 384 MiB"])
    assert mebibytes < 1000
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", PNG)
        with archive.open("captions.json", "w") as file:
            for _ in range(200):
                file.write(b"[" * (1 << 20))
    with pytest.raises(InputError, match="larger than 128 MiB") as caught:
        Corpus.open(f"zip://::{tmp_path / 'b.zip'}")
    two_lines(caught)


# JSON and TOML

JSON = {
    "deep": "[" * 100_000,
    "deeper": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "digits": "1" * 10_000,
    "digits in it": '{"a": ' + "9" * 101 + "}",
    "depth": "[" * 101 + "]" * 101,
}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_no_member_of_an_archive_is_lost_by_its_name(tmp_path, kind):
    odd = ["../a.png", "/etc/b.png", "d/../../e.png", "./f.png", "g//h.png", "x/./j.png"]
    named = ["c.png", *odd, "d/.hidden.png", "./.hidden.png"]
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a", "w") as archive:
            for name in named:
                archive.writestr(name, PNG)
    else:
        with tarfile.open(tmp_path / "a", "w") as archive:
            for name in named:
                member = tarfile.TarInfo(name)
                member.size = len(PNG)
                archive.addfile(member, io.BytesIO(PNG))
    found = errors_of(Corpus.open(f"{kind}://::{tmp_path / 'a'}"))
    assert found.pop("c.png") is None
    if kind == "tar":  # which makes one slash of two
        odd.remove("g//h.png")
        assert found.pop("g/h.png") is None
    assert set(found) == set(odd)
    assert all("no plain path" in error for error in found.values())


@pytest.mark.parametrize("name", JSON)
def test_json_without_end_is_a_reason_of_a_few_words(name, tmp_path):
    with pytest.raises(ValueError, match=r"nested more than 100 deep|more than 100 digits"):
        documents.parse_json(JSON[name])
    for file in ("captions.json", "metadata.jsonl"):
        folder = tmp_path / file.partition(".")[0]
        folder.mkdir()
        (folder / "a.png").write_bytes(PNG)
        (folder / file).write_text(JSON[name])
        with pytest.raises(InputError) as caught:
            Corpus.open(folder)
        two_lines(caught)


def test_json_within_bounds_is_what_json_says_and_strings_may_hold_anything():
    for value in (["1" * 500], {"a": [[[]]] * 9, "b": 10**99}, "[{," * 3_000_000, 1.5, None, {"é\ud800": "\x00"}):
        assert documents.parse_json(json.dumps(value)) == value
    assert documents.parse_json(b"\xef\xbb\xbf[1]") == [1]
    with pytest.raises(ValueError, match="more than 4,000,000 values"):
        documents.parse_json("[" + "0," * 4_000_001 + "0]")


def test_a_file_is_read_where_it_is_regular_and_not_too_large(tmp_path, monkeypatch):
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.json").write_text('{"a": [1, 2]}')
    assert documents.read_json(tmp_path / "a.json") == {"a": [1, 2]}
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name, why in (
        ("pipe", "not a regular file"),
        ("none", "No such file"),
        ("list.json", "no object"),
        ("deep.json", "nested more than 100 deep"),
    ):
        with pytest.raises(InputError, match=rf"Cannot read .*{name}: .*{why}.*\.\nRestore") as caught:
            documents.read_json(tmp_path / name)
        two_lines(caught)
    with pytest.raises(ValueError, match="larger than"):
        documents.read_bytes(tmp_path / "a.json", 5)


@pytest.mark.parametrize(
    "text",
    [
        "a." * 20_000 + "a = 1",
        "[" + "a." * 20_000 + "a]",
        '"a".' * 20_000 + "a = 1",
        "a = " + "[" * 100_000,
        "a = " + "{a=" * 100_000,
        "a = " + "1" * 10_000,
        "a = [" + "1" * 101 + "]",
        "a = " + "[" * 200 + "]" * 200,
        "# " + "x" * 2_000_000,
        "a = 'b",
    ],
)
def test_toml_without_end_is_two_lines(tmp_path, text):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        recipes.read_toml(tmp_path / "x.toml")
    two_lines(caught)


def test_toml_within_bounds_is_what_tomllib_says(tmp_path):
    text = (
        "a.b.c = 1\n'x.y.z' = '"
        + "a." * 500
        + "'\nlong = '''\n"
        + "9" * 500
        + "\n"
        + "d." * 500
        + "'''\n# "
        + "e." * 500
    )
    (tmp_path / "x.toml").write_text(text)
    assert recipes.read_toml(tmp_path / "x.toml")["a"] == {"b": {"c": 1}}


def test_a_grid_of_thousands_cubed_is_refused_at_once(tmp_path, world):
    values = list(range(1, 3001))
    text = f"name = 'x'\n[data]\ntrain = {str(world.train)!r}\n[grid]\n"
    (tmp_path / "x.toml").write_text(
        text + "".join(f"'sample.{each}' = {values[:1500]}\n" for each in ("steps", "seed", "n_images"))
    )
    with pytest.raises(InputError, match="3,375,000,000 arms") as caught:
        plan(tmp_path / "x.toml")
    two_lines(caught)
    (tmp_path / "x.toml").write_text(text + f"'sample.steps' = {values}\n")
    with pytest.raises(InputError, match="list of different values") as caught:
        plan(tmp_path / "x.toml")
    two_lines(caught)


# Names and captions


@pytest.mark.parametrize(
    "name", ["x" * 100_000, "a\0b.png", "\ud800.png", "a/" * 50_000 + "b.png", "../" * 40_000, "\0", "%bytes:%ff"]
)
@pytest.mark.parametrize("file", ["metadata.jsonl", "captions.json"])
def test_a_name_that_no_file_has_is_an_error_of_its_row(tmp_path, name, file):
    (tmp_path / "a.png").write_bytes(PNG)
    listed = {name: ["a dog"], "a.png": ["a cat"]}
    lines = [json.dumps({"file_name": key, "text": value[0]}) for key, value in listed.items()]
    (tmp_path / file).write_text(json.dumps(listed) if file == "captions.json" else "\n".join(lines))
    corpus = Corpus.open(tmp_path)
    found = errors_of(corpus)
    assert found.pop("a.png") is None
    if file == "captions.json" and not name.endswith(".png"):  # a key like `license`, which the account names
        assert not found
        (note,) = corpus.account.notes
        assert note.startswith("captions.json has 1 keys that name no image here (")
        assert len(note.encode()) < 200
        return
    ((id, error),) = found.items()
    assert error
    assert len(id) <= MAX_NAME
    assert "\0" not in id
    id.encode()


def test_captions_and_columns_beyond_any_image_are_errors_of_their_rows():
    rows = TableBuilder()
    rows.add("a", "a.png", ["x" * MAX_TEXT], extras={"é\ud800": "y"})
    rows.add("b", "b.png", ["x" * (MAX_TEXT + 1)])
    rows.add("c", "c.png", ["x"] * 10_001)
    rows.add("d", "d.png", extras={"y": "x" * (MAX_TEXT + 1)})
    rows.add("e", "e.png", extras={f"column {n}": n for n in range(1000)})
    rows.add("f", "f.png", extras={"weight": 10**4000})
    table = rows.table()
    errors = table["error"].to_pylist()
    assert [bool(error) for error in errors] == [False, True, True, True, True, True]
    assert table["weight"].to_pylist() == [1.0] * 6
    assert table.num_columns < 20


def test_a_line_without_end_is_two_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("copyscope.data.captions.tables.MAX_LINE", 1000)
    (tmp_path / "a.png").write_bytes(PNG)
    for file, text in (
        ("metadata.jsonl", '{"file_name": "' + "x" * 2000),
        ("metadata.csv", "file_name\n" + "x" * 2000),
    ):
        (tmp_path / file).write_text(text)
        with pytest.raises(InputError, match="more than 1,000 characters") as caught:
            Corpus.open(tmp_path)
        two_lines(caught)
        (tmp_path / file).unlink()
