"""Data for training loops: what is drawn how often with which caption, in ours and in other people's."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch.utils.data import DataLoader

from copyscope import Corpus
from copyscope.curation import curate
from copyscope.diffusion import encoded_cache
from copyscope.diffusion.applied import MitigationStack
from copyscope.diffusion.encoded_cache import TextEmbeddingCache
from copyscope.diffusion.training import data
from copyscope.diffusion.training.data import CaptionedImages, LatentCache, collate, draw
from copyscope.diffusion.training.draws import CaptionPolicy, WeightedSampler
from copyscope.errors import ImageError, InputError, TrainingError
from copyscope.imaging import images
from tests.diffusion.training.test_train import N, Tiny, recipe, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.open(write_corpus(tmp_path_factory.mktemp("corpus") / "train"))


# The sampler


def test_rows_are_drawn_with_replacement_in_proportion_to_their_weight():
    weights = np.array([1, 0, 5, 2, 0, 2.0])
    counts = np.bincount(WeightedSampler(weights, seed=3).draw(0, 20_000), minlength=6)
    expected = weights / weights.sum() * 20_000
    assert counts[[1, 4]].tolist() == [0, 0]
    assert (np.abs(counts - expected) <= 4 * np.sqrt(expected)).all()
    equal = WeightedSampler([1.0] * 50, seed=0)
    assert len(equal) == 50
    assert len(set(equal)) < 45


def test_draws_are_those_of_seed_and_epoch_and_each_iteration_is_an_epoch():
    sampler = WeightedSampler([1.0, 2, 3, 4], 30, seed=1)
    first, second = list(sampler), list(sampler)
    assert first != second
    assert second == sampler.draw(1, 30).tolist()
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(WeightedSampler([1.0, 2, 3, 4], 30, seed=2)) != first


def test_a_corpus_gives_its_weights_and_never_an_image_with_an_error(corpus):
    errors = [None if row > 5 else "no such file" for row in range(N)]
    broken = corpus.with_column("error", errors).with_column("weight", [1.0] * (N - 1) + [9.0])
    drawn = WeightedSampler.from_corpus(broken, seed=0).draw(0, 3000)
    assert drawn.min() == 6
    assert np.mean(drawn == N - 1) == pytest.approx(9 / 14, abs=0.05)
    with pytest.raises(InputError, match="No image of"):
        WeightedSampler.from_corpus(corpus.with_column("error", ["broken"] * N))


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [[1.0]], [float("inf"), 1]])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(InputError, match="Weights must be numbers"):
        WeightedSampler(weights)


# Captions


def test_partial_duplicates_take_any_caption_and_all_others_their_first(corpus):
    policy = CaptionPolicy.from_corpus(curate.duplicate(corpus, "partial", rate=0.5, seed=0))
    rng = np.random.default_rng(0)
    assert policy.fresh.sum() == N // 2
    for row in range(N):
        said = {policy(row, rng) for _ in range(40)}
        both = {f"picture {row}", f"the other {row}"}
        assert said == set(policy.all_of(row)) == (both if policy.fresh[row] else {f"picture {row}"})


@pytest.mark.parametrize("style", ["none", "full"])
def test_other_duplication_takes_the_first_caption(corpus, style):
    planted = curate.duplicate(corpus, style, rate=1.0)
    for policy in (CaptionPolicy.from_corpus(planted), CaptionPolicy.from_corpus(corpus)):
        assert {policy(3, np.random.default_rng(seed)) for seed in range(9)} == {"picture 3"}
    bare = CaptionPolicy.from_corpus(corpus.with_column("captions", [[]] * N))
    assert bare(0, np.random.default_rng(0)) == ""


# The data set


def test_an_item_is_the_scaled_and_cropped_picture_with_its_caption(corpus):
    items = CaptionedImages(corpus, 8)
    assert len(items) == N
    item = items[3]
    picture = images.decode(corpus.read(3))
    assert picture.shape == (12, 20, 3)
    expected = images.centre_crop(images.resize_short(picture, 8), 8)
    torch.testing.assert_close(item["image"], torch.from_numpy(expected).permute(2, 0, 1) / 127.5 - 1)
    assert (item["image"].dtype, item["image"].shape) == (torch.float32, (3, 8, 8))
    assert (item["caption"], item["row"], item["id"]) == ("picture 3", 3, "03.png")
    batch = collate([items[0], items[3]])
    assert batch["image"].shape == (2, 3, 8, 8)
    assert (batch["caption"], batch["row"]) == (["picture 0", "picture 3"], [0, 3])
    plain = CaptionedImages(corpus, 8, transform=lambda picture: picture)
    assert np.array_equal(collate([plain[3]])["image"][0], expected)


def test_crops_flips_and_captions_are_drawn_anew_and_again_by_epoch(corpus):
    policy = CaptionPolicy(corpus.captions, np.ones(N, dtype=bool))
    items = CaptionedImages(corpus, 8, policy=policy, random_crop=True, flip=True, seed=4, transform=lambda each: each)

    def epoch(number):
        items.set_epoch(number)
        return [(each["image"].tobytes(), each["caption"]) for each in (items[3] for _ in range(30))]

    first = epoch(0)
    whole = images.resize_short(images.decode(corpus.read(3)), 8)
    crops = [whole[:, left : left + 8] for left in range(whole.shape[1] - 7)]
    possible = {crop.tobytes() for crop in crops} | {np.ascontiguousarray(crop[:, ::-1]).tobytes() for crop in crops}
    assert {image for image, _ in first} <= possible
    assert len({image for image, _ in first}) > 5
    assert {caption for _, caption in first} == {"picture 3", "the other 3"}
    assert epoch(1) != first
    assert epoch(0) == first


def test_worker_processes_draw_anew_in_each_epoch(corpus):
    policy = CaptionPolicy(corpus.captions, np.ones(N, dtype=bool))
    items = CaptionedImages(corpus, 8, policy=policy)
    torch.manual_seed(0)
    loader = DataLoader(items, 4, num_workers=1, collate_fn=collate)
    epochs = [[caption for batch in loader for caption in batch["caption"]] for _ in range(2)]
    assert epochs[0] != epochs[1]
    torch.manual_seed(0)
    assert [caption for batch in loader for caption in batch["caption"]] == epochs[0]


def test_a_row_that_cannot_be_read_says_why(corpus):
    broken = corpus.with_column("error", ["truncated PNG"] + [None] * (N - 1))
    with pytest.raises(ImageError, match="truncated PNG"):
        CaptionedImages(broken, 8)[0]


# What `train` keeps


def test_a_step_is_drawn_by_seed_and_step_alone(corpus):
    told = recipe(caption_dropout=0.5, flip=True, batch_size=400)
    policy, sampler = CaptionPolicy.from_corpus(corpus), WeightedSampler.from_corpus(corpus, seed=told.seed)
    one, two, other = (draw(step, Tiny(), told, sampler, policy, MitigationStack()) for step in (4, 4, 5))
    for field in dataclasses.fields(one):
        a, b, c = (getattr(each, field.name) for each in (one, two, other))
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)
    assert one.dropped.mean() == pytest.approx(0.5, abs=0.1)
    assert [caption == "" for caption in one.captions] == one.dropped.tolist()
    assert one.flips.mean() == pytest.approx(0.5, abs=0.1)
    assert one.noise.std() == pytest.approx(1, abs=0.02)
    assert one.sigma.log().median() == pytest.approx(0, abs=0.2)
    assert all(caption in ("", f"picture {row}") for row, caption in zip(one.rows, one.captions, strict=True))


@pytest.mark.parametrize("random_crop", [False, True])
def test_latents_are_the_same_kept_or_not(corpus, monkeypatch, random_crop):
    told = recipe(flip=True, random_crop=random_crop)
    rows, flips = np.array([3, 0, 3, 7]), np.array([True, False, False, True])
    places = np.array([[0, 0.9], [0.5, 0.5], [0, 0.0], [0.1, 0.1]])
    kept = LatentCache(corpus, Tiny(), told, None).latents(rows, flips, places)
    pictures = LatentCache(corpus, Tiny(), dataclasses.replace(told, cache_latents=False), None)
    monkeypatch.setattr(data, "KEPT_BYTES", 0)
    neither = LatentCache(corpus, Tiny(), told, None)
    assert torch.equal(kept, pictures.latents(rows, flips, places))
    assert torch.equal(kept, neither.latents(rows, flips, places))
    whole = images.resize_short(images.decode(corpus.read(3)), 8)
    left = (np.array([0.9, 0.0]) * (whole.shape[1] - 7)).astype(int) if random_crop else [(whole.shape[1] - 8) // 2] * 2
    for index, at in ((0, left[0]), (2, left[1])):
        crop = whole[:, at : at + 8]
        crop = crop[:, ::-1] if flips[index] else crop
        assert torch.equal(kept[index], data.to_tensor(np.ascontiguousarray(crop)))


def test_texts_are_encoded_once_where_they_fit(corpus, monkeypatch):
    calls = []

    class Counted(Tiny):
        def condition(self, captions):
            calls.extend(captions)
            return Tiny.condition(self, captions)

    captions = [f"caption {index % 70}" for index in range(90)]
    reports = []
    texts = TextEmbeddingCache(Counted(), captions, progress=lambda *report: reports.append(report))
    assert sorted(calls) == sorted(set(captions))
    assert reports[-1] == ("encoding captions", 70, 70)
    told = texts(captions[3:6])
    assert len(calls) == 70
    assert torch.equal(told.text, Tiny().condition(captions[3:6]).text)
    # One it was not told of, the first time it is asked for, or before.
    for _ in range(2):
        assert torch.equal(texts(["new", captions[3], "new"]).text, Tiny().condition(["new", captions[3], "new"]).text)
    texts.keep(["newer", "new"])
    assert torch.equal(texts(["newer"]).text, Tiny().condition(["newer"]).text)
    assert calls[70:] == ["new", "newer"]
    texts = TextEmbeddingCache(Counted(), captions, cache=False)
    before = len(calls)
    assert torch.equal(texts(captions[3:6]).text, told.text)
    texts.keep(captions)
    assert len(calls) == before + 3


def test_texts_are_kept_up_to_a_number_of_bytes(monkeypatch):
    calls = []

    class Counted(Tiny):
        def condition(self, captions):
            calls.append(list(captions))
            return Tiny.condition(self, captions)

    # A caption of Tiny takes 32 bytes.
    monkeypatch.setattr(encoded_cache, "KEPT_BYTES", 70)
    texts = TextEmbeddingCache(Counted(), ["a", "b", "c", "d"])
    for _ in range(2):
        assert torch.equal(texts(["d", "a", "d", "b"]).text, Tiny().condition(["d", "a", "d", "b"]).text)
    assert calls == [["a", "b", "c", "d"], ["d"], ["d"]]


def test_texts_that_are_not_the_training_sets_make_way_for_others(monkeypatch):
    calls = []

    class Counted(Tiny):
        def condition(self, captions):
            calls.append(list(captions))
            return Tiny.condition(self, captions)

    # Room for ten captions, and two more of those that are made.
    monkeypatch.setattr(encoded_cache, "KEPT_BYTES", 10 * 32 * 2)
    texts = TextEmbeddingCache(Counted(), ["a"], ["b"])
    for captions in (["b"], ["one"], ["two"], ["one"], ["three"], ["a", "b", "one"], ["three", "four", "one"], ["two"]):
        assert torch.equal(texts(captions).text, Tiny().condition(captions).text)
    # "two" made way for "three", as "one" was used since; and "three" for "four", which was asked for with it.
    assert calls == [["a"], ["b"], ["one"], ["two"], ["three"], ["four"], ["two"]]
    calls.clear()
    # Those that are to come stay until others are to come, and no more are encoded than there is room for.
    texts.keep(["five", "six", "a", "b"])
    for caption in ("seven", "five", "six", "seven"):
        texts([caption])
    texts.keep(["five", "eight"])
    texts(["eight", "five"])
    assert calls == [["five", "six"], ["seven"], ["seven"], ["eight"]]
    calls.clear()
    made = [f"made {index:03d}" for index in range(200)]
    texts.keep(made)
    assert calls == [made[:64]]


def test_a_model_is_told_of_by_its_spec(corpus):
    @dataclasses.dataclass(frozen=True)
    class Around(Tiny):
        inner: object = dataclasses.field(default_factory=lambda: torch.nn.Linear(1, 1))

        def encode(self, pictures):
            return torch.zeros(len(pictures), 1, 1, 1)

    told = recipe()
    with pytest.raises(TrainingError, match=f"^{told.model} makes latents of shape") as caught:
        LatentCache(corpus, Around(), told, None)
    assert "Linear" in str(Around())
    assert "Linear" not in str(caught.value)


# The patch of another's training script


# How a script such as diffusers' train_text_to_image.py makes its batches, from its names of things: a data set whose
# items are transformed when they are taken, `tokenize_captions`, `collate_fn`, and a loader that shuffles.
SCRIPT = """
dataset = load_dataset("imagefolder", data_files={"train": os.path.join(args.train_data_dir, "**")}, cache_dir=cache)
image_column, caption_column = args.image_column, args.caption_column

