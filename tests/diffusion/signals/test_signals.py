"""Signals against hand computations, closed forms of the perfect copier, and diffusers' own code; and where they are
used: `generate`, pipelines, thresholds, words of a prompt."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from typer.testing import CliRunner

import copyscope
from copyscope import parts
from copyscope.cli import main
from copyscope.diffusion import observed, sampling, thresholds
from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import SamplingContext
from copyscope.diffusion.generate import SampleRecipe, generate, in_blocks, sample, seeds_of
from copyscope.diffusion.models import _pipelines
from copyscope.diffusion.models.empirical import Empirical
from copyscope.diffusion.observed import Observed, fingerprint
from copyscope.diffusion.prompts import attribution
from copyscope.diffusion.prompts.signal_scores import calibrate, learned, scores
from copyscope.diffusion.signals import _attention, bright_ending
from copyscope.errors import InputError, PartError
from tests import worlds
from tests.contracts.test_mitigations import CAPTIONS, MODEL, model
from tests.json_types import check
from tests.models import tiny_stable_diffusion
from tests.pipelines import loaded, small

TEXTS, SEEDS, STEPS, SCALE = CAPTIONS[:3], [11, 12, 13], 4, 3.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: tiny_stable_diffusion(root / kind, kind) for kind in ("sd1", "sdxl", "sd3", "flux")}


@pytest.fixture(scope="module")
def copier(tmp_path_factory):
    """The perfect copier of eight pictures, four captions of one picture each and one of four."""
    folder = worlds.world(tmp_path_factory.mktemp("copier"), 8, 0, 0, duplicates=()).train
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for place, row in enumerate(rows):
        row.pop("text", None)
        row["captions"] = [f"picture {place}" if place < 4 else "several"]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Empirical(str(folder), size=16)


def watch(of, *specs, texts=TEXTS, seeds=SEEDS, scale=SCALE, steps=STEPS, **options):
    """Scores of the specs, and the steps that they saw."""
    recipe = SampleRecipe(n_images=4, steps=steps, guidance=scale, signals=specs, **options)
    watched, told, seen = Observed(), of.condition(texts), []
    sample(of, told, seeds, recipe, prompts=texts, watched=watched, on_step=seen.append)
    return watched, seen


def score(of, spec, **options):
    return watch(of, spec, **options)[0].scores[spec]


def norm(x):
    return x.flatten(1).norm(dim=1)


def level(sigma):
    return sigma.view(-1, 1, 1, 1)


# Each signal


def test_the_text_conditional_norm_is_that_of_the_networks_own_epsilon(folders):
    sd = small(folders["sd1"])
    found = score(sd, "text_conditional_norm")
    noise = sampling.noise(SEEDS, sd.shape)
    time = torch.tensor([999.0] * 3)
    with torch.no_grad():
        given, none = (
            sd.network(noise * sd.sigmas[1] / math.sqrt(1 + sd.sigmas[1] ** 2), time, each.text).sample
            for each in (sd.condition(TEXTS), sd.condition([""] * 3))
        )
    torch.testing.assert_close(found, norm(given - none), rtol=1e-4, atol=1e-5)
    assert (found > 0.1).all()


def test_the_norm_over_steps_is_the_mean_and_needs_no_guidance():
    for scale in (1.0, SCALE):
        watched, seen = watch(model(), "text_conditional_norm(steps=0)", "text_conditional_norm(steps=2)", scale=scale)
        each = []
        with torch.no_grad():
            for step in seen:
                apart = step.conditional - model()(step.x, step.sigma, model().condition([""] * 3))
                each.append(norm(apart) / step.sigma)
        whole, two = watched.scores.values()
        torch.testing.assert_close(whole, torch.stack(each).mean(0), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(two, torch.stack(each[:2]).mean(0), rtol=1e-3, atol=1e-5)


def test_a_caption_that_the_copier_knows_pulls_and_another_does_not(copier):
    texts = ["picture 0", "picture 3", "of none of them"]
    for spec in ("text_conditional_norm", "sharpness"):
        known, other, unknown = score(copier, spec, texts=texts).tolist()
        assert min(known, other) > 0
        assert unknown == 0


# Forward differentiation scripts its decompositions as it is first used.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_sharpness_is_the_jacobian_vector_product(folders):
    sd = small(folders["sd1"])
    found = score(sd, "sharpness")
    sigma = torch.full((3,), sd.sigmas[1])
    x, given, null = sampling.noise(SEEDS, sd.shape) * sd.sigmas[1], sd.condition(TEXTS), sd.condition([""] * 3)

    def epsilon_apart(scaled):
        """In the authors' own coordinates: of the network's input."""
        there = scaled * torch.sqrt(1 + level(sigma) ** 2)
        return (sd(there, sigma, null) - sd(there, sigma, given)) / level(sigma)

    deviation = level(sigma) / torch.sqrt(1 + level(sigma) ** 2)

    def score_apart(scaled):
        return -epsilon_apart(scaled) / deviation

    scaled = x / torch.sqrt(1 + level(sigma) ** 2)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        _, bent = torch.func.jvp(score_apart, (scaled,), (score_apart(scaled),))
    torch.testing.assert_close(found, norm(bent), rtol=0.02, atol=0)


def test_isotropy_by_hand():
    found = score(model(), "isotropy(first=2.0, second=3.0, level=0.5)")
    noise, none = sampling.noise(SEEDS, model().shape), model().condition([""] * 3)
    x, sigma = noise * math.sqrt(1.25), torch.full((3,), 0.5)
    with torch.no_grad():
        given, without = model()(x, sigma, model().condition(TEXTS)), model()(x, sigma, none)
    e_none, e_given = (x - without) / 0.5, (x - given) / 0.5
    pull = e_given - e_none
    cosine = (e_none * pull).sum(1) / (e_none.norm(dim=1) * pull.norm(dim=1))
    want = 2 * score(model(), "text_conditional_norm") + 3 * cosine.mean((1, 2))
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4)


def test_moves_by_hand_and_against_a_band():
    watched, seen = watch(model(), "latent_update_norm")
    latents = [step.x / torch.sqrt(1 + level(step.sigma) ** 2) for step in seen]
    norms = torch.stack([norm(b - a) for a, b in itertools.pairwise(latents)], 1)
    torch.testing.assert_close(watched.watches["latent_update_norm"].norms(), norms)
    torch.testing.assert_close(watched.scores["latent_update_norm"], norms.mean(1))
    against = parts.load("signals", "latent_update_norm").fitted(list(watched.watches.values()))
    off = (norms - norms.mean(0)).abs() / norms.std(0)
    assert not against.learns
    torch.testing.assert_close(score(model(), str(against)), off.mean(1), rtol=1e-3, atol=1e-4)
    # Of a sampling of another length the band says nothing, and one step moves nothing that is seen.
    assert score(model(), str(against), steps=3).isnan().all()
    assert score(model(), "latent_update_norm", steps=1).isnan().all()


def test_the_two_levels_of_a_copier_by_formula(copier):
    """Its D stays the picture, and Euler's step goes to the guided estimate."""
    watched, seen = watch(copier, "two_level_difference", texts=["picture 1"], seeds=[3])
    first, second = seen[:2]
    past = (SCALE - 1) * (first.conditional - first.unconditional)
    want = norm(past) ** 2 * (1 / second.sigma - 1 / first.sigma) ** 2
    torch.testing.assert_close(watched.scores["two_level_difference"], want, rtol=1e-3, atol=0)
    assert score(copier, "two_level_difference(steps=4)", texts=["picture 1"], seeds=[3]).isnan().all()


