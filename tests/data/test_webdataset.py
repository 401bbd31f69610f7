"""WebDataset tars: dots in names, several images a sample, members twice, compression."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest

from copyscope.data.corpus import Corpus
from copyscope.data.tars import compressed
from copyscope.errors import InputError
from tests.data.test_shards import write_tar
from tests.pictures import picture


def opened(tmp_path, members):
    write_tar(tmp_path / "a.tar", members)
    corpus = Corpus.open(tmp_path / "a.tar")
    return corpus, dict(zip(corpus.ids, corpus.captions, strict=True))


def test_a_dot_in_a_name_does_not_join_samples(tmp_path):
    members = {}
    for number, name in enumerate(["s_0.25", "s_0.50", "v1.0.2"]):
        members |= {f"{name}.jpg": picture(number), f"{name}.txt": name.encode()}
    members["s_0.50.json"] = b'{"seed": 5}'
    corpus, found = opened(tmp_path, members)
    assert found == {name: [name] for name in ("s_0.25", "s_0.50", "v1.0.2")}
    assert corpus.table["seed"].to_pylist() == [None, 5, None]
    assert [content for _, content in corpus.stream()] == [picture(0), picture(1), picture(2)]


def test_what_is_said_of_a_sample_is_said_of_all_its_images(tmp_path):
    members = {"0.left.png": picture(1), "0.right.png": picture(2), "0.json": b'{"caption": "pair"}'}
    _, found = opened(tmp_path, members | {"0.left.txt": b"left alone"})
    assert found == {"0.left": ["left alone", "pair"], "0.right": ["pair"]}


def test_one_image_takes_all_captions_of_its_key_and_no_other_texts(tmp_path):
    members = {"0.image.jpg": picture(1), "0.txt": b"a", "0.caption.txt": b"b", "0.de.caption.txt": b"c"}
    others = {f"0.{name}.txt": b"x" for name in ("license", "url", "source")}
    corpus, found = opened(tmp_path, members | others | {"1.jpg": picture(2), "1.jpg.txt": b"d"})
    assert found == {"0": ["a", "b", "c"], "1": ["d"]}
    assert corpus.account.unused["a text that is not named as a caption"].names == [f"a.tar/{name}" for name in others]


@pytest.mark.parametrize(
    ("names", "captions"),
    [
        (["k.image", "k.text"], ["x"]),
        (["k.img", "k.prompt"], ["x"]),
        (["k.jpg", "k.caption.txt"], ["x"]),
        (["k.PNG", "k.TXT"], ["x"]),
        (["d/k.jpg", "d/k.caption"], ["x"]),
    ],
)
def test_suffixes(tmp_path, names, captions):
    assert list(opened(tmp_path, {names[0]: picture(), names[1]: b"x"})[1].values()) == [captions]


def test_captions_in_a_list(tmp_path):
    assert opened(tmp_path, {"k.jpg": picture(), "k.captions.json": b'["x", "y"]'})[1] == {"k": ["x", "y"]}
    assert opened(tmp_path, {"k.jpg": picture(), "k.txt": "x".encode("utf-16")})[1] == {"k": ["x"]}


def test_of_members_of_one_name_the_last_is_read_and_the_others_are_named(tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in [("k.jpg", picture(1)), ("k.txt", b"old"), ("k.jpg", picture(2)), ("k.txt", b"new")]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    corpus = Corpus.open(tmp_path / "a.tar")
    assert (corpus.captions, corpus.read(0)) == ([["new"]], picture(2))
    assert corpus.account.unused["an earlier member of the same name"].names == ["a.tar/k.jpg", "a.tar/k.txt"]


def test_images_of_one_name_are_rows_and_masks_are_none(tmp_path):
    members = {"k.jpg": picture(1), "k.png": picture(2), "k.mask.png": picture(3), "k-masklabel.png": picture(4)}
    corpus, found = opened(tmp_path, members | {"k.txt": b"x", "k.npy": b"z", "z.xml": b"<a/>", "z.jpg": picture(5)})
    assert found == {"k.jpg": ["x"], "k.png": ["x"], "z": []}
    assert corpus.account.unused["a mask or conditioning image of another image"].n == 2
    assert corpus.account.unused["neither an image nor captions by its name"].names == ["a.tar/z.xml"]


def test_an_image_with_a_text_of_its_own_is_no_mask(tmp_path):
    members = {"ski.jpg": picture(1), "ski_mask.jpg": picture(2), "ski_mask.txt": b"a ski mask"}
    corpus, found = opened(tmp_path, members)
    assert (found, corpus.account.errors) == ({"ski": [], "ski_mask": ["a ski mask"]}, {})


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".tar.gz", "gzip"), (".tgz", "gzip"), (".tar.zst", "zstd"), (".tar", "gzip")]
)
def test_compressed_tars_are_unpacked(tmp_path, suffix, codec):
    members = {f"{number}.png": picture(number) for number in range(30)} | {"3.txt": b"x"}
    write_tar(tmp_path / "plain.tar", members)
    packed = pa.compress((tmp_path / "plain.tar").read_bytes(), codec, asbytes=True)
    if codec == "gzip":
        packed = packed + gzip.compress(b"")  # several members, as parallel compressors write them
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"a{suffix}").write_bytes(packed)
    corpus = Corpus.open(tmp_path / "in")
    assert dict(corpus.stream()) == {row: picture(int(name)) for row, name in enumerate(corpus.ids)}
    assert corpus.captions[corpus.ids.index("3")] == ["x"]
    compressed._known.clear()  # as in another process
    assert corpus.read(5) == picture(int(corpus.ids[5]))


def test_a_damaged_compressed_tar_is_an_error_of_two_lines(tmp_path):
    write_tar(tmp_path / "plain.tar", {"a.png": picture(), "b.json": json.dumps({"x": 1}).encode()})
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress((tmp_path / "plain.tar").read_bytes())[:-90])
    with pytest.raises(InputError) as caught:
        Corpus.open(tmp_path / "b.tar.gz")
    assert str(caught.value).count("\n") == 1


def test_a_compressed_tar_beside_images_is_what_they_came_in(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "all.tar.gz").write_bytes(bytes(9999))
    corpus = Corpus.open(tmp_path)
    assert corpus.ids == ["a.png"]
    assert corpus.account.unused["not opened: name it to read it"].names == ["all.tar.gz"]
