"""The captioner: a tiny BLIP saved to disk, loaded and sampled as a real one would be."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from copyscope.diffusion.text.captioner import Captioner, _Draw  # noqa: E402
from copyscope.errors import InputError  # noqa: E402
from tests.models import tiny_blip  # noqa: E402

WORDS = {"a", "red", "blue", "disc", "square", "on", "sand", "snow", "with", "and"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def captioner(folder):
    return Captioner(str(folder))


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, 40, 3), dtype=np.uint8) for height in (30, 40, 50, 60)]


def test_each_picture_gets_its_captions_in_the_words_of_the_model(captioner, pictures):
    found = captioner.caption(pictures, 3)
    assert [len(some) for some in found] == [3] * 4
    assert {word for some in found for text in some for word in text.split()} <= WORDS
    assert len({text for some in found for text in some}) > 6


def test_captions_depend_on_the_picture_and_the_seed_alone(captioner, pictures):
    found = captioner.caption(pictures, 2, seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert captioner.caption(pictures[::-1], 2, seed=3) == found[::-1]
    assert captioner.caption(pictures[2:3], 2, seed=3) == found[2:3]
    torch.set_rng_state(state)
    assert captioner.caption(pictures, 2, seed=4) != found


def test_the_global_generator_is_left_alone(captioner, pictures):
    before = torch.get_rng_state()
    captioner.caption(pictures[:1])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_small_nucleus_leaves_the_likeliest_token(folder, pictures):
    found = Captioner(str(folder), top_p=1e-6).caption(pictures[:1], 4)
    assert len(set(found[0])) == 1


def test_captions_end_at_the_limit(folder, pictures):
    found = Captioner(str(folder), tokens=2).caption(pictures, 4)
    assert max(len(text.split()) for some in found for text in some) == 2


def test_tokens_are_drawn_with_the_probabilities_of_the_model():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2, 0.0])).repeat(20_000, 1)
    left = _Draw(0)(torch.zeros(20_000, 1), logits)
    assert torch.equal(left.isfinite().sum(1), torch.ones(20_000))
    share = torch.bincount(left.argmax(1), minlength=4) / 20_000
    assert torch.allclose(share, torch.tensor([0.5, 0.3, 0.2, 0.0]), atol=0.015)


def test_a_folder_as_the_hub_has_it_is_read(folder, pictures, tmp_path):
    """With preprocessor_config.json, as BLIP's authors wrote it, and no processor_config.json."""
    for path in folder.iterdir():
        if path.name != "processor_config.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    settings |= {"processor_class": "BlipProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert Captioner(str(tmp_path)).caption(pictures, 2) == Captioner(str(folder)).caption(pictures, 2)


def test_a_folder_without_a_model_is_refused(tmp_path, clip_folder, pictures):
    for folder in (tmp_path / "none", tmp_path, clip_folder):
        with pytest.raises(InputError, match=r"holds no image-to-text model with its processor: .*\n.*BLIP"):
            Captioner(str(folder)).caption(pictures[:1])