def test_seeds_of_a_copier_agree_where_a_caption_means_one_picture(copier):
    one, many = score(copier, "seed_variation", texts=["picture 1", "several"], seeds=[1, 2]).tolist()
    assert one == pytest.approx(0, abs=1e-3)
    assert many < -0.05


def test_seed_variation_is_the_mean_over_pairs():
    found = score(model(), "seed_variation(images=3, steps=1)")
    for row, seed in enumerate(SEEDS):
        rng = np.random.default_rng(np.random.SeedSequence([seed, observed.STREAM]))
        noise = torch.from_numpy(rng.standard_normal((3, *model().shape), dtype=np.float32))
        with torch.no_grad():
            made = model()(noise * 80, torch.full((3,), 80.0), model().condition([TEXTS[row]] * 3))
        pairs = [(made[a] - made[b]).square().mean() for a, b in ((0, 1), (0, 2), (1, 2))]
        assert -found[row] == pytest.approx(math.sqrt(sum(pairs) / 3), rel=1e-3)


# Attention


def asked(of, n=3, emphasis=None, mask=None):
    told = of.condition(TEXTS[:n])
    told = dataclasses.replace(told, emphasis=emphasis, mask=told.mask if mask is None else mask)
    noise = sampling.noise(SEEDS[:n], of.shape)
    return SamplingContext(of, TEXTS[:n], told, None, 1.0, of.sigmas[1], noise, in_blocks(of, 2), ())


