"""Pipelines of diffusers: what they load, train in, save for others, refuse; and that they do it in silence."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch

from copyscope.diffusion.models import _pipelines
from copyscope.diffusion.models.stable_diffusion import StableDiffusion
from copyscope.errors import InputError
from tests.models import tiny_clip
from tests.pipelines import (
    CAPTIONS,
    KINDS,
    assert_samples_alike,
    fit,
    folders_of,
    loaded,
    loss_of,
    normal,
    pictures,
    small,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return folders_of(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def models(folders):
    """One model a kind, loaded once: for tests that change nothing in it."""
    return {kind: small(folder) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_trained_whole_is_saved_for_diffusers(folders, tmp_path, kind):
    model = small(folders[kind])
    before, after = fit(model)
    assert after < 0.9 * before
    modules = [part for part in model._pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert [part for part in modules if any(each.requires_grad for each in part.parameters())] == [model.network]
    model.save(tmp_path / "model")
    assert not [path for path in (tmp_path / "model").rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".pth"}]
    assert_samples_alike(model, loaded(tmp_path / "model"), 2.0)

    again = small(folders[kind]).with_weights(tmp_path / "model")
    x, sigma = normal(2, *model.shape), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        found, expected = (each(x, sigma, each.condition(CAPTIONS)) for each in (again, model))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_is_saved_for_diffusers(folders, tmp_path, kind):
    model = small(folders[kind], lora_rank=2, lora_alpha=6)
    trained = [name for name, parameter in model.network.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(
        "lora" in name and any(part in name for part in ("to_q", "to_k", "to_v", "to_out.0")) for name in trained
    )
    kept = {name: value.clone() for name, value in model.network.state_dict().items() if name not in trained}
    before, after = fit(model, steps=12)
    assert after < before
    assert all(torch.equal(model.network.state_dict()[name], value) for name, value in kept.items())
    model.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]

    pipeline = loaded(folders[kind])
    with _pipelines.quiet():
        pipeline.load_lora_weights(tmp_path)
    (options,) = getattr(pipeline, _pipelines.NETWORKS[type(pipeline).__name__]).peft_config.values()
    assert (options.r, options.lora_alpha) == (2, 6)
    assert_samples_alike(model, pipeline, 2.0)
    with pytest.raises(AssertionError):
        assert_samples_alike(model, loaded(folders[kind]), 2.0)

    again = small(folders[kind], lora_rank=2, lora_alpha=6).with_weights(tmp_path)
    x, sigma = normal(2, *model.shape), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        found, expected = (each(x, sigma, each.condition(CAPTIONS)) for each in (again, model))
    assert torch.equal(found, expected)


def test_a_new_lora_depends_on_its_seed_alone(folders):
    first, second, other = (small(folders["sd1"], lora_rank=2, seed=seed).network.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_of_gradients_changes_no_gradient(folders, kind):
    def gradients(asked):
        model = small(folders[kind])
        if asked:
            model.network.enable_gradient_checkpointing()
        latents = model.encode(pictures(2))
        loss_of(model, latents, normal(*latents.shape), torch.ones(2), model.condition(CAPTIONS)).backward()
        return [parameter.grad for parameter in model.network.parameters() if parameter.grad is not None]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other)


def test_half_precision_variants_are_trained_in_full(folders, tmp_path):
    pipeline = loaded(folders["sd1"]).to(torch.float16)
    with _pipelines.quiet():
        pipeline.save_pretrained(tmp_path, variant="fp16")
    assert list(tmp_path.glob("unet/*.fp16.safetensors"))
    model = small(tmp_path)
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}
    before, after = fit(model)
    assert after < before


@pytest.mark.parametrize("kind", KINDS)
def test_lower_precision_keeps_the_lora_and_what_goes_in_and_out_in_full(folders, models, kind):
    model = small(folders[kind], lora_rank=2, precision="bfloat16")
    kinds = {parameter.dtype for parameter in model.network.parameters() if parameter.requires_grad}
    assert kinds == {torch.float32}
    before, after = fit(model, steps=12)
    assert after < before
    conditioning, latents = model.condition(CAPTIONS), model.encode(pictures(2))
    full = models[kind]
    assert conditioning.text.dtype == torch.float32
    torch.testing.assert_close(conditioning.text, full.condition(CAPTIONS).text, rtol=0.1, atol=0.1)
    assert torch.equal(latents, full.encode(pictures(2)))


# Torch says so of every RMS norm under autocast.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_trains_weights_in_full(folders, kind):
    model = small(folders[kind])
    before, after = fit(model, mixed=True)
    assert after < 0.9 * before
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}


def test_what_is_no_pipeline_or_of_another_kind_is_said_so(folders, tmp_path, caplog):
    with pytest.raises(InputError, match=r"is no pipeline.*\n.*StableDiffusionPipeline"):
        _ = StableDiffusion(str(tiny_clip(tmp_path / "clip"))).network
    with pytest.raises(InputError, match="is no pipeline"):
        _ = StableDiffusion(str(tmp_path / "absent")).network
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(InputError, match=r"is a DDPMPipeline.*\n.*FluxPipeline"):
        _ = StableDiffusion(str(tmp_path)).network
    folder = shutil.copytree(folders["sd1"], tmp_path / "pipeline")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(loaded(folders["sd1"]).unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"cannot be loaded.*\n.*safetensors"):
        _ = StableDiffusion(str(folder)).network
    assert not caplog.records


def test_schedulers_that_are_not_of_ddpm_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["sd1"], tmp_path / "pipeline")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "EDMEulerScheduler"]}))
    (folder / "scheduler" / "scheduler_config.json").write_text('{"sigma_max": 80.0}')
    with pytest.raises(InputError, match="EDMEulerScheduler"):
        _ = small(folder).sigmas
    for part, option in (("unet", {"time_cond_proj_dim": 8}), ("scheduler", {"timestep_type": "continuous"})):
        model = small(folders["sd1"])
        getattr(model._pipeline, part).register_to_config(**option)
        with pytest.raises(InputError, match="none of DDPM's"):
            _ = model.sigmas


def test_weights_that_do_not_fit_are_said_so(folders, tmp_path):
    model = small(folders["sd1"], lora_rank=2)
    with pytest.raises(InputError, match="holds no pytorch_lora_weights"):
        model.with_weights(tmp_path)
    with pytest.raises(InputError, match="holds no model_index"):
        StableDiffusion(str(folders["sd1"])).with_weights(tmp_path)
    model.save(tmp_path)
    with pytest.raises(InputError, match=r"LoRA in .* cannot be loaded.*\n.*lora_rank"):
        _ = small(folders["sd1"], lora_rank=3).with_weights(tmp_path).network
    with pytest.raises(InputError, match="cannot be loaded"):
        _ = small(folders["sd3"], lora_rank=2).with_weights(tmp_path).network


@pytest.mark.parametrize("kind", KINDS)
def test_loading_training_and_saving_print_nothing(folders, tmp_path, capfd, caplog, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = small(folders[kind], lora_rank=1)
        fit(model, steps=1)
        model.save(tmp_path / "lora")
        small(folders[kind]).save(tmp_path / "whole")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_bars_and_notes_are_as_they_were_after_quiet():
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_info()
    with _pipelines.quiet():
        assert logging.get_verbosity() == logging.CRITICAL
        assert not logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == logging.INFO
    assert logging.is_progress_bar_enabled()
    logging.set_verbosity(before)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_computes_goes_to_the_device(folders, kind):
    model = small(folders[kind], on="meta", lora_rank=1)
    modules = [part for part in model._pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {parameter.device.type for part in modules for parameter in part.parameters()} == {"meta"}
    assert model.device.type == "meta"
