"""The content store: what was added is found, whatever the shards, and a torn shard is never read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope.detection.embedding import cache as store_module
from copyscope.detection.embedding.cache import KEY, ContentStore


def keys_of(numbers):
    return np.array([(int(number).to_bytes(4, "big").ljust(32, b"x"), number, number + 1) for number in numbers], KEY)


def digests_of(numbers):
    return np.array([int(number).to_bytes(4, "big").ljust(32, b"x") for number in numbers], "S32")


@settings(max_examples=25, deadline=None)
@given(shards=st.lists(st.lists(st.integers(0, 50), max_size=8), max_size=6), compact_above=st.integers(0, 4))
def test_what_was_added_is_found_before_and_after_compaction(tmp_path_factory, shards, compact_above):
    store = ContentStore(tmp_path_factory.mktemp("store"), 3, np.float32)
    for numbers in shards:
        values = np.repeat(np.array(numbers, np.float32).reshape(-1, 1), 3, axis=1)
        store.add(keys_of(numbers), values)
    added = {number for numbers in shards for number in numbers}
    store_module.COMPACT_ABOVE, before = compact_above, store_module.COMPACT_ABOVE
    try:
        for look in (store.refresh, store.compact):
            look()
            rows = store.find(digests_of(range(52)))
            assert {number for number in range(52) if rows[number] >= 0} == added
            there = np.array(sorted(added), dtype=np.int64)
            found = store.take(rows[there], np.empty((len(there), 3), np.float32))
            np.testing.assert_array_equal(found, np.repeat(there[:, None], 3, axis=1).astype(np.float32))
            widths, heights = store.sizes(rows[there])
            np.testing.assert_array_equal(widths, there)
            np.testing.assert_array_equal(heights, there + 1)
    finally:
        store_module.COMPACT_ABOVE = before


def test_a_shard_without_its_keys_is_not_there(tmp_path):
    store = ContentStore(tmp_path, 2, np.float32)
    store.add(keys_of([1]), np.ones((1, 2), np.float32))
    store.add(keys_of([2]), np.ones((1, 2), np.float32))
    # Killed between the two renames.
    next(tmp_path.glob("*.keys.npy")).unlink()
    (tmp_path / "torn.tmp").write_bytes(b"half a shard")
    again = ContentStore(tmp_path, 2, np.float32)
    assert len(again) == 1
    assert (again.find(digests_of([1, 2])) >= 0).sum() == 1


def test_another_process_that_adds_is_seen_after_refresh(tmp_path):
    mine, other = ContentStore(tmp_path, 1, np.uint8), ContentStore(tmp_path, 1, np.uint8)
    other.add(keys_of([7]), np.array([[9]], np.uint8))
    assert mine.find(digests_of([7]))[0] == -1
    mine.refresh()
    assert mine.take(mine.find(digests_of([7])), np.empty((1, 1), np.uint8))[0, 0] == 9


def ones(n):
    return np.ones((n, 2), np.float32)


def test_compaction_starts_above_its_bound_keeps_each_content_once_and_leaves_one_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "COMPACT_ABOVE", 2)
    store = ContentStore(tmp_path, 2, np.float32)
    for numbers in ([1, 2], [2, 3]):
        store.add(keys_of(numbers), ones(2))
    store.compact()
    assert (len(list(tmp_path.glob("*.keys.npy"))), len(store)) == (2, 4)
    store.add(keys_of([3]), ones(1))
    store.compact()
    assert sorted(path.name.partition(".")[2] for path in tmp_path.iterdir()) == ["keys.npy", "values.npy"]
    assert len(store) == 3


def test_the_keys_of_a_shard_come_last(tmp_path, monkeypatch):
    plain, moved = store_module.os.replace, []
    monkeypatch.setattr(
        store_module.os, "replace", lambda old, new: moved.append(new.name.partition(".")[2]) or plain(old, new)
    )
    ContentStore(tmp_path, 2, np.float32).add(keys_of([1]), ones(1))
    assert moved == ["values.npy", "keys.npy"]


@pytest.mark.parametrize(
    ("kind", "harm"),
    [
        ("keys", lambda path: path.write_bytes(b"")),
        ("keys", lambda path: path.write_bytes(b"no array at all")),
        ("keys", lambda path: np.save(path, np.zeros(1))),
        ("values", lambda path: path.unlink()),
        ("values", lambda path: path.write_bytes(b"")),
        ("values", lambda path: path.write_bytes(path.read_bytes()[:-4])),
        ("values", lambda path: np.save(path, np.zeros((1, 5), np.float32))),
    ],
)
def test_a_shard_that_a_crash_tore_is_as_if_it_were_not_there(tmp_path, kind, harm):
    store = ContentStore(tmp_path, 2, np.float32)
    store.add(keys_of([1]), ones(1))
    harm(next(tmp_path.glob(f"*.{kind}.npy")))
    store.add(keys_of([2]), 2 * ones(1))
    again = ContentStore(tmp_path, 2, np.float32)
    assert (again.find(digests_of([1, 2])) >= 0).tolist() == [False, True]
    assert again.take(again.find(digests_of([2])), np.empty((1, 2), np.float32)).tolist() == [[2, 2]]


def test_two_processes_that_compact_at_once_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "COMPACT_ABOVE", 1)
    mine, other = (ContentStore(tmp_path, 2, np.float32) for _ in range(2))
    for number in range(3):
        mine.add(keys_of([number]), number * ones(1))
    pieces = mine._pieces

    def late(rows):
        other.compact()
        yield from pieces(rows)

    monkeypatch.setattr(mine, "_pieces", late)
    mine.compact()
    assert not list(tmp_path.glob("*.tmp"))
    mine.refresh()
    values = mine.take(mine.find(digests_of(range(3))), np.empty((3, 2), np.float32))
    assert values[:, 0].tolist() == [0, 1, 2]


@settings(max_examples=25, deadline=None)
@given(numbers=st.lists(st.integers(0, 300), min_size=1, max_size=60), asked=st.lists(st.integers(0, 300), max_size=60))
def test_digests_that_begin_alike_are_told_apart(tmp_path_factory, numbers, asked):
    def late(numbers):
        return np.array([f"{number % 3:08d}{number:024d}".encode() for number in numbers], "S32")

    store = ContentStore(tmp_path_factory.mktemp("store"), 1, np.int64)
    keys = np.zeros(len(numbers), KEY)
    keys["sha256"] = late(numbers)
    store.add(keys, np.array(numbers)[:, None])
    store.refresh()
    found = store.find(late(asked))
    wanted = [numbers.index(number) if number in numbers else -1 for number in asked]
    np.testing.assert_array_equal(found, wanted)


def test_values_are_mapped_where_they_lie_and_copied_where_they_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "IN_MEMORY", 8)
    store = ContentStore(tmp_path, 2, np.float32)
    for numbers in (range(5), range(5, 9)):
        store.add(keys_of(numbers), np.repeat(np.array(numbers, np.float32)[:, None], 2, axis=1))
    store.refresh()

    def shown(numbers):
        values = store.values(store.find(digests_of(numbers)))
        np.testing.assert_array_equal(values[:, 0], list(numbers))
        assert isinstance(values, np.memmap)
        return values.mode

    assert shown([1, 2, 3]) == shown([5, 6, 7, 8]) == "r"
    assert shown([3, 2, 1]) == shown([1, 3]) == shown([3, 4, 5]) == shown([2, 2, 3]) == "w+"
    assert not isinstance(store.values(store.find(digests_of([4]))), np.memmap)


# Rot


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << offset % 8
    path.write_bytes(data)


@pytest.mark.parametrize("in_memory", [8, 2**20])
def test_a_row_that_rotted_is_said_and_mended_and_the_others_stay(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(store_module, "IN_MEMORY", in_memory)
    monkeypatch.setattr(store_module, "COPY_ROWS", 4)
    store = ContentStore(tmp_path, 2, np.float32)
    store.add(keys_of(range(9)), np.repeat(np.arange(9, dtype=np.float32)[:, None], 2, axis=1))
    store.add(keys_of([20]), ones(1))
    store.refresh()
    flip(max(tmp_path.glob("*.values.npy"), key=lambda path: path.stat().st_size), -6 * 8 - 1)
    for asked in (range(9), [1, 2]):
        rows = store.find(digests_of(asked))
        if len(asked) == 9:
            with pytest.raises(store_module.DamagedRows) as caught:
                store.values(rows)
            assert caught.value.rows.tolist() == [rows[2]]
        else:
            store.mend(rows)
    found = store.find(digests_of([*range(9), 20]))
    assert np.flatnonzero(found < 0).tolist() == [2]
    values = store.values(np.sort(found[found >= 0]))
    assert sorted(values[:, 0].tolist()) == [0, 1, 1, 3, 4, 5, 6, 7, 8]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_width_that_rotted_is_seen(tmp_path):
    store = ContentStore(tmp_path, 2, np.float32)
    store.add(keys_of([1]), ones(1))
    path = next(tmp_path.glob("*.keys.npy"))
    flip(path, path.stat().st_size - store_module.SUMMED.itemsize + 32)
    again = ContentStore(tmp_path, 2, np.float32)
    with pytest.raises(store_module.DamagedRows):
        again.values(again.find(digests_of([1])))


def test_shards_without_checksums_are_read_and_get_them_when_they_are_merged(tmp_path, monkeypatch):
    store = ContentStore(tmp_path, 2, np.float32)
    np.save(tmp_path / "old.values.npy", 7 * ones(2))
    np.save(tmp_path / "old.keys.npy", keys_of([7, 8]))
    store.refresh()
    assert store.values(store.find(digests_of([8])))[0, 0] == 7
    store.add(keys_of([9]), ones(1))
    monkeypatch.setattr(store_module, "COMPACT_ABOVE", 1)
    store.compact()
    assert np.load(next(tmp_path.glob("*.keys.npy"))).dtype == store_module.SUMMED
    assert store.values(store.find(digests_of([8, 9])))[:, 0].tolist() == [7, 1]


def test_rot_that_a_merge_meets_is_mended(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "COMPACT_ABOVE", 1)
    store = ContentStore(tmp_path, 2, np.float32)
    for number in range(3):
        store.add(keys_of([number]), ones(1))
    flip(next(tmp_path.glob("*.values.npy")), -1)
    store.compact()
    store.compact()
    assert len(list(tmp_path.glob("*.keys.npy"))) == 1
    assert (store.find(digests_of(range(3))) >= 0).sum() == 2