def of_diffusers(layer, query, key, mask):
    """What its own `get_attention_scores` says [n heads places tokens]."""
    heads = [layer.head_to_batch_dim(each) for each in (query, key)]
    bias = None if mask.all() else torch.where(mask, 0.0, -10000.0)[:, None]
    bias = None if bias is None else layer.prepare_attention_mask(bias, key.shape[1], len(query))
    found = layer.get_attention_scores(*heads, bias)
    return found.view(len(query), layer.heads, *found.shape[1:])


@pytest.mark.parametrize("stressed", [False, True])
@pytest.mark.parametrize("kind", ["small_unet", "sd1", "sdxl"])
@torch.no_grad()
def test_attention_is_that_of_diffusers(folders, kind, stressed):
    of = model() if kind == "small_unet" else small(folders[kind])
    mask = of.condition(TEXTS).mask.clone()
    mask[1, 3:] = False
    request = asked(of, 3, torch.tensor([1.0, 5.0, 0.2]) if stressed else None, mask)
    x, sigma = request.noise * request.sigma, torch.full((3,), request.sigma)
    found = _attention.attention(request, x, sigma, lambda each: each)
    given = {}
    hooks = [
        projection.register_forward_hook(lambda _, __, out, key=(place, name): given.__setitem__(key, out))
        for place, layer in enumerate(of.cross_attentions)
        for name, projection in (("q", layer.to_q), ("k", layer.to_k))
    ]
    with of.attending(request.conditioning.emphasis):
        of(x, sigma, request.conditioning)
    for hook in hooks:
        hook.remove()
    assert len(found) == len(of.cross_attentions) > 1
    for place, layer in enumerate(of.cross_attentions):
        query, key = given[place, "q"], given[place, "k"].clone()
        if stressed:
            key[:, :1] *= request.conditioning.emphasis[:, None, None]
        want = of_diffusers(layer, query, key, mask)
        torch.testing.assert_close(found[place], want, rtol=1e-3, atol=1e-5)
        assert (found[place][1, ..., 3:] == 0).all()


def test_entropy_of_even_attention_is_the_logarithm_of_the_tokens(monkeypatch):
    even, first = torch.full((3, 2, 5, 8), 1 / 8), torch.eye(8)[0].expand(3, 2, 5, 8)
    where = "copyscope.diffusion.signals.attention_entropy.attention"
    monkeypatch.setattr(where, lambda request, x, sigma, keep: [keep(even), keep(first)])
    torch.testing.assert_close(score(model(), "attention_entropy(layer=0)"), torch.full((3,), math.log(8)))
    assert score(model(), "attention_entropy(layer=1)").abs().max() < 1e-6
    mean = torch.tensor([9 / 16] + [1 / 16] * 7)
    torch.testing.assert_close(score(model(), "attention_entropy"), torch.special.entr(mean).sum().expand(3))


def test_entropy_is_of_the_mean_over_heads_places_and_layers(monkeypatch):
    """By hand, as Ren et al. 2024 have it: one distribution an image, then -sum p log p."""
    rng = np.random.default_rng(0)
    layers = [rng.dirichlet(np.full(8, 0.3), (3, 2, places)) for places in (5, 9)]
    tensors = [torch.from_numpy(each) for each in layers]
    where = "copyscope.diffusion.signals.attention_entropy.attention"
    monkeypatch.setattr(where, lambda request, x, sigma, keep: [keep(each) for each in tensors])
    found = score(model(), "attention_entropy").tolist()
    for row in range(3):
        p = np.mean([np.mean([each[row, head].mean(0) for head in range(2)], axis=0) for each in layers], axis=0)
        assert found[row] == pytest.approx(-sum(value * math.log(value) for value in p))


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"layer of 4\.\nTake one from 0 to 3"):
        score(model(), "attention_entropy(layer=4)")


def test_an_ending_that_is_bright_everywhere_is_the_norm_and_one_place_is_that_place(monkeypatch):
    bright = torch.ones(3, 2, 4, 8) / 8

    def looked(request, x, sigma, keep):
        return [keep(bright), keep(torch.full((3, 2, 1, 8), 0.5))]

    monkeypatch.setattr(bright_ending, "attention", looked)
    torch.testing.assert_close(score(model(), "bright_ending"), score(model(), "text_conditional_norm(steps=0)"))
    bright = torch.zeros(3, 2, 4, 8)
    for row, end in enumerate((6, 7, 7)):  # Where their texts end, of eight tokens.
        bright[row, :, 1, end] = 1
    watched, seen = watch(model(), "bright_ending")
    (maps,) = watched.maps.values()
    assert maps.shape == (3, 4, 4)
    assert (maps[:, 0, 3] == 1).all(), "the second of two by two places, above on the right"
    assert (maps[:, 3, 0] == 0).all()
    squares = [((step.conditional - step.unconditional) / level(step.sigma)).square().sum(1) for step in seen]
    want = torch.stack([(maps**2 * square).sum((1, 2)).sqrt() for square in squares]).mean(0) / maps.mean((1, 2))
    torch.testing.assert_close(watched.scores["bright_ending"], want)


