"""Embedding a corpus: cached by content, resumable after SIGKILL, and bad files are rows with an error."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from copyscope.data import corpus as corpus_module
from copyscope.data.corpus import Corpus
from copyscope.detection.descriptors.phash import Phash
from copyscope.detection.embedding import cache as store_module
from copyscope.detection.embedding import compute as compute_module
from copyscope.detection.embedding import fill as fill_module
from copyscope.detection.embedding.cache import ContentStore
from copyscope.detection.embedding.compute import compute
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.fill import GROUP, Feature
from copyscope.errors import CopyscopeError, InputError
from copyscope.imaging import images
from tests import worlds
from tests.pictures import fill


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "images"
    place.mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        (place / f"{index:02d}.png").write_bytes(images.encode(worlds.picture(rng)[0], "png"))
    return place


def test_vectors_are_those_of_the_descriptor_in_the_order_of_the_corpus(folder, tmp_path):
    described = embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")
    expected = Phash().describe([images.decode(path) for path in sorted(folder.iterdir())])
    np.testing.assert_array_equal(described.vectors, expected)
    assert described.ids == [path.name for path in sorted(folder.iterdir())]
    table = described.corpus.table
    shapes = [images.decode(path).shape[:2] for path in sorted(folder.iterdir())]
    assert list(zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True)) == shapes
    assert described.n_missing == 0


def test_bad_files_are_rows_with_an_error_and_the_rest_is_described(folder, tmp_path):
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("<html>404</html>")
    (folder / "torn.png").write_bytes((folder / "00.png").read_bytes()[:200])
    described = embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")
    assert described.n_missing == 3
    assert len(described.vectors) == 12
    errors = dict(zip(described.corpus.ids, described.corpus.table["error"].to_pylist(), strict=True))
    assert {name for name, error in errors.items() if error} == {"empty.png", "text.jpg", "torn.png"}
    assert "empty" in errors["empty.png"]


def test_the_same_content_is_described_once_under_any_name_and_never_again(folder, tmp_path, monkeypatch):
    (folder / "again.png").write_bytes((folder / "03.png").read_bytes())
    described: list[int] = []
    plain = Phash.describe
    monkeypatch.setattr(Phash, "describe", lambda self, given: described.append(len(given)) or plain(self, given))
    first = embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")
    assert sum(described) == 12
    again = embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")
    assert sum(described) == 12
    np.testing.assert_array_equal(first.vectors, again.vectors)
    assert np.array_equal(first.vectors[first.ids.index("again.png")], first.vectors[first.ids.index("03.png")])


def test_another_spec_is_another_cache(folder, tmp_path):
    narrow = embed(Corpus.open(folder), Phash(side=4), cache=tmp_path / "cache")
    wide = embed(Corpus.open(folder), Phash(side=8), cache=tmp_path / "cache")
    assert narrow.vectors.shape[1] == 16
    assert wide.vectors.shape[1] == 64


def test_batches_and_workers_change_nothing(folder, tmp_path, monkeypatch):
    plain = embed(Corpus.open(folder), Phash(), cache=tmp_path / "a", workers=1)
    monkeypatch.setattr(fill_module, "BATCH", 5)
    monkeypatch.setattr(fill_module, "GROUP", 2)
    other = embed(Corpus.open(folder), Phash(), cache=tmp_path / "b", workers=3)
    np.testing.assert_array_equal(plain.vectors, other.vectors)


def test_values_that_are_not_numbers_are_an_error_of_their_row(folder, tmp_path):
    def function(given):
        return np.array([[np.nan if image.shape[0] % 2 else 1.0] for image in given])

    corpus, rows, values = compute(
        Corpus.open(folder), Feature("odd", "", 1, np.float64, function), cache=tmp_path / "c"
    )
    odd = [height is None for height in corpus.table["height"].to_pylist()]
    assert any(odd)
    assert len(rows) == len(values) == 12 - sum(odd)
    errors = corpus.table["error"].to_pylist()
    assert ["not numbers" in (error or "") for error in errors] == odd


def test_saving_then_loading_is_the_identity(folder, tmp_path):
    (folder / "empty.png").write_bytes(b"")
    described = embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")
    described.save(tmp_path / "out")
    again = Embeddings.load(tmp_path / "out")
    np.testing.assert_array_equal(again.vectors, described.vectors)
    assert again.corpus.table.equals(described.corpus.table)
    assert (again.ids, again.descriptor, again.fingerprint) == (
        described.ids,
        described.descriptor,
        described.fingerprint,
    )
    (tmp_path / "out" / "embeddings.json").unlink()
    with pytest.raises(InputError, match="No finished embeddings"):
        Embeddings.load(tmp_path / "out")


def test_a_cache_may_be_named_by_a_string(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    embed(Corpus.open(folder), "phash", cache="~/cache")
    assert list((tmp_path / "cache" / "content").glob("phash-*"))


def test_a_cache_that_cannot_be_written_is_told(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="COPYSCOPE_CACHE"):
        embed(Corpus.open(folder), Phash(), cache=tmp_path / "file")


SLOW = """
import sys, time
from pathlib import Path
from copyscope.detection.descriptors.phash import Phash
from copyscope.detection.embedding.embed import embed
from copyscope.data.corpus import Corpus
plain = Phash.describe
def slow(self, given):
    with open(sys.argv[4], "a") as log:
        log.write(f"{len(given)}\\n")
    time.sleep(float(sys.argv[3]))
    return plain(self, given)
