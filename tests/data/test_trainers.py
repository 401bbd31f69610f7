"""Folders and configurations of trainers: repeats, class words, masks."""

from __future__ import annotations

import json
import shutil

import pytest

from copyscope.data.corpus import Corpus
from copyscope.data.folders.configurations import subsets_in
from copyscope.errors import InputError
from tests.pictures import fill, write


def column(corpus, name):
    return dict(zip(corpus.ids, corpus.table[name].to_pylist(), strict=True))


def test_repeats_are_weights_and_the_words_stand_in_for_captions(tmp_path):
    fill(tmp_path, "20_sks dog/a.png", "20_sks dog/b.png", "1_my_dog/c.png")
    corpus = Corpus.open(write(tmp_path, {"20_sks dog/a.txt": "first\nsecond\n"}))
    assert column(corpus, "weight") == {"20_sks dog/a.png": 20, "20_sks dog/b.png": 20, "1_my_dog/c.png": 1}
    assert column(corpus, "captions") == {
        "20_sks dog/a.png": ["first"], "20_sks dog/b.png": ["sks dog"], "1_my_dog/c.png": ["my_dog"],
    }  # fmt: skip
    assert column(corpus, "class")["1_my_dog/c.png"] == "my_dog"
    assert "weights are the repeats in the names of 2 folders (1, 20)" in corpus.account.line()
    assert corpus.account.sources == {"name of the folder": 2, "NAME.txt": 1}


@pytest.mark.parametrize(
    "folders",
    [["1_cat", "2_dog", "3_hen"], ["01_cat", "02_dog"], ["2023_x", "2024_y"], ["20_dog", "cats"], ["20_", "3_x"]],
)
def test_other_numbers_are_no_repeats(tmp_path, folders):
    corpus = Corpus.open(fill(tmp_path, *(f"{folder}/{number}.png" for number, folder in enumerate(folders))))
    assert set(corpus.table["weight"].to_pylist()) == {1}
    assert corpus.captions == [[]] * len(folders)


def test_a_weight_in_metadata_goes_before_repeats(tmp_path):
    fill(tmp_path, "20_dog/a.png", "20_dog/b.png")
    write(tmp_path, {"20_dog/metadata.csv": "file_name,weight\na.png,0.50\n"})
    assert Corpus.open(tmp_path).table["weight"].to_pylist() == [0.5, 20]


def test_regularisation_images_are_a_split_of_their_own(tmp_path):
    fill(tmp_path, "img/10_sks dog/a.png", "reg/1_dog/b.png")
    with pytest.raises(InputError, match=r"train \(1 images\), reg \(1 images\)"):
        Corpus.open(tmp_path)
    assert Corpus.open(f"{tmp_path}@reg").captions == [["dog"]]


UNREAD = "sd-scripts reads only the images that lie in folders named REPEATS_WORDS"


@pytest.mark.parametrize(
    ("names", "weights", "unread"),
    [
        (["10_sks dog/1.png", "10_sks dog/rejected/9.png"], [10], ["10_sks dog/rejected/9.png"]),
        (["10_dog/1.png", "10_dog/rejected/9.png"], [10], ["10_dog/rejected/9.png"]),
        (["10_sks dog/1.png", "unused/9.png"], [10], ["unused/9.png"]),
        (["img/20_dog/1.png", "model/sample/x.png"], [20], ["model/sample/x.png"]),
    ],
)
def test_other_folders_leave_the_repeats_as_they_are_and_are_named(tmp_path, names, weights, unread):
    fill(tmp_path, *names)
    write(tmp_path, {unread[0].replace(".png", ".txt"): "not read"})
    corpus = Corpus.open(tmp_path)
    assert (corpus.table["weight"].to_pylist(), corpus.ids) == (weights, names[:1])
    assert corpus.captions == [[names[0].split("/")[-2].partition("_")[2]]]
    text = unread[0].replace(".png", ".txt")
    assert sorted(corpus.account.unused[UNREAD].names) == [*unread, text]


@pytest.mark.parametrize(
    "names",
    [
        ["12_a b/1.png", "2024_holiday/2.png"],
        ["12_a b/1.png", "01_x/2.png"],
        ["10_sks dog/1.png", "cats/2.png", "cats/3.png"],
        ["3_dogs/1.png", "3_dogs/a/2.png", "3_dogs/a/3.png"],
        ["10_a/1.png", "5_b/2.png", "cats/3.png"],
    ],
)
def test_other_folders_where_kohyas_are_not_clearly_meant_are_classes(tmp_path, names):
    corpus = Corpus.open(fill(tmp_path, *names))
    assert corpus.ids == sorted(names)
    assert set(corpus.table["weight"].to_pylist()) == {1}