def test_an_ending_is_weighed_by_the_brightness_of_its_own_image(monkeypatch):
    """By hand, as Chen et al. 2025 have it: |m e| over the mean of m, image by image."""
    bright = torch.from_numpy(np.random.default_rng(0).random((3, 2, 16, 8), dtype=np.float32))
    bright *= torch.tensor([0.1, 0.5, 2.0]).view(3, 1, 1, 1)
    monkeypatch.setattr(bright_ending, "attention", lambda request, x, sigma, keep: [keep(bright)])
    watched, seen = watch(model(), "bright_ending")
    for row, end in enumerate((6, 7, 7)):
        m = np.mean([bright[row, head, :, end].reshape(4, 4).numpy() for head in range(2)], axis=0)
        norms = []
        for step in seen:
            e = ((step.conditional - step.unconditional)[row] / step.sigma[row]).numpy()
            norms.append(math.sqrt(((m * e) ** 2).sum()))
        assert watched.scores["bright_ending"][row].item() == pytest.approx(np.mean(norms) / m.mean(), rel=1e-4)


# Where they are used


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3"])
def test_a_pipeline_has_the_scores_of_our_own_sampler(folders, kind):
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    of, pipe, texts = small(folders[kind]), loaded(folders[kind]), TEXTS[:2]
    specs = [
        name for name in parts.names("signals") if kind != "sd3" or name not in ("attention_entropy", "bright_ending")
    ]
    keys = [np.random.SeedSequence([9, 0, row]) for row in range(2)]
    seeds = [int(key.generate_state(1, np.uint64)[0] >> 1) for key in keys]
    recipe = SampleRecipe(n_images=2, steps=6, guidance=SCALE, signals=tuple(specs))
    ours, levels = Observed(), sampling.noise_levels(6, *of.sigmas, of.schedule).double()
    sample(of, of.condition(texts), seeds, recipe, prompts=texts, watched=ours)
    noise = sampling.noise(seeds, of.shape)
    if kind == "sd3":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, shift=1.0)
        sigmas, noise = (levels / (1 + levels))[:-1].tolist(), noise * float(levels[0] / (1 + levels[0]))
    else:
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
        sigmas = levels.tolist()
    options = {"sigmas": sigmas, "guidance_scale": SCALE, "output_type": "latent", "height": 32, "width": 32}
    with _pipelines.quiet():
        plain = pipe(texts, latents=noise.clone(), **options).images
    with _pipelines.quiet(), copyscope.observe(pipe, specs, seed=9) as theirs:
        assert torch.equal(pipe(texts, latents=noise.clone(), **options).images, plain), "no pixel changes"
    assert theirs.scores.keys() == ours.scores.keys()
    for spec, found in theirs.scores.items():
        torch.testing.assert_close(found, ours.scores[spec], rtol=0.02, atol=0.02 * float(found.abs().max()), msg=spec)
    assert theirs.maps.keys() == ours.maps.keys()


def test_signals_in_a_pipeline_have_the_seeds_and_see_what_mitigations_made(folders):
    from diffusers import EulerDiscreteScheduler

    of, pipe, texts, spec = (
        small(folders["sd1"]),
        loaded(folders["sd1"]),
        TEXTS[:2],
        "seed_variation(images=2, steps=1)",
    )
    keys = [np.random.SeedSequence([9, 0, row]) for row in range(2)]
    seeds = [int(key.generate_state(1, np.uint64)[0] >> 1) for key in keys]
    levels = sampling.noise_levels(3, *of.sigmas, of.schedule)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    options = {"sigmas": levels.tolist(), "guidance_scale": SCALE, "output_type": "latent", "height": 32, "width": 32}
    seen = []
    for mitigations in ((), ("gaussian_noise(scale=5.0)",)):
        ours = Observed()
        recipe = SampleRecipe(n_images=2, steps=3, guidance=SCALE, signals=(spec,), mitigations=mitigations)
        sample(of, of.condition(texts), seeds, recipe, prompts=texts, watched=ours)
        with _pipelines.quiet(), copyscope.observe(pipe, [spec], mitigations=mitigations, seed=9) as theirs:
            pipe(texts, latents=sampling.noise(seeds, of.shape), **options)
        torch.testing.assert_close(theirs.scores[spec], ours.scores[spec], rtol=1e-4, atol=1e-6)
        seen.append(ours.scores[spec])
    assert ((seen[0] - seen[1]).abs() > 1e-3 * seen[0].abs()).all(), "the mitigation makes a difference"
    other = Observed()
    sample(of, of.condition(texts), [0, 0], dataclasses.replace(recipe, mitigations=()), prompts=texts, watched=other)
    assert ((seen[0] - other.scores[spec]).abs() > 1e-3 * seen[0].abs()).any(), "and so do the seeds"


