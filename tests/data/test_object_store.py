"""Corpora in an object store: a real S3 server on loopback gives what a local disk gives, and its faults are told."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import fsspec.config
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image

from copyscope.data import storage
from copyscope.data.captions import text_files
from copyscope.data.corpus import Corpus
from copyscope.data.retry import RetryPolicy
from copyscope.data.tars import webdataset
from copyscope.detection.embedding.embed import embed
from copyscope.errors import ImageError, InputError
from tests.data.test_shards import parquet, write_tar
from tests.object_store import BUCKET, ObjectStore
from tests.pictures import fill, picture, write


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with ObjectStore() as found:
        found.put({})
        yield found


@pytest.fixture
def waits() -> list[float]:
    """Seconds that were waited for before something was asked for again."""
    return []


@pytest.fixture
def store(server: ObjectStore, waits: list[float], monkeypatch) -> ObjectStore:
    """The server as what `s3://` means, with a new record; s3fs tries once, and nobody really waits."""
    server.forget()
    monkeypatch.setitem(fsspec.config.conf, "s3", server.options())
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(storage, "PATIENCE", RetryPolicy(sleep=waits.append, clock=lambda: 0.0))
    return server


def noise(number: int, side: int = 40) -> bytes:
    """A picture of its own that does not compress."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def as_folder(folder: Path) -> None:
    write(folder, {f"{number % 2}/{number}.png": noise(number) for number in range(6)} | {"0/0.txt": "a\n"})


def as_tars(folder: Path) -> None:
    for shard in range(2):
        members = {f"{shard}{number}.png": noise(number) for number in range(4)} | {f"{shard}0.txt": b"a"}
        write_tar(folder / f"{shard}.tar", members)


def as_parquet(folder: Path) -> None:
    for shard in range(2):
        data = [noise(10 * shard + number) for number in range(5)]
        columns = {"image": data, "key": [f"{shard}{number}" for number in range(5)], "caption": list("abcde")}
        parquet(folder / f"{shard}.parquet", columns, rows=2)


LAYOUTS = {"folder": as_folder, "tars": as_tars, "parquet": as_parquet}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_rows_bytes_and_vectors_as_from_disk(tmp_path, store: ObjectStore, layout: str) -> None:
    LAYOUTS[layout](tmp_path / "data")
    local, remote = Corpus.open(tmp_path / "data"), Corpus.open(store.upload(tmp_path / "data", layout))
    assert remote.table.drop_columns("image").equals(local.table.drop_columns("image"))
    assert list(remote.stream()) == list(local.stream())
    assert [remote.read(row) for row in range(len(remote))] == [local.read(row) for row in range(len(local))]
    here, there = (
        embed(corpus, "phash", cache=tmp_path / name) for name, corpus in (("here", local), ("there", remote))
    )
    assert there.vectors.tobytes() == here.vectors.tobytes()
    assert there.corpus.table["sha256"].equals(here.corpus.table["sha256"])
    assert there.n_missing == 0


def test_an_image_file_is_one_request(tmp_path, store: ObjectStore) -> None:
    as_folder(tmp_path)
    corpus = Corpus.open(store.upload(tmp_path, "requests"))
    store.forget()
    assert all(isinstance(data, bytes) for _, data in corpus.stream())
    assert [asked.method for asked in store.asked] == ["GET"] * 6


def test_one_shard_and_one_image_by_their_url(tmp_path, store: ObjectStore) -> None:
    as_tars(tmp_path)
    as_parquet(tmp_path)
    write(tmp_path, {"a.png": noise(1)})
    url = store.upload(tmp_path, "single")
    assert [len(Corpus.open(f"{url}/{name}")) for name in ("0.tar", "1.parquet", "a.png")] == [4, 5, 1]


def test_only_the_members_asked_for_are_read(tmp_path, store: ObjectStore, monkeypatch) -> None:
    monkeypatch.setattr(webdataset, "_TAR_GAP", 2000)
    write_tar(tmp_path / "a.tar", {f"{number}.png": noise(number, 100) for number in range(20)})
    corpus = Corpus.open(store.upload(tmp_path, "members"))
    store.forget()
    chosen = [3, 4, 15]
    assert [data for _, data in corpus.stream(chosen)] == [noise(row, 100) for row in chosen]
    sizes = [len(noise(row, 100)) for row in chosen]
    assert len(store.asked) == 2, "neighbours are one request"
    assert sum(sizes) <= sum(asked.answered for asked in store.asked) < sum(sizes) + 1500
    store.forget()
    assert corpus.read(7) == noise(7, 100)
    assert [asked.answered for asked in store.asked] == [len(noise(7, 100)) + 1], "one byte more, of read-ahead"


def test_only_the_row_groups_asked_for_are_read(tmp_path, store: ObjectStore) -> None:
    data = [noise(number, 200) for number in range(12)]
    parquet(tmp_path / "a.parquet", {"image": data, "key": [str(number) for number in range(12)]}, rows=3)
    url = store.upload(tmp_path, "groups")
    size = sum(map(len, data))
    corpus = Corpus.open(url)
    assert sum(asked.answered for asked in store.asked) < size / 2, "opening reads no images"
    store.forget()
    assert [found for _, found in corpus.stream([4])] == [data[4]]
    group = sum(map(len, data[3:6]))
    # The footer, and the row group.
    assert group < sum(asked.answered for asked in store.asked) < group + 3 * storage.BLOCK_BYTES