def test_samples_of_training_leave_regularisation_images_apart(tmp_path):
    fill(tmp_path, "img/10_sks dog/a.png", "img/5_cat/b.png", "reg/1_dog/c.png")
    fill(tmp_path, *(f"model/sample/{number}.png" for number in range(9)))
    corpus = Corpus.open(f"{tmp_path}@train")
    assert column(corpus, "weight") == {"img/10_sks dog/a.png": 10, "img/5_cat/b.png": 5}
    assert Corpus.open(f"{tmp_path}@reg").ids == ["reg/1_dog/c.png"]


def test_a_split_without_repeats_leaves_those_of_another(tmp_path):
    fill(tmp_path, "train/10_a/1.png", "train/5_b/2.png", "val/1.png", "reg/1_a/1.png")
    assert column(Corpus.open(f"{tmp_path}@train"), "weight") == {"train/10_a/1.png": 10, "train/5_b/2.png": 5}
    held_out = Corpus.open(f"{tmp_path}@val")
    assert (held_out.ids, held_out.table["weight"].to_pylist()) == (["val/1.png"], [1])
    assert Corpus.open(f"{tmp_path}@reg").ids == ["reg/1_a/1.png"]


def test_an_unread_folder_that_metadata_lists_is_read(tmp_path):
    fill(tmp_path, "10_sks dog/1.png", "unused/9.png")
    write(tmp_path, {"captions.json": '{"unused/9.png": "a cat", "10_sks dog/1.png": "a dog"}'})
    corpus = Corpus.open(tmp_path)
    assert column(corpus, "captions") == {"10_sks dog/1.png": ["a dog"], "unused/9.png": ["a cat"]}
    assert column(corpus, "error") == {"10_sks dog/1.png": None, "unused/9.png": None}


@pytest.mark.parametrize("n_zips", [1, 2])
def test_repeats_in_zips(tmp_path, n_zips):
    fill(tmp_path / "in", "10_sks dog/1.png", "10_sks dog/2.png", "10_sks dog/rejected/9.png")
    write(tmp_path / "in", {"10_sks dog/2.txt": "first\nsecond"})
    (tmp_path / "zips").mkdir()
    for number in range(n_zips):
        shutil.make_archive(str(tmp_path / "zips" / f"k{number}"), "zip", tmp_path / "in")
    corpus = Corpus.open(tmp_path / "zips")
    assert corpus.table["weight"].to_pylist() == [10, 10] * n_zips
    assert corpus.table["class"].to_pylist() == ["sks dog", "sks dog"] * n_zips
    assert corpus.captions == [["sks dog"], ["first"]] * n_zips
    assert corpus.account.unused[UNREAD].n == n_zips


# Masks


@pytest.mark.parametrize(
    "mask",
    ["p-masklabel.png", "p-condlabel.png", "p_mask.png", "p.mask.png", "masks/p.png", "conditioning_images/p.png"],
)
def test_a_mask_of_an_image_is_none(tmp_path, mask):
    corpus = Corpus.open(fill(tmp_path, "p.jpg", mask))
    assert corpus.ids == ["p.jpg"]
    assert corpus.account.unused["a mask or conditioning image of another image"].names == [mask]


@pytest.mark.parametrize(
    "names", [["p-masklabel.png"], ["masks/a.png", "masks/b.png"], ["masks/x.png", "face_mask.png"]]
)
def test_what_is_named_like_a_mask_without_an_image_is_an_image(tmp_path, names):
    assert Corpus.open(fill(tmp_path, *names)).ids == sorted(names)


def test_a_mask_that_metadata_lists_is_an_image(tmp_path):
    fill(tmp_path, "p.jpg", "p_mask.png")
    write(tmp_path, {"metadata.csv": "file_name,text\np_mask.png,a mask\n"})
    corpus = Corpus.open(tmp_path)
    assert corpus.ids == ["p.jpg", "p_mask.png"]
    assert not corpus.account.unused


@pytest.mark.parametrize("table", ["captions.json", "captions.csv"])
@pytest.mark.parametrize(("image", "mask"), [("p.jpg", "p_mask.png"), ("images/p.png", "masks/p.png")])
def test_a_mask_that_a_list_of_captions_names_is_an_image(tmp_path, table, image, mask):
    fill(tmp_path, image, mask)
    said = {image: "a fox", mask: "a mask"}
    lines = "".join(f"{name},{text}\n" for name, text in said.items())
    write(tmp_path, {table: json.dumps(said) if table.endswith("json") else "file_name,text\n" + lines})
    corpus = Corpus.open(tmp_path)
    assert column(corpus, "captions") == {name: [text] for name, text in said.items()}
    assert column(corpus, "error") == {image: None, mask: None}
    assert not corpus.account.unused