Phash.describe = slow
embed(Corpus.open(sys.argv[1]), Phash(), cache=Path(sys.argv[2]), workers=2).save(Path(sys.argv[2]) / "out")
"""


def test_killed_at_any_moment_it_repeats_less_than_a_group_and_gives_the_same_bytes(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(0)
    n = 4 * GROUP
    for index in range(n):
        noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (folder / f"{index:04d}.png").write_bytes(images.encode(noise, "png"))

    def run(cache, pause, log):
        command = [sys.executable, "-c", SLOW, str(folder), str(cache), str(pause), str(log)]
        return subprocess.Popen(command, env=os.environ)

    def described(log):
        return sum(int(line) for line in log.read_text().split()) if log.exists() else 0

    whole = run(tmp_path / "whole", 0, tmp_path / "whole.log")
    assert whole.wait(120) == 0
    assert described(tmp_path / "whole.log") == n
    log = tmp_path / "killed.log"
    for part in (1, 2, 3):
        victim = run(tmp_path / "killed", 0.01, log)
        while described(log) < part * n // 4 and victim.poll() is None:
            time.sleep(0.005)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    last = run(tmp_path / "killed", 0, log)
    assert last.wait(120) == 0
    # Each of the three kills costs at most the group under way and the batches in the workers' hands.
    assert n <= described(log) <= n + 3 * (GROUP + 4 * fill_module.BATCH)
    for name in ("vectors.npy", "embeddings.parquet", "embeddings.json"):
        assert (tmp_path / "killed" / "out" / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes()


def with_digest_ending_in_zero(content):
    """`content` with a tail that makes its sha256 end in a zero byte, which numpy's byte strings would drop."""
    number = 0
    while hashlib.sha256(content + str(number).encode()).digest()[-1] != 0:
        number += 1
    return content + str(number).encode()


