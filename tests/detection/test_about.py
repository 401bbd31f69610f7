"""What an audit is about: the digest of a set is of its files, whatever they are called."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from copyscope.data.corpus import Corpus
from copyscope.detection import about
from copyscope.detection.about import About, digest
from copyscope.detection.embedding.embeddings import Embeddings


def described(ids, digests, errors=None):
    errors = errors or [None] * len(ids)
    columns = {"id": ids, "sha256": digests, "error": errors}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    return Embeddings(Corpus(table, "set", "folder"), np.arange(0), np.zeros((0, 1), np.float32), "by hand", "")


def test_order_and_names_do_not_count_and_files_do():
    one = digest(described(["a", "b"], ["1" * 64, "2" * 64]))
    assert one is not None
    assert len(one) == 64
    assert digest(described(["c", "d"], ["2" * 64, "1" * 64])) == one
    assert digest(described(["a", "b"], ["1" * 64, "3" * 64])) != one
    assert digest(described(["a", "b", "x"], ["1" * 64, "2" * 64, None], [None, None, "torn"])) == one


def test_no_digest_where_files_have_none_or_are_too_many(monkeypatch):
    assert digest(described(["a"], [None])) is None
    assert digest(described([], [])) is None
    monkeypatch.setattr(about, "MOST", 1)
    assert digest(described(["a", "b"], ["1" * 64, "2" * 64])) is None


def test_summary_names_each_set():
    found = About("T", None, "n").summary({"train": described(["a"], ["1" * 64])})
    assert (found["title"], found["model"], found["note"]) == ("T", None, "n")
    (one,) = found["sets"]
    assert len(one.pop("digest")) == 64
    assert one == {"set": "train", "path": "set", "kind": "folder", "n": 1}
