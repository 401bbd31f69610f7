"""Stable Diffusion and its kin on tiny pipelines, against what diffusers itself computes of the same weights."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from copyscope import parts
from copyscope.data.corpus import Corpus
from copyscope.diffusion.generate import SampleRecipe, generate
from copyscope.diffusion.models import _pipelines, _schedules
from copyscope.diffusion.recipe import TrainRecipe
from copyscope.diffusion.training.train import train
from copyscope.errors import InputError, PartError
from copyscope.imaging import images
from tests.pipelines import (
    CAPTIONS,
    KINDS,
    assert_samples_alike,
    folders_of,
    loaded,
    loss_of,
    normal,
    pictures,
    rescheduled,
    small,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return folders_of(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def models(folders):
    """One model a kind, loaded once: for tests that change nothing in it."""
    return {kind: small(folder) for kind, folder in folders.items()}


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_diffusers(models, folders, kind, guidance):
    pipeline = loaded(folders[kind])
    ours = assert_samples_alike(models[kind], pipeline, guidance)
    config = pipeline.vae.config
    with torch.no_grad():
        decoded = pipeline.vae.decode(ours / config.scaling_factor + (config.shift_factor or 0)).sample
    theirs = pipeline.image_processor.postprocess(decoded, output_type="pil")
    np.testing.assert_allclose(np.stack(models[kind].decode(ours)), np.stack(theirs), atol=1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_loss_is_that_of_the_training_script_of_diffusers(folders, tmp_path, kind, prediction):
    from diffusers import DDPMScheduler

    folder = rescheduled(folders[kind], tmp_path / "pipeline", prediction_type=prediction)
    model = small(folder)
    times = torch.tensor([3, 250, 500, 998])
    latents, noise = model.encode(pictures()), normal(4, *model.shape)
    texts = (CAPTIONS * 2)[:4]
    with torch.no_grad():
        ours = loss_of(model, latents, noise, model.noise_levels((times + 0.5) / 1000), model.condition(texts))

    pipeline = loaded(folder)
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert scheduler.config.prediction_type == prediction
    with torch.no_grad(), _pipelines.quiet():
        encoded = pipeline.encode_prompt(
            texts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        added = None
        if kind == "sdxl":
            added = {"text_embeds": encoded[2], "time_ids": torch.tensor([[32, 32, 0, 0, 32, 32]]).repeat(4, 1)}
        noisy = scheduler.add_noise(latents, noise, times)
        targets = {"epsilon": noise, "v_prediction": scheduler.get_velocity(latents, noise, times), "sample": latents}
        found = pipeline.unet(noisy, times, encoded[0], added_cond_kwargs=added).sample
    theirs = torch.nn.functional.mse_loss(found, targets[prediction])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_loss_of_a_flow_is_the_error_of_its_velocity(models, folders, kind):
    model, pipeline = models[kind], loaded(folders[kind])
    time, latents, noise = (
        torch.tensor([0.1, 0.9]),
        normal(2, *models[kind].shape),
        normal(2, *models[kind].shape, seed=1),
    )
    with torch.no_grad(), _pipelines.quiet():
        ours = loss_of(model, latents, noise, time / (1 - time), model.condition(CAPTIONS))
        mixed = (1 - time).view(-1, 1, 1, 1) * latents + time.view(-1, 1, 1, 1) * noise
        if kind == "sd3":
            text, _, pooled, _ = pipeline.encode_prompt(CAPTIONS, CAPTIONS, CAPTIONS)
            found = pipeline.transformer(mixed, text, pooled, time * 1000).sample
        else:
            text, pooled, text_ids = pipeline.encode_prompt(CAPTIONS, CAPTIONS)
            packed = pipeline._pack_latents(mixed, *mixed.shape)
            ids = pipeline._prepare_latent_image_ids(2, 8, 8, "cpu", torch.float32)
            told = {"encoder_hidden_states": text, "pooled_projections": pooled, "txt_ids": text_ids, "img_ids": ids}
            found = pipeline.transformer(packed, timestep=time, guidance=torch.full((2,), 3.5), **told).sample
            found = pipeline._unpack_latents(found, 32, 32, 2)
    torch.testing.assert_close(ours, (found - (noise - latents)).square().mean(), rtol=1e-4, atol=0)


def test_times_are_whole_at_the_levels_of_the_table_and_between_elsewhere(models):
    schedule = models["sd1"]._schedule
    assert torch.equal(schedule.time(schedule.table), torch.arange(1000.0))
    between = (schedule.table[:-1] * schedule.table[1:]).sqrt()
    torch.testing.assert_close(schedule.time(between), torch.arange(999) + 0.5, rtol=0, atol=2e-2)
    assert schedule.time(torch.tensor([1e-6, 1e6])).tolist() == [0, 999]
    assert models["sd1"].sigmas == (schedule.table[0].item(), schedule.table[-1].item())
    assert {kind: model.schedule for kind, model in models.items() if model.schedule != "karras"} == dict.fromkeys(
        ("sd3", "flux"), "flow"
    )


def test_training_levels_of_a_ddpm_are_its_whole_times_equally_often(models):
    uniform = (torch.arange(4000) + 0.5) / 4000
    drawn = models["sd1"].noise_levels(uniform)
    table = models["sd1"]._schedule.table
    assert torch.equal(drawn, table.repeat_interleave(4))
    assert models["sd1"].noise_levels(torch.tensor([1.0])).item() == table[-1].item()


def test_training_levels_of_a_flow_are_logit_normal_times_that_lean_to_noise():
    uniform = (torch.arange(2000) + 0.5) / 2000
    levels = _schedules.Flow(1000, 3.0).levels(uniform)
    assert (levels.diff() >= 0).all()
    times = levels / (1 + levels)
    unshifted = times / (3 - 2 * times)  # The inverse of 3 t / (1 + 2 t).
    torch.testing.assert_close(torch.logit(unshifted).std(), torch.tensor(1.0), rtol=0.01, atol=0)
    assert times.median() == pytest.approx(0.75, abs=0.01)


def test_a_schedule_that_ends_in_pure_noise_has_the_last_level_of_diffusers(folders, tmp_path):
    from diffusers import EulerDiscreteScheduler

    folder = rescheduled(folders["sd2"], tmp_path / "pipeline", rescale_betas_zero_snr=True)
    theirs = EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler", timestep_spacing="trailing")
    model = small(folder)
    assert model.sigmas[1] == pytest.approx(float(theirs.sigmas.max()), rel=1e-4)
    with torch.no_grad():
        found = model(normal(1, *model.shape) * model.sigmas[1], torch.tensor([model.sigmas[1]]), model.condition([""]))
    assert found.isfinite().all()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_estimates_of_a_network_in_lower_precision_are_in_full(folders, tmp_path, prediction):
    folder = rescheduled(folders["sd1"], tmp_path / "pipeline", prediction_type=prediction)
    model = small(folder, precision="bfloat16")
    with torch.no_grad():
        assert model(normal(1, *model.shape), torch.ones(1), model.condition([""])).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_conditioning_of_a_caption_depends_on_no_other(models, kind):
    model = models[kind]
    both = model.condition([*CAPTIONS, CAPTIONS[0]])
    alone = model.condition(CAPTIONS[1:])
    assert len(both) == 3
    assert torch.equal(both.text[1], alone.text[0])
    assert torch.equal(both.text[0], both.text[2])
    assert not torch.equal(both.text[0], both.text[1])
    assert both.mask.all()
    assert (both.pooled is not None) == (kind in {"sdxl", "sd3", "flux"})
    assert len(model.condition([])) == 0


def test_null_caption_of_sdxl_is_zeros_where_its_pipeline_says_so(folders, models, tmp_path):
    assert not models["sdxl"].condition([""]).text.any()
    assert not models["sdxl"].condition([""]).pooled.any()
    folder = shutil.copytree(folders["sdxl"], tmp_path / "pipeline")
    index = json.loads((folder / "model_index.json").read_text()) | {"force_zeros_for_empty_prompt": False}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert small(folder).condition([""]).text.any()


def test_latents_are_the_mode_in_the_units_of_the_network(folders, models, tmp_path):
    for kind, shift in (("sd1", 0.0), ("sd3", 0.06)):
        pixels = torch.from_numpy(np.stack(pictures())).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        with torch.no_grad():
            mode = loaded(folders[kind]).vae.encode(pixels).latent_dist.mode()
        found = models[kind].encode(pictures())
        torch.testing.assert_close(found, (mode - shift) * 0.8, rtol=1e-4, atol=1e-5)
        assert torch.equal(models[kind].encode(pictures()[1:2])[0], found[1])

    folder = shutil.copytree(folders["sdxl"], tmp_path / "pipeline")
    config = json.loads((folder / "vae" / "config.json").read_text())
    config |= {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    mean, deviation = (torch.tensor(config[f"latents_{name}"]).view(1, 4, 1, 1) for name in ("mean", "std"))
    plain, normalised = models["sdxl"].encode(pictures()), small(folder).encode(pictures())
    torch.testing.assert_close(normalised, (plain / 0.8 - mean) * 0.8 / deviation)
    decoded = small(folder).decode(normalised)
    np.testing.assert_allclose(np.stack(decoded), np.stack(models["sdxl"].decode(plain)), atol=1)


def test_resolution_is_the_networks_own_or_what_is_asked_for(folders):
    assert [small(folders[kind], resolution=0).image_size for kind in ("sd1", "sdxl", "sd3", "flux")] == [
        32,
        32,
        32,
        256,
    ]
    model = small(folders["sd1"], resolution=48)
    assert (model.image_size, model.shape) == (48, (4, 24, 24))
    assert model.encode(pictures(1, 48)).shape == (1, 4, 24, 24)
    with pytest.raises(InputError, match=r"resolution of 33 .*\nTake a multiple of 2"):
        _ = small(folders["sd1"], resolution=33).shape


def test_spec_is_what_one_types():
    spec = "stable_diffusion(path='models/sd', lora_rank=8)"
    model = parts.load("models", spec)
    assert str(model) == spec
    with pytest.raises(PartError, match="precision"):
        parts.load("models", "stable_diffusion('models/sd', precision='int8')")
    with pytest.raises(PartError, match="lora_rank"):
        parts.load("models", "stable_diffusion('models/sd', lora_rank=-1)")


@pytest.fixture
def corpus(tmp_path):
    """Four pictures with captions."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = []
    for number, picture in enumerate(pictures()):
        (folder / f"{number}.png").write_bytes(images.encode(picture, "png"))
        rows.append(json.dumps({"file_name": f"{number}.png", "text": f"{CAPTIONS[0]} {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return Corpus.open(folder)


@pytest.mark.parametrize(("kind", "rank"), [("sd1", 0), ("sd2", 2), ("sdxl", 2), ("sd3", 0), ("flux", 2)])
def test_train_and_generate_take_it_as_any_model(folders, corpus, tmp_path, kind, rank):
    options = {"steps": 4, "batch_size": 2, "warmup_steps": 0, "learning_rate": 1e-3, "tracker": "none", "min_snr": 5.0}
    options |= {"gradient_checkpointing": True, "gradient_accumulation": 2, "caption_dropout": 0.5, "flip": True}
    model = small(folders[kind], lora_rank=rank)
    run = train(corpus, tmp_path / "run", TrainRecipe(model=str(model), **options))
    saved = list((tmp_path / "run" / "model").rglob("*.safetensors"))
    assert saved
    assert (saved[0].name == _pipelines.LORA) == bool(rank)
    x, sigma = normal(2, *model.shape), torch.ones(2)
    with torch.no_grad():
        before, after = (each(x, sigma, each.condition(CAPTIONS)) for each in (model, run.model))
    assert not torch.equal(before, after)
    recipe = SampleRecipe(n_images=3, steps=2, guidance=2.0)
    generated = generate(tmp_path / "run", tmp_path / "generated", recipe)
    assert len(generated) == 3
    assert {images.decode(generated.read(row)).shape for row in range(3)} == {(32, 32, 3)}