def test_a_digest_that_ends_in_a_zero_byte_is_whole(folder, tmp_path):
    (folder / "00.png").write_bytes(with_digest_ending_in_zero((folder / "00.png").read_bytes()))
    (folder / "bad.png").write_bytes(with_digest_ending_in_zero(b"no image "))
    for _ in range(2):
        described = embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")
        table = {row["id"]: row for row in described.corpus.table.to_pylist()}
        for name in ("00.png", "bad.png"):
            assert table[name]["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert [name for name, row in table.items() if row["error"]] == ["bad.png"]
        expected = Phash().describe([images.decode(folder / "00.png")])[0]
        np.testing.assert_array_equal(described.vectors[described.ids.index("00.png")], expected)
    again = embed(described.corpus, Phash(), cache=tmp_path / "cache")
    np.testing.assert_array_equal(again.vectors, described.vectors)


def test_a_file_that_is_gone_is_a_row_with_an_error(folder, tmp_path):
    corpus = Corpus.open(folder)
    (folder / "05.png").unlink()
    described = embed(corpus, Phash(), cache=tmp_path / "cache")
    assert described.n_missing == 1
    assert "05.png" not in described.ids
    assert described.corpus.table["error"][5].as_py() == "no such file"


def test_other_weights_are_another_cache(folder, tmp_path, monkeypatch):
    described: list[int] = []
    plain = Phash.describe
    monkeypatch.setattr(Phash, "describe", lambda self, given: described.append(len(given)) or plain(self, given))
    for weights in ("a", "b", "a"):
        monkeypatch.setattr(Phash, "fingerprint", lambda self, weights=weights: weights)
        assert embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache").fingerprint == weights
    assert sum(described) == 24


def test_values_of_the_wrong_shape_are_an_error_of_the_part(folder, tmp_path):
    for wrong in ((lambda given: np.zeros((len(given), 3))), (lambda given: np.zeros((1, 2)))):
        with pytest.raises(CopyscopeError, match="gave values of shape"):
            compute(Corpus.open(folder), Feature("wrong", "", 2, np.float64, wrong), cache=tmp_path / "c")


def test_a_matrix_too_large_for_memory_is_mapped_and_the_same(folder, tmp_path, monkeypatch):
    plain = embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")
    assert not isinstance(plain.vectors, np.memmap)
    monkeypatch.setattr(store_module, "IN_MEMORY", 100)
    mapped = embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")
    assert isinstance(mapped.vectors, np.memmap)
    np.testing.assert_array_equal(mapped.vectors, plain.vectors)


def test_what_is_learnt_of_very_many_images_lies_in_a_file(folder, tmp_path, monkeypatch):
    plain = embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache").corpus.table
    monkeypatch.setattr(corpus_module, "ONE_PIECE", 3)
    opened = Corpus.open(folder)
    before = pa.total_allocated_bytes()
    table = embed(opened, Phash(), cache=tmp_path / "other").corpus.table
    assert table.equals(plain)
    assert pa.total_allocated_bytes() - before < plain.select(["sha256"]).nbytes / 2


def test_very_many_images_are_described_lot_by_lot_each_content_once(folder, tmp_path, monkeypatch):
    shutil.copy(folder / "00.png", folder / "07a.png")
    plain = embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")
    monkeypatch.setattr(compute_module, "LOT", 5)
    described, told = [], []

    def describe(pictures):
        described.append(len(pictures))
        return Phash().describe(pictures)

    work = Feature("phash", "in lots", 64, np.float32, describe)
    _, rows, values = compute(
        Corpus.open(folder), work, cache=tmp_path / "other", progress=lambda *values: told.append(values)
    )
    np.testing.assert_array_equal(values, plain.vectors)
    assert (len(rows), sum(described)) == (13, 12)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1:] == (13, 13)


def test_a_store_that_another_process_compacts_meanwhile_is_looked_at_again(folder, tmp_path, monkeypatch):
    plain = embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")
    take, calls = ContentStore.take, []

    def once(self, rows, out):
        calls.append(1)
        if len(calls) == 1:
            raise FileNotFoundError
        return take(self, rows, out)

    monkeypatch.setattr(ContentStore, "take", once)
    again = embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")
    assert len(calls) == 2
    np.testing.assert_array_equal(again.vectors, plain.vectors)


def test_a_cache_that_is_cleared_meanwhile_is_told_rather_than_answered_from(folder, tmp_path, monkeypatch):
    embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")
    refresh = ContentStore.refresh

    def cleared(self):
        if hasattr(self, "_names"):
            shutil.rmtree(self.folder, ignore_errors=True)
        refresh(self)

    monkeypatch.setattr(ContentStore, "refresh", cleared)
    with pytest.raises(CopyscopeError, match="Run the command again"):
        embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")


def test_a_cache_that_fills_the_disk_is_told(folder, tmp_path, monkeypatch):
    def full(self, keys, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ContentStore, "add", full)
    with pytest.raises(InputError, match=r"No space left on device\.\nSet COPYSCOPE_CACHE"):
        embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache")


def test_progress_ends_at_the_number_of_images(folder, tmp_path):
    (folder / "again.png").write_bytes((folder / "03.png").read_bytes())
    (folder / "empty.png").write_bytes(b"")
    told = []
    embed(Corpus.open(folder), Phash(), cache=tmp_path / "cache", progress=lambda *values: told.append(values))
    assert told[-1] == ("phash", 14, 14)
    assert all(0 <= done <= total == 14 for _, done, total in told)


def test_cached_vectors_with_a_flipped_byte_are_made_again(tmp_path):
    fill(tmp_path, *(f"set/{number}.png" for number in range(8)))
    options = {"cache": tmp_path / "cache"}
    first = embed(tmp_path / "set", "phash", **options).vectors
    rng = np.random.default_rng(0)
    for _ in range(8):
        (path,) = (tmp_path / "cache").glob("content/*/*.values.npy")
        data = bytearray(path.read_bytes())
        data[128 + int(rng.integers(len(data) - 128))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        assert np.array_equal(embed(tmp_path / "set", "phash", **options).vectors, first)
        assert np.array_equal(embed(tmp_path / "set", "phash", **options).vectors, first)
        for each in (tmp_path / "cache" / "content").iterdir():  # one shard again
            for left in each.iterdir():
                left.unlink()
        embed(tmp_path / "set", "phash", **options)
