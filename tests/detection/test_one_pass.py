"""Each image is read and decoded once, whatever is asked of it afterwards."""

from __future__ import annotations

import collections
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from copyscope import Index, audit, lint
from copyscope.data.corpus import Corpus
from copyscope.detection import audit as audit_module
from copyscope.detection import lint as lint_module
from copyscope.detection.embedding.protocols import protocol
from copyscope.detection.match_sentences import match_sets
from copyscope.imaging import images
from tests import worlds

SETS = {"train": 24, "generated": 12, "held-out": 16}

opened: collections.Counter[str] = collections.Counter()
watched: list[str] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    # Files are opened by an opener of ours: the call of `os.open` alone has no mode.
    if event == "open" and watched and arguments[1] is None:
        path = str(arguments[0])
        opened[path] += path.startswith(watched[0])


sys.addaudithook(_hook)  # there is no way to take it away again: it counts while `watched` names a folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets of pictures, none like another, some of them oblong and some transparent."""
    where = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(3)
    for name, n in SETS.items():
        (where / name).mkdir()
        for number in range(n):
            picture = images.resize(worlds.picture(rng)[0], (96, 96 + 32 * (number % 2)))
            (where / name / f"{number}.png").write_bytes(images.encode(picture, "png"))
    return where


@pytest.fixture
def decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts decoder calls while a test runs; the previews of a report are left out."""
    count, lock = [0], threading.Lock()
    real = images._decode

    def counting(*given: Any) -> Any:
        with lock:
            count[0] += 1
        return real(*given)

    monkeypatch.setattr(images, "_decode", counting)
    # Opening a folder looks into the headers of its files for prompts, which is no reading of the image.
    monkeypatch.setattr("copyscope.data.sidecars._read_headers", lambda *_: None)
    for module in (audit_module, lint_module):
        monkeypatch.setattr(module, "gallery", no_previews)
    opened.clear()
    watched.append(str(folder))
    yield count
    watched.clear()


def no_previews(*_: Any) -> pa.Table:
    """A table of previews with none in it."""
    return pa.table({"set": pa.array([], pa.string()), "id": pa.array([], pa.string())})


def whole_audit(folder: Path, cache: Path) -> None:
    audit(folder / "generated", folder / "train", folder / "held-out", "sscd-distilled", sensitivity=0, cache=cache)


def whole_match(folder: Path, cache: Path) -> None:
    sets = (Corpus.open(folder / name) for name in ("generated", "train"))
    match_sets(*sets, protocol("sscd-distilled"), 5, cache=cache)


CALLS: dict[str, tuple[Callable[[Path, Path], Any], tuple[str, ...]]] = {
    "audit": (whole_audit, ("train", "generated", "held-out")),
    "lint": (lambda folder, cache: lint(folder / "train", "sscd-distilled", cache=cache), ("train",)),
    "match": (whole_match, ("train", "generated")),
    "index": (
        lambda folder, cache: Index.build(
            folder / "train", cache / "index", "sscd-distilled", held_out=folder / "held-out", crops=True, cache=cache
        ),
        ("train", "held-out"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_image_is_read_and_decoded_once(name, folder, decoded, tmp_path):
    call, sets = CALLS[name]
    call(folder, tmp_path)
    files = [str(path) for each in sets for path in sorted((folder / each).glob("*.png"))]
    assert {path: opened[path] for path in files} == dict.fromkeys(files, 1)
    assert decoded[0] == len(files)
    if name == "index":  # which is not built twice
        return
    # The files are read once more, to see that they are the same; what is kept by content is not decoded again.
    call(folder, tmp_path)
    assert {path: opened[path] for path in files} == dict.fromkeys(files, 2)
    assert decoded[0] == len(files)
