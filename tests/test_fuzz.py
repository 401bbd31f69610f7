"""A short run of the fuzz of benchmarks/fuzz.py: mutated images and containers end as rows or in two lines, mutated
manifests in two lines or a result, mutated requests in an answer."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[1] / "benchmarks" / "fuzz.py")
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("seed", [0, 1])
def test_mutated_images_are_rows(tmp_path, seed):
    (tmp_path / "files").mkdir()
    found = fuzz.run_images(seed, 120, tmp_path / "files")
    assert found["rows"] == 120
    assert 20 < found["errors"] < 120


@pytest.mark.parametrize("seed", [0, 1])
def test_mutated_containers_are_rows_or_two_lines(tmp_path, seed):
    found = fuzz.run_containers(seed, 35, tmp_path)
    assert found["refused"] < 35
    assert found["rows"] > 20


def test_mutated_manifests_are_read_or_refused_in_two_lines(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(SPEC.origin.rpartition("/")[0])
    import fuzz_read

    found = fuzz_read.run_manifests(5, 39, tmp_path)
    assert found["refused"] + found["read"] == 39
    assert min(found["refused"], found["read"]) > 5


def test_mutated_requests_are_answered(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SPEC.origin.rpartition("/")[0])
    import fuzz_read

    found = fuzz_read.run_requests(5, 40, tmp_path)
    assert found["answered"] > 20
    assert found["peak_service_mib"] < 2048


def test_a_spoilt_document_is_made_again_by_its_seed_and_is_not_what_it_was(monkeypatch):
    monkeypatch.syspath_prepend(SPEC.origin.rpartition("/")[0])
    import fuzz_read

    whole = {"a": [1, {"b": "c"}], "d": None}
    many = [json.dumps(fuzz_read.spoilt(whole, np.random.default_rng(seed))) for seed in range(20)]
    assert many == [json.dumps(fuzz_read.spoilt(whole, np.random.default_rng(seed))) for seed in range(20)]
    assert len(set(many)) > 10
    assert whole == {"a": [1, {"b": "c"}], "d": None}


def test_a_mutation_is_made_again_by_its_seed_and_is_not_what_it_was():
    rng = np.random.default_rng(0)
    data = fuzz.pictures(rng)["PNG"][0]
    one, other = (fuzz.mutated(data, np.random.default_rng(5)) for _ in range(2))
    assert one == other != data


def test_a_lost_row_is_a_fault(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    monkeypatch.setattr("copyscope.data.storage.Storage.list_files", lose_one())
    with pytest.raises(AssertionError, match="a row is lost"):
        fuzz.run_images(0, 12, tmp_path / "files")


def lose_one():
    from copyscope.data.storage import Listing, Storage

    whole = Storage.list_files

    def fewer(self, root):
        listing = whole(self, root)
        return Listing(dict(list(listing.files.items())[1:]), listing.unreadable)

    return fewer
