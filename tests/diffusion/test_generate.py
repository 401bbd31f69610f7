from __future__ import annotations

import dataclasses
import errno
import json
from collections import Counter

import numpy as np
import pytest
import torch

from copyscope import recipes
from copyscope.data.corpus import Corpus
from copyscope.diffusion import generate as module
from copyscope.diffusion.denoiser import NearestImage, guided
from copyscope.diffusion.generate import SampleRecipe, block_size, generate, sample
from copyscope.diffusion.models.empirical import Empirical
from copyscope.diffusion.models.small_unet import SmallUNet
from copyscope.diffusion.recipe import TrainRecipe
from copyscope.diffusion.run import Run
from copyscope.diffusion.training.train import train
from copyscope.errors import InputError, PartError
from copyscope.imaging import images
from tests import worlds

QUICK = SampleRecipe(n_images=5, steps=3)
SIDE = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six captioned training images, the last of which cannot be read, and one of weight 0 before it."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(2)
    rows = []
    for number in range(6):
        picture = images.resize(worlds.picture(rng)[0], (SIDE, SIDE))
        (folder / f"{number}.png").write_bytes(images.encode(picture, "png") if number < 5 else b"no image")
        rows.append(
            {"file_name": f"{number}.png", "captions": [f"caption {number}", "other"], "weight": float(number != 4)}
        )
    worlds.write_metadata(folder, rows)
    return folder


@pytest.fixture(scope="module")
def copier(corpus):
    return Empirical(str(corpus), SIDE)


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    """A run of a tiny network, two steps long."""
    spec = "small_unet(size=16, components=8, channels=(32,), tokens=4)"
    recipe = TrainRecipe(model=spec, steps=2, batch_size=2, tracker="none")
    return train(corpus, tmp_path_factory.mktemp("run") / "run", recipe)