def test_a_bare_name_in_a_list_is_that_of_the_image_and_not_of_its_mask(tmp_path):
    fill(tmp_path, "images/p.png", "masks/p.png")
    corpus = Corpus.open(write(tmp_path, {"captions.json": '{"p.png": "a fox"}'}))
    assert column(corpus, "captions") == {"images/p.png": ["a fox"]}


def test_an_image_with_captions_of_its_own_is_no_mask(tmp_path):
    fill(tmp_path, "ski.jpg", "ski_mask.jpg", "dog.jpg", "dog_mask.png")
    corpus = Corpus.open(write(tmp_path, {"ski_mask.txt": "a ski mask", "dog.txt": "a dog"}))
    assert corpus.ids == ["dog.jpg", "ski.jpg", "ski_mask.jpg"]


@pytest.mark.parametrize(
    ("texts", "classes"),
    [
        ([], ["mask", "no_mask"]),
        ([], ["control", "treated"]),
        (["masks/1.txt", "faces/1.txt"], ["masks", "faces"]),
        (["mask/1.txt", "images/1.txt"], ["mask", "images"]),
        ([], ["a/mask/x", "a/no_mask/x"]),
    ],
)
def test_classes_that_are_named_like_masks_are_images(tmp_path, texts, classes):
    names = [f"{folder}/{number}.png" for folder in classes for number in (1, 2)]
    corpus = Corpus.open(write(fill(tmp_path, *names), dict.fromkeys(texts, "a face")))
    assert corpus.ids == sorted(names)


@pytest.mark.parametrize(
    ("texts", "folders"),
    [([], ["images", "mask"]), (["dogs/1.txt"], ["dogs", "control"]), ([], ["dogs", "masks"]), ([], [".", "mask"])],
)
def test_masks_beside_the_folder_of_their_images_are_none(tmp_path, texts, folders):
    fill(tmp_path, *(f"{folder}/{number}.png" for folder in folders for number in (1, 2)))
    corpus = Corpus.open(write(tmp_path, dict.fromkeys(texts, "a dog")))
    assert len(corpus) == 2
    assert corpus.account.unused["a mask or conditioning image of another image"].n == 2


# Configurations


TOML = """
[general]
caption_extension = ".txt"
num_repeats = 3
[[datasets]]
resolution = 512
  [[datasets.subsets]]
  image_dir = "/workspace/dogs"
  class_tokens = "sks dog"
  num_repeats = 10
  caption_prefix = "photo"
  [[datasets.subsets]]
  image_dir = "REG"
  is_reg = true
  class_tokens = "dog"
"""


@pytest.mark.parametrize("extension", [".cap", ".blip.txt", "cap"])
def test_the_caption_extension_of_a_configuration_may_be_any(tmp_path, extension):
    suffix = "." + extension.lstrip(".")
    fill(tmp_path, "a/1.png")
    write(tmp_path, {f"a/1{suffix}": "fox", "a/1.caption": "hen"})
    subset = f'[[datasets.subsets]]\nimage_dir = "a"\ncaption_extension = "{extension}"\n'
    corpus = Corpus.open(write(tmp_path, {"set.toml": "[[datasets]]\n" + subset}) / "set.toml")
    assert column(corpus, "captions") == {"a/1.png": ["fox"]}


def test_the_configuration_of_sd_scripts(tmp_path):
    fill(tmp_path, "dogs/a.png", "dogs/b.png", "dogs/deep/c.png", "other/reg/r.png", "not.png")
    write(tmp_path, {"dogs/a.txt": "one\ntwo", "dogs/b.caption": "not asked for"})
    write(tmp_path, {"set.toml": TOML.replace("REG", "other/reg")})
    with pytest.raises(InputError, match=r"train .*, reg"):
        Corpus.open(tmp_path / "set.toml")
    corpus = Corpus.open(f"{tmp_path}/set.toml@train")
    assert corpus.kind == "configuration"
    assert column(corpus, "captions") == {"dogs/a.png": ["photo, one"], "dogs/b.png": ["photo, sks dog"]}
    assert corpus.table["weight"].to_pylist() == [10, 10]
    assert corpus.read(0) == (tmp_path / "dogs" / "a.png").read_bytes()
    assert corpus.account.unused["the configuration asks for .txt or none"].names == ["dogs/b.caption"]
    held_out = Corpus.open(tmp_path / "set.toml", split="reg")
    assert (held_out.ids, held_out.captions, held_out.table["weight"].to_pylist()) == (
        ["other/reg/r.png"],
        [["dog"]],
        [3],
    )