def test_a_pipeline_without_guidance_and_with_mitigations(folders):
    pipe = loaded(folders["sd1"])
    options = {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 1.0}

    def again(*mitigations):
        specs = ["text_conditional_norm"]
        with _pipelines.quiet(), copyscope.observe(pipe, specs, mitigations=mitigations) as found:
            pipe(TEXTS[0], generator=torch.Generator().manual_seed(1), **options)
            first = found.scores["text_conditional_norm"]
            pipe(TEXTS[:2], generator=torch.Generator().manual_seed(1), **options)
        assert (len(first), len(found.scores["text_conditional_norm"])) == (1, 2)
        return first

    assert again() > 0
    assert again("prompt_optimisation(target=0.0)") < again()


@pytest.mark.parametrize(("kind", "spec"), [
    ("sd3", "bright_ending"), ("sd3", "attention_entropy"), ("flux", "text_conditional_norm"), ("flux", "sharpness"),
    ("flux", "two_level_difference"),
])  # fmt: skip
def test_what_a_pipeline_has_not_is_refused_at_the_door(folders, kind, spec):
    with (
        pytest.raises(InputError, match=rf"{spec} needs .*\nUse another"),
        copyscope.observe(loaded(folders[kind]), [spec]),
    ):
        raise AssertionError


def test_flux_has_what_needs_no_null(folders):
    pipe = loaded(folders["flux"])
    specs = ["latent_update_norm", "seed_variation(steps=1)"]
    with _pipelines.quiet(), copyscope.observe(pipe, specs) as found:
        pipe(TEXTS[:2], num_inference_steps=3, output_type="latent", height=32, width=32)
    assert all(each.isfinite().all() and len(each) == 2 for each in found.scores.values())


def test_unknown_signals_are_told(folders):
    with (
        pytest.raises(PartError, match="Did you mean 'sharpness'"),
        copyscope.observe(loaded(folders["sd1"]), ["sharpnes"]),
    ):
        raise AssertionError


SPECS = ("text_conditional_norm", "latent_update_norm", "seed_variation(steps=1)")


def test_generate_adds_a_column_a_signal_and_changes_no_pixel(tmp_path):
    recipe = SampleRecipe(n_images=4, steps=3, guidance=2.0)
    plain = generate(model(), tmp_path / "plain", recipe, captions=CAPTIONS)
    recipe = dataclasses.replace(recipe, signals=SPECS)
    made = generate(model(), tmp_path / "watched", recipe, captions=CAPTIONS)
    for name in ("000000.png", "000003.png"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "watched" / name).read_bytes()
    assert not set(SPECS) & set(plain.table.column_names)
    found = scores(model(), CAPTIONS, seeds_of(recipe), recipe)
    for spec in SPECS:
        assert made.table[spec].to_pylist() == found[spec].tolist()
    assert not (tmp_path / "watched" / "scores.json").exists()
    with pytest.raises(InputError, match="differ in signals"):
        generate(model(), tmp_path / "watched", dataclasses.replace(recipe, signals=()), captions=CAPTIONS)


def test_generate_that_was_stopped_goes_on_to_the_same_scores(tmp_path):
    recipe = SampleRecipe(
        n_images=4, steps=3, batch_size=1, signals=(*SPECS, "latent_update_norm(mean=(1.0,), deviation=(1.0,))")
    )
    whole = generate(model(), tmp_path / "whole", recipe, captions=CAPTIONS)

    def stop(what, done, of):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("copyscope.diffusion.generate.block_size", lambda *given: 2)
        with pytest.raises(KeyboardInterrupt):
            generate(model(), tmp_path / "stopped", recipe, captions=CAPTIONS, progress=stop)
    assert len(json.loads((tmp_path / "stopped" / "scores.json").read_text())) == 2
    (tmp_path / "stopped" / "000001.png").unlink()
    kept = (tmp_path / "stopped" / "000000.png").stat().st_ino
    made = generate(model(), tmp_path / "stopped", recipe, captions=CAPTIONS)
    assert (tmp_path / "stopped" / "000000.png").stat().st_ino == kept, "what was there is not made again"
    assert (tmp_path / "stopped" / "000001.png").is_file(), "what was gone is"
    for spec in SPECS:
        # Those of the first run came of blocks of two.
        assert whole.table[spec].to_pylist() == pytest.approx(made.table[spec].to_pylist(), rel=1e-4)
    lines = (tmp_path / "stopped" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)[recipe.signals[-1]] for line in lines] == [None] * 4


