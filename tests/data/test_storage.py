"""Storage: what cannot be looked into is told, and sizes are bounded."""

from __future__ import annotations

import io
import os

import pytest
from fsspec.implementations.local import LocalFileSystem

from copyscope.data import storage
from copyscope.data.corpus import Corpus
from copyscope.data.retry import RetryPolicy
from copyscope.errors import ImageError, InputError
from tests.pictures import fill, write


def test_a_folder_that_cannot_be_listed_is_a_row(tmp_path, monkeypatch) -> None:
    fill(tmp_path, "a.png", "shut/b.png")
    listed = LocalFileSystem.ls

    def ls(self: LocalFileSystem, path: str, **options: object) -> object:
        if path.endswith("/shut"):  # root may list anything, so permission bits would test nothing
            raise PermissionError(13, "Permission denied")
        return listed(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    corpus = Corpus.open(tmp_path)
    assert corpus.ids == ["a.png", "shut/"]
    assert corpus.table["error"].to_pylist() == [None, "no permission to read it"]
    with pytest.raises(InputError, match="no permission"):
        Corpus.open(tmp_path / "shut")


def test_a_huge_file_is_not_read_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(storage, "MAX_BYTES", 1000)
    write(tmp_path, {"a.png": bytes(1000), "b.png": bytes(1001)})
    corpus = Corpus.open(tmp_path)
    assert corpus.read(0) == bytes(1000)
    with pytest.raises(ImageError, match="too large"):
        corpus.read(1)


def test_captions_that_cannot_be_read_name_their_file(tmp_path, monkeypatch) -> None:
    fill(tmp_path, "a.png")
    write(tmp_path, {"a.txt": "x"})
    opened = storage.Storage.open

    def refuse(self: storage.Storage, path: str) -> object:
        if path.endswith(".txt"):
            raise PermissionError(13, "Permission denied")
        return opened(self, path)

    monkeypatch.setattr(storage.Storage, "open", refuse)
    with pytest.raises(InputError, match=r"a\.txt: no permission to read it"):
        Corpus.open(tmp_path)


class Breaking(io.BytesIO):
    """A file of a network library that breaks off half-way through a read, once."""

    broken = False

    def read(self, size: int | None = -1) -> bytes:
        if not self.broken:
            self.broken = True
            super().read(2)
            raise ConnectionResetError
        return super().read(size)


def test_a_read_that_broke_off_begins_again_where_it_began(monkeypatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE", RetryPolicy(sleep=lambda seconds: None))
    memory = storage.file_system("memory://x")[0]
    monkeypatch.setattr(type(memory.fs), "open", lambda self, path, mode, **options: Breaking(b"0123456789"))
    with memory.open("/x") as file:
        file.seek(3)
        assert file.read(4) == b"3456"
        assert (file.tell(), file.read()) == (7, b"789")
    with memory.open("/x") as file:
        assert file.read() == b"0123456789"
    assert file.closed


@pytest.mark.parametrize("name", [b"plain", b"\xff\xfe", "ä".encode(), b"%bytes:", b"a%ffb"])
def test_paths_survive_as_text(name: bytes) -> None:
    path = os.fsdecode(name)
    text = storage.to_text(path)
    assert text.encode()
    assert storage.from_text(text) == path
