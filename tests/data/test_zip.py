"""Zips of images in a folder, with their captions in them or beside them."""

from __future__ import annotations

import zipfile

import pytest

from copyscope.data.corpus import Corpus
from copyscope.data.tars import compressed
from copyscope.errors import ImageError, InputError
from tests.pictures import picture, write


def zipped(path, files, kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_images_in_a_zip_beside_their_metadata(tmp_path, kind):
    zipped(
        tmp_path / "images.zip", {"in/": b"", "in/a.png": picture(1), "in/b.png": picture(2), "in/b.txt": "hen"}, kind
    )
    write(tmp_path, {"metadata.csv": "file_name,text\nin/a.png,fox\nb.png,owl\n", "README.md": "x"})
    corpus = Corpus.open(tmp_path)
    assert (corpus.kind, corpus.ids) == ("zip", ["in/a.png", "in/b.png"])
    assert corpus.captions == [["fox"], ["hen", "owl"]]
    assert dict(corpus.stream()) == {0: picture(1), 1: picture(2)}
    compressed._known.clear()  # as in another process
    assert corpus.read(1) == picture(2)


def test_several_zips_and_one_that_is_none(tmp_path):
    zipped(tmp_path / "x.zip", {"a.png": picture(1)})
    zipped(tmp_path / "y.zip", {"a.png": picture(2), "../z.png": b"x"})
    (tmp_path / "z.zip").write_bytes(b"no zip")
    corpus = Corpus.open(tmp_path)
    errors = dict(zip(corpus.ids, corpus.table["error"].to_pylist(), strict=True))
    assert (errors.pop("x/a.png"), errors.pop("y/a.png")) == (None, None)
    assert errors.pop("z.zip").startswith("damaged zip")
    assert all("no plain path" in error for error in errors.values())
    found = dict(corpus.stream())
    assert [found[corpus.ids.index(name)] for name in ("x/a.png", "y/a.png")] == [picture(1), picture(2)]


def test_a_bomb_and_damage_are_errors_of_their_rows(tmp_path, monkeypatch):
    zipped(tmp_path / "x.zip", {"a.png": picture(1), "bomb.png": bytes(3 << 20), "c.png": picture(3)})
    monkeypatch.setattr(compressed, "MOST_BYTES", 2 << 20)
    with pytest.raises(ImageError, match="unpacks to more than 2 MiB"):
        Corpus.open(tmp_path).read(0)
    zipped(tmp_path / "x.zip", {"a.png": picture(1), "c.png": picture(3)}, zipfile.ZIP_STORED)
    whole = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(whole.replace(picture(1), bytes(len(picture(1)))))
    compressed._known.clear()
    corpus = Corpus.open(tmp_path)
    assert dict(corpus.stream())[1] == picture(3)


def test_a_zip_without_images_is_no_corpus(tmp_path):
    zipped(tmp_path / "x.zip", {"a.doc.txt": "x"})
    with pytest.raises(InputError, match="no images in it"):
        Corpus.open(tmp_path)