def test_scores_stop_once_all_is_seen():
    rows = []
    hook = model().network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    recipe = SampleRecipe(n_images=1, steps=20, guidance=2.0, signals=("text_conditional_norm(steps=3)",))
    scores(model(), CAPTIONS[:1], [1], recipe)
    hook.remove()
    assert sum(rows) == 6


# Thresholds


def test_a_threshold_is_the_conformal_quantile():
    from copyscope.stats import conformal_p_values

    rng = np.random.default_rng(0)
    ordinary, new = rng.normal(size=250), rng.normal(size=4000)
    for rate in (0.01, 0.05, 0.5):
        drawn = thresholds.calibrate({"a": ordinary}, "m", "s", rate)
        flagged = drawn.flagged({"a": new})["a"]
        assert np.array_equal(flagged, conformal_p_values(new, ordinary) <= rate)
        assert 0 < drawn.signals["a"].rate <= rate
    assert thresholds.calibrate({"a": np.arange(99.0)}, "m", "s").signals["a"] == thresholds.Threshold(
        98.0, 0.01, 99, 0
    )


def test_missing_scores_count_against_and_are_flagged():
    ordinary = np.r_[np.arange(198.0), np.nan]
    drawn = thresholds.calibrate({"a": ordinary}, "m", "s").signals["a"]
    assert (drawn.value, drawn.n, drawn.n_missing) == (197.0, 199, 1)
    drawn = thresholds.calibrate({"a": ordinary}, "m", "s")
    assert drawn.flagged({"a": np.array([np.nan, 197.0, 198.0])})["a"].tolist() == [True, False, True]
    with pytest.raises(InputError, match="no score of 2 of 100"):
        thresholds.calibrate({"a": np.r_[np.arange(98.0), np.nan, np.nan]}, "m", "s")