def test_a_folder_that_is_named_and_not_there_is_an_error(tmp_path):
    fill(tmp_path, "dogs/a.png")
    write(
        tmp_path,
        {"set.toml": '[[datasets]]\n[[datasets.subsets]]\nimage_dir="dogs"\n[[datasets.subsets]]\nimage_dir="x"'},
    )
    corpus = Corpus.open(tmp_path / "set.toml")
    assert column(corpus, "error") == {"dogs/a.png": None, "x": "named in set.toml, but not there"}


def test_metadata_of_a_configuration_and_a_folder_named_twice(tmp_path):
    fill(tmp_path, "dogs/a.png")
    subset = '[[datasets.subsets]]\nimage_dir="dogs"\nmetadata_file="cap.json"\nnum_repeats='
    write(tmp_path, {"set.toml": f"[[datasets]]\n{subset}2\n{subset}5", "cap.json": '{"/x/a.png": {"caption": "fox"}}'})
    corpus = Corpus.open(tmp_path / "set.toml")
    assert (corpus.captions, corpus.table["weight"].to_pylist()) == ([["fox"]], [7])


def test_folders_elsewhere_are_counted_and_refused_when_asked(tmp_path):
    fill(tmp_path, "in/a.png", "out/b.png")
    text = f'[[datasets]]\n[[datasets.subsets]]\nimage_dir="a"\n[[datasets.subsets]]\nimage_dir="{tmp_path}/out"'
    write(tmp_path, {"in/set.toml": text.replace('"a"', '"."')})
    corpus = Corpus.open(tmp_path / "in" / "set.toml")
    assert (len(corpus), corpus.n_outside) == (2, 1)
    refused = Corpus.open(tmp_path / "in" / "set.toml", inside_only=True)
    assert column(refused, "error") == {"a.png": None, f"{tmp_path}/out": "lies outside the folder"}


def test_the_configurations_of_others(tmp_path):
    fill(tmp_path, "a/red fox.png", "a/deep/x.png")
    write(tmp_path, {"a/red fox.txt": "a fox"})
    concepts = [
        {"path": "a", "include_subdirectories": False, "balancing": 2.0, "text": {"prompt_source": "filename"}},
        {"path": "a", "enabled": False, "text": {}},
    ]
    backends = [
        {"instance_data_dir": "/x/a", "repeats": 4, "caption_strategy": "instanceprompt", "instance_prompt": "p"},
        {"instance_data_dir": "a", "dataset_type": "text_embeds"},
    ]
    toolkit = "config:\n  process:\n    - trigger_word: w\n      datasets:\n"
    toolkit += "        - folder_path: /y/a\n          num_repeats: 5\n"
    write(tmp_path, {"concepts.json": json.dumps(concepts), "mdb.json": json.dumps(backends), "ai.yaml": toolkit})
    found = Corpus.open(tmp_path / "concepts.json")
    assert (found.captions, found.table["weight"].to_pylist()) == ([["red fox"]], [2])
    found = Corpus.open(tmp_path / "mdb.json")
    assert (found.captions, found.table["weight"].to_pylist()) == ([["p"], ["p"]], [5, 5])
    pytest.importorskip("yaml")
    found = Corpus.open(tmp_path / "ai.yaml")
    assert column(found, "captions") == {"a/red fox.png": ["a fox"], "a/deep/x.png": ["w"]}
    assert found.table["weight"].to_pylist() == [5, 5]


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("a: &a [1]\nb: *a", ".yaml"),
        ("[" * 5000, ".yaml"),
        ("x" * (2 << 20), ".yaml"),
        ("a =", ".toml"),
        ("[" * 200, ".json"),
    ],
)
def test_a_configuration_beyond_the_bounds_is_refused(text, suffix, tmp_path):
    if suffix == ".yaml":
        pytest.importorskip("yaml")
    with pytest.raises(ValueError, match=r"\w"):
        subsets_in(text, suffix)
    fill(tmp_path, "a.png")
    with pytest.raises(InputError):
        Corpus.open(write(tmp_path, {"c" + suffix: text}) / f"c{suffix}")


def test_a_list_of_records_is_no_configuration(tmp_path):
    fill(tmp_path, "a.png")
    write(tmp_path, {"list.json": '[{"path": "a.png", "caption": "fox"}]', "other.toml": "a = 1"})
    assert Corpus.open(tmp_path / "list.json").captions == [["fox"]]
    with pytest.raises(InputError, match=r"names no folder of images\.\nRead are"):
        Corpus.open(tmp_path / "other.toml")