def test_a_listing_longer_than_a_page(store: ObjectStore) -> None:
    keys = [f"many/{number:04d}.png" for number in range(1203)]
    store.put({key: picture(number) for number, key in enumerate(keys)})
    corpus = Corpus.open(f"s3://{BUCKET}/many")
    assert corpus.ids == [key.removeprefix("many/") for key in keys]
    assert sum("continuation-token" in asked.query for asked in store.asked) >= 1
    assert corpus.read(1202) == picture(1202)


def test_what_cannot_be_opened_is_told(store: ObjectStore, monkeypatch) -> None:
    store.put({"train/a.png": picture(1)})
    with pytest.raises(InputError, match=r"s3://nowhere/train.*no such file or folder"):
        Corpus.open("s3://nowhere/train")
    with pytest.raises(InputError, match=rf"no such file or folder.\nDid you mean 's3://{BUCKET}/train'"):
        Corpus.open(f"s3://{BUCKET}/trian")
    monkeypatch.setitem(fsspec.config.conf, "s3", store.options(key="stranger"))
    with pytest.raises(
        InputError, match=r"no permission to read it.\nCheck the path or URL, and the credentials for it"
    ):
        Corpus.open(f"s3://{BUCKET}/train")


def test_without_credentials_it_says_so(store: ObjectStore, monkeypatch, tmp_path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    options = store.options() | {"key": None, "secret": None, "anon": False}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    with pytest.raises(InputError, match="credentials"):
        Corpus.open(f"s3://{BUCKET}/train")


def test_a_file_that_vanished_after_it_was_listed_is_a_row(tmp_path, store: ObjectStore, waits: list[float]) -> None:
    fill(tmp_path / "data", "a.png", "b.png")
    corpus = Corpus.open(store.upload(tmp_path / "data", "vanished"))
    store.delete("vanished/a.png")
    found = embed(corpus, "phash", cache=tmp_path / "cache")
    assert found.corpus.table["error"].to_pylist() == ["no such file", None]
    assert found.n_missing == 1
    assert not waits, "what is gone is not asked for again"
    assert Corpus.open(corpus.origin).ids == ["b.png"], "opened again, the listing is that of now"


@pytest.mark.parametrize("fault", ["InternalError", "SlowDown", "reset", "cut"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_faults_that_pass_cost_time_and_nothing_else(
    tmp_path, store: ObjectStore, waits: list[float], layout: str, fault: str
) -> None:
    LAYOUTS[layout](tmp_path / "data")
    url = store.upload(tmp_path / "data", f"passing-{layout}-{fault}")
    times = 2 if fault == "reset" else 1  # aiohttp itself asks again once where a connection was closed
    # A body is never cut where there is none.
    store.fault = lambda number, method, path, range: (
        fault if number <= times and (fault != "cut" or method == "GET") else ""
    )
    remote, local = Corpus.open(url), Corpus.open(tmp_path / "data")
    assert remote.table.drop_columns("image").equals(local.table.drop_columns("image"))
    assert list(remote.stream()) == list(local.stream())
    assert waits


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_stays_unreadable_is_a_row(tmp_path, store: ObjectStore, layout: str) -> None:
    LAYOUTS[layout](tmp_path / "data")
    corpus = Corpus.open(store.upload(tmp_path / "data", f"staying-{layout}"))
    bad = {"folder": "1/3.png", "tars": "1.tar", "parquet": "1.parquet"}[layout]
    store.fault = lambda number, method, path, range: "InternalError" if path.endswith(bad) else ""
    found = embed(corpus, "phash", cache=tmp_path / "cache")
    errors = dict(zip(corpus.ids, found.corpus.table["error"].to_pylist(), strict=True))
    wrong = {id for id, error in errors.items() if error}
    assert wrong == ({"1/3.png"} if layout == "folder" else {id for id in corpus.ids if id.startswith("1")})
    assert all("as asked for by the test" in errors[id] for id in wrong)
    assert found.n_missing == len(wrong)
    asked = [each for each in store.asked if each.path.endswith(bad)]
    assert len(asked) <= 3 * RetryPolicy().tries, "tries are bounded"


def test_a_row_group_that_cannot_be_read_is_its_rows_alone(tmp_path, store: ObjectStore) -> None:
    data = [noise(number, 200) for number in range(6)]
    parquet(tmp_path / "a.parquet", {"image": data}, rows=2)
    corpus = Corpus.open(store.upload(tmp_path, "broken-group"))
    store.forget()
    list(corpus.stream([2]))
    second = next(asked.range for asked in store.asked if asked.range and asked.answered > len(data[2]) * 2)
    store.forget()
    store.fault = lambda number, method, path, range: "InternalError" if range == second else ""
    found = [data for _, data in corpus.stream()]
    assert [found[row] for row in (0, 1, 4, 5)] == [data[row] for row in (0, 1, 4, 5)]
    assert [str(found[row]) for row in (2, 3)] == ["damaged Parquet: as asked for by the test"] * 2


def test_a_shard_that_cannot_be_read_when_it_is_opened_is_a_row(tmp_path, store: ObjectStore) -> None:
    as_tars(tmp_path)
    url = store.upload(tmp_path, "shut")
    store.fault = lambda number, method, path, range: "InternalError" if path.endswith("1.tar") else ""
    corpus = Corpus.open(url)
    assert corpus.ids == ["00", "01", "02", "03", "1.tar"]
    assert "damaged tar" in corpus.table["error"].to_pylist()[-1]


def test_a_huge_file_is_a_row(store: ObjectStore, monkeypatch) -> None:
    store.put({"huge/a.png": bytes(1000), "huge/b.png": bytes(1001)})
    monkeypatch.setattr(storage, "MAX_BYTES", 1000)
    first, second = (data for _, data in Corpus.open(f"s3://{BUCKET}/huge").stream())
    assert first == bytes(1000)
    assert "too large" in str(second)


def test_captions_beside_images_survive_faults(tmp_path, store: ObjectStore) -> None:
    fill(tmp_path, *(f"{number}.png" for number in range(4)))
    write(tmp_path, {f"{number}.txt": f"caption {number}" for number in range(4)})
    url = store.upload(tmp_path, "captions")
    store.fault = lambda number, method, path, range: "InternalError" if path.endswith(".txt") and number == 1 else ""
    assert Corpus.open(url).captions == [[f"caption {number}"] for number in range(4)]
    store.fault = lambda number, method, path, range: "InternalError" if path.endswith("2.txt") else ""
    with pytest.raises(InputError, match=r"Cannot read the captions in .*2\.txt"):
        Corpus.open(url)


def test_of_captions_no_more_is_read_than_they_may_have(tmp_path, store: ObjectStore, monkeypatch) -> None:
    fill(tmp_path, "a.png", "b.png", "c.png")
    write(tmp_path, {"a.txt": "x" * 5000, "b.txt": "a dog", "c.txt": ""})
    url = store.upload(tmp_path, "long")
    monkeypatch.setattr(text_files, "SIDECAR_BYTES", 1000)
    store.asked.clear()
    corpus = Corpus.open(url)
    assert corpus.captions == [[], ["a dog"], []]
    assert corpus.table["error"].to_pylist() == ["too large: a.txt has more than 1,000 bytes", None, None]
    assert sum(each.answered for each in store.asked if each.path.endswith("a.txt")) == 1001


def test_one_large_shard_is_read_by_many(tmp_path, store: ObjectStore, monkeypatch) -> None:
    monkeypatch.setattr(webdataset, "_TAR_PIECE", 20_000)
    write_tar(tmp_path / "a.tar", {f"{number:02d}.png": noise(number, 60) for number in range(40)})
    corpus = Corpus.open(store.upload(tmp_path, "hot"))
    store.forget()
    store.gather(5)  # no answer before five questions are there
    assert [data for _, data in corpus.stream()] == [noise(row, 60) for row in range(40)]
    assert store.most >= 5


def test_what_is_read_ahead_is_bounded(store: ObjectStore, monkeypatch) -> None:
    monkeypatch.setattr(storage, "AHEAD_BYTES", 100)
    begun: list[int] = []

    def call(number: int) -> int:
        begun.append(number)
        return number

    there = storage.file_system(f"s3://{BUCKET}/x")[0]
    found = there.ahead((30, lambda number=number: call(number)) for number in range(20))
    assert next(found) == 0
    assert max(begun) <= 3, "four of them are 120 bytes"
    assert list(found) == list(range(1, 20))
    big = there.ahead((1000, lambda number=number: call(number)) for number in range(3))
    assert list(big) == [0, 1, 2]


def test_an_archive_replaced_after_it_was_listed_is_told(tmp_path, store: ObjectStore) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": noise(1), "b.png": noise(2)})
    corpus = Corpus.open(store.upload(tmp_path, "replaced"))
    other = write_tar(tmp_path / "other.tar", {"c.png": noise(3), "d.png": noise(4)})
    store.put({"replaced/a.tar": other.read_bytes()})
    found = [data for _, data in corpus.stream()]
    # Its offsets are those of another file now.
    assert [isinstance(data, ImageError) and "no longer exists" in str(data) for data in found] == [True, True]


def test_a_table_of_metadata_in_a_store(tmp_path, store: ObjectStore) -> None:
    fill(tmp_path, "a.png", "b.png")
    pq.write_table(pa.table({"file_name": ["a.png", "b.png"], "text": ["x", "y"]}), tmp_path / "metadata.parquet")
    write(tmp_path, {"more.csv": "file_name,text\na.png,first\n"})
    url = store.upload(tmp_path, "metadata")
    assert Corpus.open(url).captions == [["x", "first"], ["y"]]
    assert Corpus.open(f"{url}/more.csv").captions == [["first"]]