def test_too_few_prompts_and_rates_that_are_none_are_refused():
    with pytest.raises(InputError, match=r"98 prompts draw no line at a rate of 0.01\.\nGive 99"):
        thresholds.calibrate({"a": np.arange(98.0)}, "m", "s")
    for rate in (0, 1, -1, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            thresholds.calibrate({"a": np.arange(98.0)}, "m", "s", rate)


def test_thresholds_are_of_one_model_and_one_way_to_make_images(tmp_path):
    drawn = thresholds.calibrate({"a": np.arange(99.0)}, "model", "steps=3")
    drawn.save(tmp_path / "t.json")
    assert thresholds.Thresholds.load(tmp_path / "t.json", "model", "steps=3") == drawn
    with pytest.raises(InputError, match="another model"):
        thresholds.Thresholds.load(tmp_path / "t.json", "other", "steps=3")
    with pytest.raises(InputError, match=r"made with steps=3, these are made with steps=4"):
        thresholds.Thresholds.load(tmp_path / "t.json", "model", "steps=4")
    (tmp_path / "t.json").write_text("{}")
    for name in ("t.json", "gone.json"):
        with pytest.raises(InputError, match="holds no thresholds"):
            thresholds.Thresholds.load(tmp_path / name, "model", "steps=3")


def test_a_fingerprint_is_of_the_weights():
    one = parts.load("models", MODEL)
    before = fingerprint(one)
    assert fingerprint(parts.load("models", MODEL)) == before
    with torch.no_grad():
        next(one.network.parameters())[0] += 1
    assert fingerprint(one) != before
    assert fingerprint(Empirical("a")) != fingerprint(Empirical("b"))


def test_calibration_of_a_copier_flags_what_it_knows(copier):
    recipe = SampleRecipe(steps=2, guidance=2.0, signals=("text_conditional_norm",))
    drawn = calibrate(copier, [f"of nothing, {place}" for place in range(20)], recipe, rate=0.05)
    assert (drawn.model, drawn.signals["text_conditional_norm"].n) == (fingerprint(copier), 20)
    found = scores(copier, ["picture 0", "of nothing at all"], [1, 2], recipe)
    assert drawn.flagged(found)["text_conditional_norm"].tolist() == [True, False]
    with pytest.raises(InputError, match="no signals to calibrate"):
        calibrate(copier, ["a"] * 99, SampleRecipe())


def test_calibration_learns_the_band_of_some_prompts_and_draws_the_line_by_the_others():
    recipe = SampleRecipe(steps=4, guidance=2.0, signals=("text_conditional_norm", "latent_update_norm"))
    prompts = [f"picture {place}" for place in range(60)]
    drawn = calibrate(model(), prompts, recipe, rate=0.1)
    _, banded = drawn.signals
    assert [each.n for each in drawn.signals.values()] == [60, 48]
    signal = parts.load("signals", banded)
    seeds = seeds_of(dataclasses.replace(recipe, n_images=60))
    watched, _ = watch(model(), "latent_update_norm", texts=prompts, seeds=seeds, scale=2.0)
    norms = watched.watches["latent_update_norm"].norms()
    torch.testing.assert_close(torch.tensor(signal.mean), norms[:12].mean(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(torch.tensor(signal.deviation), norms[:12].std(0), rtol=1e-3, atol=0)
    off = ((norms - norms[:12].mean(0)).abs() / norms[:12].std(0)).mean(1)
    # The conformal quantile of the 48: the fourth highest, since 4 of 49 are at most a tenth.
    assert drawn.signals[banded].value == pytest.approx(off[12:].sort().values[-4].item(), rel=1e-3)
    # What a guard does with the file: the specs in it watch.
    found = scores(model(), prompts[:3], seeds[:3], dataclasses.replace(recipe, signals=tuple(drawn.signals)))
    assert found[banded] == pytest.approx(off[:3].numpy(), rel=1e-2)
    assert drawn.flagged(found)[banded].shape == (3,)
    with pytest.raises(InputError, match=r"learns of 11 of the prompts; of the others: 44 prompts draw no line at"):
        calibrate(model(), prompts[:55], recipe, rate=0.022)
    with pytest.raises(InputError, match="learns of 10 prompts, and there are 10"):
        calibrate(model(), prompts[:10], recipe, rate=0.5)


def test_calibration_watches_prompts_as_mitigations_rewrite_them(monkeypatch):
    told = []

    def spy(model, prompts, *given, **options):
        told.extend(prompts)
        return scores(model, prompts, *given, **options)

    monkeypatch.setattr("copyscope.diffusion.prompts.signal_scores.scores", spy)
    signals, rewrite = ("text_conditional_norm",), ("random_numbers(n=2, probability=1.0)",)
    recipe = SampleRecipe(steps=1, guidance=2.0, signals=signals, mitigations=rewrite)
    calibrate(model(), ["a red disc"] * 3, recipe, rate=0.5)
    assert [len(each.split()) for each in told] == [5] * 3
    assert len(set(told)) == 3


def test_signals_that_learn_nothing_or_have_learned_stay_as_they_are():
    specs = ("text_conditional_norm", "latent_update_norm(mean=(1.0,), deviation=(1.0,))")
    recipe = SampleRecipe(steps=2, signals=specs)
    assert learned(model(), ["a", "b"], [1, 2], recipe) == specs
    found = learned(model(), ["a", "b"], [1, 2], dataclasses.replace(recipe, signals=("latent_update_norm", specs[0])))
    assert found[1] == specs[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("copyscope.diffusion.prompts.signal_scores.block_size", lambda *given: 1)
        one_by_one = learned(model(), ["a", "b"], [1, 2], dataclasses.replace(recipe, signals=("latent_update_norm",)))
    whole, parted = (parts.load("signals", each) for each in (found[0], one_by_one[0]))
    assert (parted.mean, parted.deviation) == (
        pytest.approx(whole.mean, rel=1e-3), pytest.approx(whole.deviation, rel=1e-2),
    )  # fmt: skip
    assert found[0].startswith("latent_update_norm(mean=(")


def test_the_command_line(copier, tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"of nothing, {place}\n" for place in range(20)))
    options = ["--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "t.json", "--rate", "0.1", "--json"]
    options += ["--set", "steps=4", "--signal", "text_conditional_norm", "--signal", "latent_update_norm"]
    found = CliRunner().invoke(main.app, ["guard", "calibrate", str(copier), *map(str, options)])
    summary = json.loads(found.stdout)
    assert summary == json.loads((tmp_path / "t.json").read_text())
    check("guard", summary)
    (plain, n), (banded, others) = ((spec, each["n"]) for spec, each in summary["signals"].items())
    assert (plain, n, others) == ("text_conditional_norm", 20, 10)
    assert len(parts.load("signals", banded).mean) == 3
    options.remove("--json")
    shown = CliRunner().invoke(main.app, ["guard", "calibrate", str(copier), *map(str, options)])
    assert "latent_update_norm(...)" in shown.stdout
    options = ["-o", tmp_path / "made", "-n", 2, "--set", "steps=2", "--prompt", "picture 0"]
    CliRunner().invoke(main.app, ["generate", str(copier), *map(str, options), "--signal", "text_conditional_norm"])
    made = copyscope.Corpus.open(tmp_path / "made")
    assert all(each > 0 for each in made.table["text_conditional_norm"].to_pylist())


# Words


@dataclasses.dataclass(frozen=True)
class Counting(Empirical):
    """Moves by the mean of what its words say; "loud" says most."""

    @property
    def shape(self):
        return 1, 2, 2

    def condition(self, captions):
        rows = [[2.0 if word == "loud" else 0.1 for word in caption.split()] for caption in captions]
        return Conditioning(
            torch.tensor([[[sum(row, 0.0)]] for row in rows]), torch.ones(len(rows), 1, dtype=torch.bool)
        )

    def __call__(self, x, sigma, conditioning):
        return conditioning.text.view(-1, 1, 1, 1).expand_as(x) * level(sigma)


def test_leaving_out_the_word_that_pulls():
    found = attribution.by_leaving_out(Counting("none"), "a loud word", seeds=(0, 1))
    assert [word for word, _ in found] == ["a", "loud", "word"]
    # The norm is 2 (over four numbers) times what the words say.
    assert [weight for _, weight in found] == pytest.approx([0.2, 4.0, 0.2], rel=1e-4)


def test_the_gradient_is_that_of_the_norm():
    found = dict(attribution.by_gradient(model(), "a red disc", seeds=(5,)))
    assert list(found) == ["a", "red", "disc"]
    assert all(value.grad is None for value in model().network.parameters())
    x, sigma = sampling.noise([5], model().shape) * 80, torch.tensor([80.0])
    told, none = model().condition(["a red disc"]), model().condition([""])
    text = told.text.clone().requires_grad_()
    apart = model()(x, sigma, dataclasses.replace(told, text=text)) - model()(x, sigma, none).detach()
    (gradient,) = torch.autograd.grad(norm(apart).sum() / 80, text)
    # The tokenizer's first token is its own.
    torch.testing.assert_close(torch.tensor(list(found.values())), gradient[0, 1:4].norm(dim=1), rtol=1e-3, atol=1e-7)


def test_the_gradient_over_seeds_is_the_root_mean_square():
    each = [
        np.array([weight for _, weight in attribution.by_gradient(model(), "a red disc", seeds=(seed,))])
        for seed in (5, 6, 7)
    ]
    found = [weight for _, weight in attribution.by_gradient(model(), "a red disc", seeds=(5, 6, 7))]
    assert found == pytest.approx(np.sqrt(np.mean(np.square(each), axis=0)), rel=5e-5)
    assert np.abs(found / np.mean(each, axis=0) - 1).min() > 2e-4, "a mean would be told from it"


def test_words_of_several_tokens_words_past_the_end_and_models_without_tokens(folders):
    found = attribution.by_gradient(small(folders["sd1"]), "red fish, in a very long text")
    assert [word for word, _ in found] == ["red", "fish,", "in", "a", "very", "long", "text"]
    weights = [weight for _, weight in found]
    assert all(weight > 0 for weight in weights[:4])
    sd = small(folders["sd1"])
    x, sigma = sampling.noise([0], sd.shape) * sd.sigmas[1], torch.tensor([sd.sigmas[1]])
    told = sd.condition(["red fish"])
    text = told.text.clone().requires_grad_()
    apart = sd(x, sigma, dataclasses.replace(told, text=text)) - sd(x, sigma, sd.condition([""])).detach()
    (gradient,) = torch.autograd.grad(norm(apart).sum() / sd.sigmas[1], text)
    (_, red), _ = attribution.by_gradient(sd, "red fish", seeds=(0,))
    assert red == pytest.approx(gradient[0, 1:4].norm().item(), rel=1e-3), "three letters, one length"
    # Twenty tokens, a letter each.
    assert [math.isnan(weight) for weight in weights] == [False] * 5 + [True] * 2
    with pytest.raises(InputError, match="has no tokens"):
        attribution.by_gradient(Counting("none"), "a")
    with pytest.raises(InputError, match=r"Attribution needs a prediction without a prompt"):
        attribution.by_leaving_out(small(folders["flux"]), "a")