def tokenize_captions(examples, is_train=True):
    chosen = [each if isinstance(each, str) else random.choice(each) for each in examples[caption_column]]
    return tokenizer(chosen)

def preprocess_train(examples):
    examples["pixel_values"] = [train_transforms(image.convert("RGB")) for image in examples[image_column]]
    examples["input_ids"] = tokenize_captions(examples)
    return examples

train_dataset = dataset["train"].with_transform(preprocess_train)

def collate_fn(examples):
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    input_ids = torch.stack([example["input_ids"] for example in examples])
    return {"pixel_values": pixel_values, "input_ids": input_ids}

train_dataloader = torch.utils.data.DataLoader(
    train_dataset,
    shuffle=True,
    collate_fn=collate_fn,
    batch_size=args.train_batch_size,
)
"""
# In docs/training.md for people: eleven lines.
PATCH = """
-    pixel_values = torch.stack([example["pixel_values"] for example in examples])
-    input_ids = torch.stack([example["input_ids"] for example in examples])
-    shuffle=True,
+from copyscope import Corpus
+from copyscope.curation import curate
+from copyscope.diffusion import CaptionedImages, WeightedSampler
+corpus = curate.duplicate(Corpus.open(args.train_data_dir), "full", rate=0.05, factor=5, seed=args.seed)
+train_dataset = CaptionedImages(corpus, args.resolution, seed=args.seed, flip=args.random_flip)
+    pixel_values = torch.stack([example["image"] for example in examples])
+    input_ids = tokenize_captions({caption_column: [example["caption"] for example in examples]})
+    sampler=WeightedSampler.from_corpus(corpus, seed=args.seed),
"""


def patched(script):
    lines = PATCH.strip().splitlines()
    old, new = ([line[1:] for line in lines if line[0] == sign] for sign in "-+")
    assert len(lines) == 11
    script = script.replace("\ndef collate_fn", "\n".join(["", *new[:5], "", "def collate_fn"]))
    for before, after in zip(old, new[5:], strict=True):
        assert script.count(before) == 1
        script = script.replace(before, after)
    return script


def batches(script, folder, cache):
    """Two epochs of the batches a script makes, each as (pixels, caption)."""
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()

    def transform(picture):
        pixels = images.centre_crop(images.resize_short(np.array(picture), 8), 8)
        return data.to_tensor(pixels)

    def tokenizer(captions):
        return torch.tensor([[int(word) for word in caption.split() if word.isdigit()] for caption in captions])

    args = SimpleNamespace(train_data_dir=str(folder), image_column="image", caption_column="captions", resolution=8,
                           random_flip=False, train_batch_size=4, seed=0)  # fmt: skip
    names = {"args": args, "load_dataset": load_dataset, "os": __import__("os"), "random": random, "torch": torch,
             "tokenizer": tokenizer, "train_transforms": transform, "cache": str(cache)}  # fmt: skip
    exec(script, names)
    epochs = []
    for _ in range(2):
        made = list(names["train_dataloader"])
        assert all(batch["pixel_values"].shape[1:] == (3, 8, 8) for batch in made)
        epochs.append([(pixels, int(token)) for batch in made
                       for pixels, token in zip(batch["pixel_values"], batch["input_ids"], strict=True)])  # fmt: skip
    return epochs


def test_eleven_lines_put_duplication_into_a_script_of_diffusers(tmp_path):
    pytest.importorskip("datasets")
    folder = write_corpus(tmp_path / "train")
    corpus = Corpus.open(folder)
    pictures = [images.centre_crop(images.resize_short(images.decode(corpus.read(row)), 8), 8) for row in range(N)]
    plain = batches(SCRIPT, folder, tmp_path / "cache")
    ours = batches(patched(SCRIPT).replace("rate=0.05", "rate=0.25"), folder, tmp_path / "cache")
    for epochs in (plain, ours):
        for pixels, row in [*epochs[0], *epochs[1]]:
            assert torch.equal(pixels, data.to_tensor(pictures[row]))
    assert [sorted(row for _, row in epoch) for epoch in plain] == [list(range(N))] * 2
    rows = [[row for _, row in epoch] for epoch in ours]
    assert rows[0] != rows[1]
    assert [len(epoch) for epoch in rows] == [N, N]
    planted = curate.duplicate(corpus, "full", rate=0.25, factor=5, seed=0)
    assert rows == [WeightedSampler.from_corpus(planted, seed=0).draw(epoch, N).tolist() for epoch in (0, 1)]