@pytest.fixture(scope="module")
def network():
    """A small convolutional network whose images are no blanks: its fresh weights, shaken."""
    model = SmallUNet(size=32, components=24, channels=(32, 32), tokens=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.network.parameters():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    return model


def pixels(made):
    return [images.decode(made.read(row)) for row in range(len(made))]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_made_is_a_corpus_with_its_prompts_seeds_and_recipe(copier, tmp_path):
    made = generate(copier, tmp_path / "out", QUICK, captions=["caption 1", "a dog"], ids=["1.png", None])
    assert made.ids == [f"{row:06d}.png" for row in range(5)]
    assert made.prompts == ["caption 1", "a dog", "caption 1", "a dog", "caption 1"]
    assert made.table["source_id"].to_pylist() == ["1.png", None, "1.png", None, "1.png"]
    assert made.table["error"].null_count == 5
    assert set(made.table["recipe"].to_pylist()) == {f"{copier}, steps=3, sampler=euler, schedule=karras, guidance=1.0"}
    seeds = made.table["seed"].to_pylist()
    assert len(set(seeds)) == 5
    training = images.decode((tmp_path.parent / copier.corpus / "1.png").read_bytes())
    assert np.array_equal(pixels(made)[2], training)


def test_a_seed_and_a_prompt_make_one_image_again(network, tmp_path):
    made = generate(network, tmp_path / "out", QUICK, captions=["one", "two", "three"])
    alone = sample(network, network.condition([made.prompts[3]]), [made.table["seed"][3].as_py()], QUICK)
    assert np.array_equal(alone[0], pixels(made)[3])


def test_more_images_begin_with_the_same_ones(copier, tmp_path):
    few = generate(copier, tmp_path / "few", QUICK, captions=["", ""])
    more = generate(copier, tmp_path / "more", dataclasses.replace(QUICK, n_images=8), captions=["", ""])
    other = generate(copier, tmp_path / "other", dataclasses.replace(QUICK, seed=1), captions=["", ""])
    assert same(pixels(few), pixels(more)[:5])
    assert not set(few.table["seed"].to_pylist()) & set(other.table["seed"].to_pylist())


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_the_batch_size_changes_no_pixel_of_a_convolutional_network(network, tmp_path, sampler, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_IMAGES", 4)
    recipe = SampleRecipe(n_images=9, steps=8, sampler=sampler, guidance=1.5)
    captions = [f"thing {row}" for row in range(9)]
    made = [
        pixels(generate(network, tmp_path / str(size), dataclasses.replace(recipe, batch_size=size), captions=captions))
        for size in (1, 2, 7, 64)
    ]
    assert np.std(np.stack(made[0])) > 10
    assert all(same(made[0], other) for other in made[1:])


def test_a_network_is_shown_one_number_of_images_at_a_time_whatever_is_asked(network):
    shown = []

    @dataclasses.dataclass(frozen=True)
    class Counted(SmallUNet):
        def __call__(self, x, sigma, conditioning):
            shown.append((len(x), len(sigma), len(conditioning)))
            return super().__call__(x, sigma, conditioning)

    counted = Counted(**{name: getattr(network, name) for name in ("size", "components", "channels", "tokens")})
    recipe = SampleRecipe(n_images=80, steps=1)
    for n in (1, 65):
        assert len(sample(counted, counted.condition(["x"] * n), range(n), recipe)) == n
    assert set(shown) == {(64, 64, 64)}


def test_blocks_are_smaller_where_latents_are_larger():
    assert block_size((64, 8, 8), 256) == 64
    assert block_size((4, 64, 64), 256) == 16
    assert block_size((4, 128, 128), 256) == 4
    assert block_size((16, 256, 256), 256) == 1
    assert block_size((64, 8, 8), 3) == 3


def test_the_same_call_again_makes_what_is_missing_and_no_more(copier, tmp_path, monkeypatch):
    out, captions = tmp_path / "out", ["caption 0", "", "caption 2"]
    first = pixels(generate(copier, out, QUICK, captions=captions))
    # As a process killed in the middle leaves it.
    (out / "metadata.jsonl").unlink()
    (out / "000001.png").unlink()
    (out / "000003.png").unlink()
    (out / ".000003.png.part").write_bytes(b"half")
    asked = []
    whole = module.sample
    monkeypatch.setattr(
        module,
        "sample",
        lambda model, told, *rest, **more: asked.append(len(told)) or whole(model, told, *rest, **more),
    )
    again = generate(copier, out, dataclasses.replace(QUICK, batch_size=1), captions=captions)
    assert sum(asked) == 2
    assert same(pixels(again), first)
    # What is whole is not made again, nor the model looked at.
    monkeypatch.setattr(module, "sample", None)
    assert same(pixels(generate(copier, out, QUICK, captions=captions)), first)


@pytest.mark.parametrize("signals", [(), ("text_conditional_norm",)])
def test_deleted_and_empty_images_of_a_whole_folder_are_made_again(network, tmp_path, signals):
    out, recipe = tmp_path / "out", dataclasses.replace(QUICK, signals=signals, batch_size=2)
    first = generate(network, out, recipe, captions=["a"])
    before, scores = {path.name: path.read_bytes() for path in out.iterdir()}, first.table.column_names
    (out / "000001.png").unlink()
    (out / "000003.png").write_bytes(b"")
    again = generate(network, out, recipe, captions=["a"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert again.table.column_names == scores


@pytest.mark.parametrize("signals", [(), ("text_conditional_norm",)])
def test_more_images_go_on_from_a_finished_folder_and_fewer_are_refused(network, tmp_path, signals, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_IMAGES", 4)
    few = dataclasses.replace(QUICK, signals=signals)
    many = dataclasses.replace(few, n_images=9)
    generate(network, tmp_path / "out", few, captions=["a", "b"])
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    generate(network, tmp_path / "out", many, captions=["a", "b"])
    generate(network, tmp_path / "at once", many, captions=["a", "b"])
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in made.items())
    for path in (tmp_path / "at once").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    with pytest.raises(InputError, match=r"differ in n_images\.\nIt has 9 images"):
        generate(network, tmp_path / "out", few, captions=["a", "b"])
    with pytest.raises(InputError, match="differ in prompts"):
        generate(network, tmp_path / "out", dataclasses.replace(many, n_images=12), captions=["a", "c"])


def test_metadata_is_written_last(copier, tmp_path, monkeypatch):
    written = []
    whole = module.write_bytes
    monkeypatch.setattr(module, "write_bytes", lambda data, path: written.append(path.name) or whole(data, path))
    generate(copier, tmp_path / "out", QUICK, captions=["a"])
    assert written == [*(f"{row:06d}.png" for row in range(5)), "metadata.jsonl"]


@pytest.mark.parametrize(
    ("change", "captions", "named"),
    [({"steps": 4}, ["a"], "steps"), ({"seed": 1, "guidance": 2.0}, ["a"], "guidance, seed"), ({}, ["b"], "prompts")],
)
def test_a_folder_of_other_images_is_refused(copier, tmp_path, change, captions, named):
    generate(copier, tmp_path / "out", QUICK, captions=["a"])
    with pytest.raises(InputError, match=f"differ in {named}\\."):
        generate(copier, tmp_path / "out", dataclasses.replace(QUICK, **change), captions=captions)


def test_a_folder_of_another_model_or_of_anything_else_is_refused(copier, tmp_path):
    generate(copier, tmp_path / "out", QUICK, captions=["a"])
    with pytest.raises(InputError, match="differ in model"):
        generate(dataclasses.replace(copier, bandwidth=0.1), tmp_path / "out", QUICK, captions=["a"])
    (tmp_path / "out" / "recipe.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        generate(copier, tmp_path / "out", QUICK, captions=["a"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        generate(copier, tmp_path / "mine", QUICK, captions=["a"])
    with pytest.raises(InputError, match="not empty"):
        generate(copier, tmp_path / "mine" / "letter.txt", QUICK, captions=["a"])


def finder(fingerprint=None):
    """Finds a black picture, everywhere."""

    def find(pictures):
        return [NearestImage(0.9, "caption 0", np.zeros((SIDE, SIDE, 3), np.uint8)) for _ in pictures]

    if fingerprint:
        find.fingerprint = fingerprint
    return find


def test_a_folder_of_images_that_depend_on_another_training_set_is_refused(copier, tmp_path):
    recipe = dataclasses.replace(QUICK, guidance=2.0, mitigations=("antimemorization_guidance",))

    def saved(out, name, recipe=recipe):
        generate(copier, tmp_path / out, recipe, captions=["a"], nearest=finder(name))
        return json.loads((tmp_path / out / "recipe.json").read_text())

    assert [saved("out", "one")["nearest"], saved("own", None)["nearest"]] == ["one", None]
    assert [saved("out", "one")["nearest"], saved("own", None)["nearest"]] == ["one", None]
    for out, name in (("out", "two"), ("out", None), ("own", "one")):
        with pytest.raises(InputError, match=r"differ in nearest\."):
            saved(out, name)
    # Nobody looks for it; and a folder from before it was kept goes on.
    plain = dataclasses.replace(QUICK, guidance=2.0, mitigations=("delayed_guidance",))
    assert "nearest" not in saved("plain", "one", plain)
    saved("plain", "two", plain)
    before = {name: value for name, value in saved("out", "one").items() if name != "nearest"}
    (tmp_path / "out" / "recipe.json").write_text(json.dumps(before))
    assert saved("out", "two") == before


def test_a_full_disk_is_told_and_what_is_there_is_kept(copier, tmp_path, monkeypatch):
    whole = module.write_bytes

    def full(data, path):
        if path.name == "000002.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(data, path)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_bytes", full)
        with pytest.raises(InputError, match="No space left"):
            generate(copier, tmp_path / "out", QUICK, captions=["a"])
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    assert len(generate(copier, tmp_path / "out", QUICK, captions=["a"])) == 5


def test_training_captions_of_a_run_come_each_once_before_any_comes_again(run, tmp_path):
    made = generate(run.folder, tmp_path / "out", SampleRecipe(n_images=10, steps=2, seed=3))
    sources = made.table["source_id"].to_pylist()
    readable = {f"{number}.png" for number in range(4)}
    assert set(sources[:4]) == set(sources[4:8]) == readable, "the unreadable and the never drawn are left out"
    assert Counter(sources).most_common(1)[0][1] == 3
    assert made.prompts == [f"caption {source[0]}" for source in sources]
    other = generate(run, tmp_path / "other", SampleRecipe(n_images=10, steps=2, seed=4))
    assert other.table["source_id"].to_pylist() != sources


def test_a_run_and_its_folder_give_the_same_and_tell_no_path(run, tmp_path):
    recipe = SampleRecipe(n_images=3, steps=2)
    one = generate(run, tmp_path / "one", recipe)
    two = generate(str(run.folder), tmp_path / "two", recipe)
    assert same(pixels(one), pixels(two))
    saved = json.loads((tmp_path / "one" / "recipe.json").read_text())
    assert recipes.from_dict(SampleRecipe, saved["recipe"]) == recipe
    assert saved["model"] == run.recipe.model
    assert saved["versions"]["copyscope"]
    for name in ("recipe.json", "metadata.jsonl"):
        assert str(tmp_path.parent) not in (tmp_path / "one" / name).read_text()


def test_images_of_a_run_that_was_trained_anew_are_told_apart(run, tmp_path):
    generate(run, tmp_path / "out", QUICK)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("recipe.json", "summary.json"):
        (other / name).write_bytes((run.folder / name).read_bytes())
    (other / "train.parquet").write_bytes((run.folder / "train.parquet").read_bytes())
    (other / "model").symlink_to(run.folder / "model")
    summary = run.summary | {"seconds": -1.0}
    (other / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match="differ in run"):
        generate(Run.open(other), tmp_path / "out", QUICK)


def test_prompts_of_a_file_are_taken_in_turn_and_one_prompt_for_all(copier, tmp_path):
    (tmp_path / "prompts.txt").write_text("caption 1\n\n  caption 2 \n")
    recipe = dataclasses.replace(QUICK, prompts=str(tmp_path / "prompts.txt"))
    made = generate(copier, tmp_path / "out", recipe)
    assert made.prompts == ["caption 1", "caption 2", "caption 1", "caption 2", "caption 1"]
    (tmp_path / "prompts.txt").write_text("caption 3\n")
    with pytest.raises(InputError, match="differ in prompts"):
        generate(copier, tmp_path / "out", recipe)
    spec = generate(str(copier), tmp_path / "one", dataclasses.replace(QUICK, prompts="text:caption 3"))
    assert spec.prompts == ["caption 3"] * 5
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="UTF-8"):
        generate(copier, tmp_path / "bytes", recipe)
    with pytest.raises(InputError, match="cannot be read"):
        generate(copier, tmp_path / "none", dataclasses.replace(QUICK, prompts=str(tmp_path / "missing.txt")))


def test_without_prompts_or_with_ids_that_do_not_fit(copier, tmp_path):
    with pytest.raises(InputError, match="no prompts"):
        generate(copier, tmp_path / "out", QUICK)
    with pytest.raises(InputError, match="no prompts"):
        generate(copier, tmp_path / "out", QUICK, captions=[])
    with pytest.raises(InputError, match="1 captions and 2 ids"):
        generate(copier, tmp_path / "out", QUICK, captions=["a"], ids=["1", "2"])
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_none(tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        generate(f"{tmp_path}/missing", tmp_path / "out", QUICK, captions=["a"])
    with pytest.raises(InputError, match="holds no finished training"):
        generate(tmp_path, tmp_path / "out", QUICK, captions=["a"])
    with pytest.raises(PartError, match="Did you mean 'empirical'"):
        generate("empiricle", tmp_path / "out", QUICK, captions=["a"])


def test_guidance_moves_from_what_the_negative_prompt_gives_to_what_the_prompt_gives(network):
    told, null = network.condition(["a red disc", "fox"]), network.condition(["snow", "snow"])
    steps = []
    recipe = SampleRecipe(n_images=2, steps=2, guidance=3.0, negative="snow")
    sample(network, told, [1, 2], recipe, on_step=steps.append)
    assert [step.i for step in steps] == [0, 1]
    assert [step.n_steps for step in steps] == [2, 2]
    for step in steps:
        with torch.no_grad():
            torch.testing.assert_close(step.conditional, network(step.x, step.sigma, told), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(step.unconditional, network(step.x, step.sigma, null), atol=1e-4, rtol=1e-4)
        assert torch.equal(step.denoised, guided(step.conditional, step.unconditional, 3.0))
        assert step.scale.tolist() == [3.0, 3.0]
    assert not torch.allclose(steps[0].conditional, steps[0].unconditional, atol=1e-3)
    plain = []
    sample(network, told, [1, 2], dataclasses.replace(recipe, guidance=1.0, sampler="heun"), on_step=plain.append)
    assert [step.i for step in plain] == [0, 1], "the second call of a step of Heun's is none of its own"
    assert all(step.unconditional is None and step.denoised is step.conditional for step in plain)
    assert all(step.scale.tolist() == [1.0, 1.0] for step in plain)
    assert torch.equal(plain[0].x, steps[0].x)


def test_numbers_that_are_not_finite_are_no_image(copier, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Failing(Empirical):
        def __call__(self, x, sigma, conditioning):
            return x * torch.nan

    with pytest.raises(InputError, match=r"Failing gives numbers that are not finite"):
        generate(Failing(copier.corpus, SIDE), tmp_path / "out", QUICK, captions=["a"])


def test_progress_counts_all_images_with_those_that_were_there(copier, tmp_path):
    told = []
    recipe = SampleRecipe(n_images=140, steps=1, batch_size=32)
    generate(copier, tmp_path / "out", recipe, captions=["a"], progress=lambda *each: told.append(each))
    assert told == [("generating", 64, 140), ("generating", 128, 140), ("generating", 140, 140)]
    (tmp_path / "out" / "metadata.jsonl").unlink()
    (tmp_path / "out" / "000007.png").unlink()
    told.clear()
    generate(copier, tmp_path / "out", recipe, captions=["a"], progress=lambda *each: told.append(each))
    assert told == [("generating", 140, 140)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_images": 0}, "n_images must be at least 1, not 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"sampler": "heum"}, "sampler cannot be 'heum'.\nThere are: euler, heun, dpmpp_2m"),
        ({"schedule": "linear"}, "schedule cannot be 'linear'.\nThere are: karras, flow"),
        ({"guidance": -1.0}, "guidance must be a number from 0 on"),
        ({"guidance": float("nan")}, "guidance must be a number from 0 on"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_a_recipe_that_cannot_be_names_the_field(values, message):
    with pytest.raises(InputError) as caught:
        SampleRecipe(**values)
    assert message in str(caught.value)


def test_the_folder_opens_as_the_same_corpus_later(copier, tmp_path):
    made = generate(copier, tmp_path / "out", QUICK, captions=["a", "caption 2"], ids=[None, "2.png"])
    assert Corpus.open(tmp_path / "out").table.equals(made.table)
