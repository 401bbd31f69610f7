"""Mitigations in pipelines of diffusers: what each hook does there, against the pipeline's own images."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
import torch

import copyscope
from copyscope import parts
from copyscope.diffusion import applied, sampling
from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import NearestImage
from copyscope.diffusion.generate import SampleRecipe, sample
from copyscope.diffusion.mitigations import (
    CROSS_ATTENTION,
    GUIDANCE,
    NEAREST,
    NULL,
    PROMPTS,
    SAMPLING,
    OnCaption,
    OnConditioning,
    OnDenoiser,
    OnNoise,
)
from copyscope.diffusion.models import _pipelines, _schedules
from copyscope.diffusion.models.stable_diffusion import StableDiffusion
from copyscope.errors import InputError, PartError
from tests.pipelines import KINDS, folders_of, loaded, normal, pictures, small

GUIDED = ("sd1", "sd2", "sdxl", "sd3")
FLOWS = ("sd3", "flux")
CLASSES = {"sd1": "StableDiffusion", "sd2": "StableDiffusion", "sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3"}
CLASSES |= {"flux": "Flux"}
TEXTS = ["a red fish", "two blue houses by the sea"]
HERE = "tests.diffusion.pipelines.test_mitigate"


# Parts of our own, one a hook


@dataclasses.dataclass(frozen=True)
class Numbered(OnCaption):
    """Adds a number of three digits, at random; 0 adds nothing."""

    n: int = 1

    def rewrite(self, captions, rng):
        return " ".join([captions[0], *(str(rng.integers(100, 1000)) for _ in range(self.n))])


@dataclasses.dataclass(frozen=True)
class Moved(OnConditioning):
    """Moves the states, and the null's on the other side."""

    by: float = 0.5

    @property
    def on_null(self):
        return True

    def perturb(self, conditioning, rngs, request=None):
        side = self.by if conditioning is request.conditioning else -self.by
        pooled = None if conditioning.pooled is None else conditioning.pooled + side
        return dataclasses.replace(conditioning, text=conditioning.text + side, pooled=pooled)


@dataclasses.dataclass(frozen=True)
class Stressed(OnConditioning):
    """Leaves out the last half of the tokens, and stresses the first."""

    needs = (CROSS_ATTENTION,)

    def perturb(self, conditioning, rngs, request=None):
        mask = conditioning.mask.clone()
        mask[:, mask.shape[1] // 2 :] = False
        emphasis = conditioning.text.new_full((len(conditioning),), 3.0)
        return dataclasses.replace(conditioning, mask=mask, emphasis=emphasis)


@dataclasses.dataclass(frozen=True)
class Shifted(OnNoise):
    """Adds to the noise of the images after the first."""

    by: float = 0.5

    def draw(self, noise, request):
        assert torch.equal(noise, request.noise)
        shift = noise.new_full((len(noise), 1, 1, 1), self.by)
        shift[0] = 0
        return noise + shift


SEEN = []
"""Of each step that Watched was asked: ask, step, request."""


@dataclasses.dataclass(frozen=True)
class Watched(OnDenoiser):
    """Changes nothing, but sees all."""

    wants: tuple = ()

    @property
    def needs(self):
        return self.wants

    def wrap(self, denoiser, request):
        def watched(ask):
            step = denoiser(ask)
            SEEN.append((ask, step, request))
            return step

        return watched


@dataclasses.dataclass(frozen=True)
class Halved(OnDenoiser):
    """Half the estimate; of the first image only, if so asked."""

    first_only: bool = False

    def wrap(self, denoiser, request):
        def halved(ask):
            step = denoiser(ask)
            denoised = step.denoised / 2
            if self.first_only:
                denoised = torch.cat([denoised[:1], step.denoised[1:]])
            return dataclasses.replace(step, denoised=denoised)

        return halved


@dataclasses.dataclass(frozen=True)
class Failing(OnDenoiser):
    def wrap(self, denoiser, request):
        def failing(ask):
            if ask.i == 1:
                raise RuntimeError("on purpose")
            return denoiser(ask)

        return failing


def of(*names):
    return [f"{HERE}:{name}" for name in names]


@dataclasses.dataclass(frozen=True)
class HalfScale(OnDenoiser):
    """Asks for half the scale, and changes no answer."""

    needs = (GUIDANCE,)

    def wrap(self, denoiser, request):
        return lambda ask: denoiser(dataclasses.replace(ask, scale=ask.scale / 2))


@dataclasses.dataclass(frozen=True)
class Elsewhere(OnDenoiser):
    """Asks a little beside where it is asked."""

    def wrap(self, denoiser, request):
        return lambda ask: denoiser(dataclasses.replace(ask, x=ask.x + 0.01))


# Pipelines


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return folders_of(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def kept(folders):
    pipes = {kind: loaded(folder) for kind, folder in folders.items()}
    made(pipes["flux"])  # Its network keeps a note of its first call.
    return pipes


@pytest.fixture
def pipes(kept):
    """A pipeline a kind, loaded once; its scheduler anew for each test, and left as it was."""
    before = {kind: (pipe.scheduler, state_of(pipe)) for kind, pipe in kept.items()}
    SEEN.clear()
    yield kept
    for kind, pipe in kept.items():
        pipe.scheduler = before[kind][0]
        assert state_of(pipe) == before[kind][1]


def network_of(pipe):
    return getattr(pipe, _pipelines.NETWORKS[_pipelines.family(pipe)])


def state_of(pipe):
    """What a pipeline and its network carry besides their parts: names of attributes, and hooks."""
    network = network_of(pipe)
    hooks = [len(getattr(network, name)) for name in ("_forward_hooks", "_forward_pre_hooks")]
    inner = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in network.modules())
    # What a call leaves there itself.
    own = {name for name in vars(pipe) if not name.startswith("_")}
    return own, set(vars(network)), hooks, inner, type(network).forward


def rescheduled(pipe, name, **options):
    import diffusers

    with _pipelines.quiet():
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    return pipe


def made(pipe, prompt=TEXTS, seed=0, steps=5, **options):
    """Latents that the pipeline makes."""
    options = {"height": 32, "width": 32, "num_inference_steps": steps, "output_type": "latent"} | options
    if "latents" not in options:
        options["generator"] = torch.Generator().manual_seed(seed)
    with _pipelines.quiet():
        return pipe(prompt, **options).images


def mitigated(pipe, specs, prompt=TEXTS, at=0, **options):
    with copyscope.mitigate(pipe, specs, seed=at):
        return made(pipe, prompt, **options)


@contextlib.contextmanager
def spied(owner, name):
    """Arguments by name of the calls of a method of this object, below whatever wraps it."""
    calls, before = [], getattr(owner, name)

    def spy(*args, **kwargs):
        calls.append(dict(zip(("sample", "timestep"), args, strict=False)) | kwargs)
        return before(*args, **kwargs)

    setattr(owner, name, spy)
    try:
        yield calls
    finally:
        found = vars(owner).pop(name)
    assert found is spy


def seeds_of(seed, call, n):
    states = [np.random.SeedSequence([seed, call, row]).generate_state(1, np.uint64)[0] for row in range(n)]
    return [int(state >> 1) for state in states]


def rngs_of(seed, call, n, number):
    return applied.sampling_rngs(seeds_of(seed, call, n), number)


def alike(one, other, tolerance=1e-3):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.std()))


SCHEDULERS = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler fractional": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "euler karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp": ("DPMSolverMultistepScheduler", {}),
    "dpmpp karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}
ALL = [*((kind, None) for kind in KINDS), *(("sd1", name) for name in SCHEDULERS), ("sd2", "heun"), ("sdxl", "euler")]
everywhere = pytest.mark.parametrize(("kind", "scheduler"), ALL, ids=[f"{kind}-{name or 'own'}" for kind, name in ALL])


def prepared(pipes, kind, scheduler):
    return (
        rescheduled(pipes[kind], *SCHEDULERS[scheduler][:1], **SCHEDULERS[scheduler][1]) if scheduler else pipes[kind]
    )


def hooks(kind, strong):
    """A spec a hook, at work or turned down to nothing."""
    early = {False: "delayed_guidance(start=0.0)", True: "delayed_guidance(start=0.5)"}[strong]
    specs = of(f"Numbered(n={int(strong)})", f"Moved(by={strong / 2})", f"Shifted(by={strong / 2})", "Watched")
    return [*specs, f"gaussian_noise(scale={float(strong)})", *([early] if kind in GUIDED else [])]


@everywhere
def test_mitigations_turned_down_to_nothing_change_no_bit(pipes, kind, scheduler):
    pipe = prepared(pipes, kind, scheduler)
    options = {"num_images_per_prompt": 2}
    plain = made(pipe, **options)
    assert torch.equal(plain, mitigated(pipe, [], **options))
    assert torch.equal(plain, mitigated(pipe, hooks(kind, False), **options))
    for spec in hooks(kind, True) if scheduler in {None, "heun"} else []:
        assert torch.equal(plain, mitigated(pipe, [spec], **options)) == ("Watched" in spec), spec


@pytest.mark.parametrize("kind", KINDS)
def test_and_so_in_lower_precision(folders, kind):
    pipe = loaded(folders[kind]).to(torch.bfloat16)
    plain = made(pipe)
    assert plain.dtype == torch.bfloat16
    assert torch.equal(plain, mitigated(pipe, hooks(kind, False)))
    moved = mitigated(pipe, hooks(kind, True))
    assert moved.dtype == torch.bfloat16
    assert moved.isfinite().all()
    assert not torch.equal(plain, moved)


@pytest.mark.parametrize(("kind", "scheduler"), [pair for pair in ALL if pair[0] in GUIDED])
def test_guidance_that_never_sets_in_is_none(pipes, kind, scheduler):
    pipe = prepared(pipes, kind, scheduler)
    alike(mitigated(pipe, ["delayed_guidance(start=1.0, early=1.0)"]), made(pipe, guidance_scale=1.0))
    unprompted = made(pipe, **nothing_as_prompt(pipe, kind), guidance_scale=1.0)
    alike(mitigated(pipe, ["delayed_guidance(start=1.0, early=0.0)"]), unprompted)


def nothing_as_prompt(pipe, kind):
    """What makes a pipeline's prompt what its negative is, which for SDXL is zeros."""
    if kind != "sdxl":
        return {"prompt": ["", ""]}
    with _pipelines.quiet():
        text, _, pooled, _ = pipe.encode_prompt(TEXTS, do_classifier_free_guidance=False)
    return {"prompt": None, "prompt_embeds": torch.zeros_like(text), "pooled_prompt_embeds": torch.zeros_like(pooled)}


@pytest.mark.parametrize("start", [0.0, 0.35, 0.6])
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_late_guidance_is_that_of_ddim_by_hand(pipes, kind, start):
    pipe, scale, early, latents = pipes[kind], 4.0, 0.5, normal(2, 4, 16, 16)
    spec = f"delayed_guidance(start={start}, early={early})"
    found = mitigated(pipe, [spec], latents=latents.clone(), guidance_scale=scale, steps=7)
    kept_of, times = pipe.scheduler.alphas_cumprod, pipe.scheduler.timesteps
    x = latents
    with torch.no_grad(), _pipelines.quiet():
        text, none = pipe.encode_prompt(TEXTS, "cpu", 1, True)
        for i, time in enumerate(times):
            before = time - 1000 // 7
            kept, next_kept = kept_of[time], kept_of[before] if before >= 0 else kept_of[0]
            own, other = (pipe.unet(x, time, each).sample for each in (text, none))
            answer = other + (scale if i >= start * 7 else early) * (own - other)
            if kind == "sd1":
                x0, noise = (x - (1 - kept).sqrt() * answer) / kept.sqrt(), answer
            else:
                x0, noise = kept.sqrt() * x - (1 - kept).sqrt() * answer, kept.sqrt() * answer + (1 - kept).sqrt() * x
            x = next_kept.sqrt() * x0 + (1 - next_kept).sqrt() * noise
    alike(found, x)


@everywhere
def test_estimates_are_those_of_the_network_asked_anew(pipes, kind, scheduler):
    """So noise levels, latents and what predictions are made of are right, with a text of another length too."""
    pipe = prepared(pipes, kind, scheduler)
    specs = of("Moved", *(["Stressed"] if hasattr(pipe, "unet") else []), "Watched")
    with copyscope.mitigate(pipe, specs), torch.no_grad():
        made(pipe)
    assert len(SEEN) >= 5
    # A flow's first time is that of pure noise, which has no noise level: there the network is asked a bit after it.
    for ask, step, request in SEEN[int(kind in FLOWS) :]:
        told, expected, halves = request.conditioning, step.conditional, 1
        assert (step.unconditional is None) == (kind not in GUIDED)
        if kind in GUIDED:
            told, halves = Conditioning.join([told, request.null]), 2
            expected = torch.cat([expected, step.unconditional])
        with torch.no_grad():
            found = request.predict(ask.x.repeat(halves, 1, 1, 1), ask.sigma.repeat(halves), told)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3 * float(expected.std()))


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler karras", "heun", "dpmpp", "unipc"])
def test_latents_and_noise_levels_are_those_of_the_scheduler(pipes, scheduler):
    pipe, latents = prepared(pipes, "sd1", scheduler), []

    def keep(pipe, i, time, found):
        latents.append(found["latents"])
        return found

    mitigated(pipe, of("Watched"), callback_on_step_end=keep)
    times = [int(time) for time in pipe.scheduler.timesteps]
    for at, (ask, _, _) in enumerate(SEEN):
        kept = pipe.scheduler.alphas_cumprod[times[at]]
        level = ((1 - kept) / kept).sqrt() if scheduler == "ddim" else pipe.scheduler.sigmas[at]
        torch.testing.assert_close(
            ask.sigma, level.expand(2).float(), rtol=2e-2 if "karras" in scheduler else 3e-3, atol=0
        )
        if at:
            x = latents[at - 1]
            # Euler and Heun go on with x itself, the others with it in the network's units.
            x = x if scheduler in {"euler", "euler karras", "heun"} else x * (1 + level**2).sqrt()
            torch.testing.assert_close(ask.x, x, rtol=2e-2, atol=2e-2)


def test_steps_are_numbered_and_points_that_are_only_tried_are_not(pipes):
    def numbers(pipe, **options):
        SEEN.clear()
        mitigated(pipe, of("Watched"), **options)
        return [(ask.i, ask.n_steps) for ask, _, _ in SEEN]

    assert numbers(pipes["sd1"]) == [(i, 5) for i in range(5)]
    assert numbers(pipes["sd3"], steps=3) == [(i, 3) for i in range(3)]
    assert numbers(pipes["flux"], steps=3) == [(i, 3) for i in range(3)]
    heun = rescheduled(pipes["sd1"], "HeunDiscreteScheduler")
    assert numbers(heun) == [(each, 5) for each in (0, None, 1, None, 2, None, 3, None, 4)]
    assert numbers(rescheduled(pipes["sdxl"], "DDIMScheduler"), denoising_end=0.6) == [(i, 3) for i in range(3)]


def test_what_parts_are_told_of_a_call(pipes):
    nearest = len
    with copyscope.mitigate(pipes["sdxl"], of("Watched"), nearest=nearest):
        made(pipes["sdxl"], guidance_scale=3.0, num_images_per_prompt=2, height=32, width=48)
    ask, step, request = SEEN[0]
    assert request.prompts == [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[1]]
    assert request.model.shape == (4, 16, 24)
    assert (request.scale, ask.scale.tolist(), step.scale.tolist()) == (3.0, [3.0] * 4, [3.0] * 4)
    assert request.block == 8
    assert request.nearest is nearest
    assert request.sigma == pytest.approx(float(ask.sigma[0]))
    assert torch.equal(request.noise, torch.randn(4, 4, 16, 24, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(request.noise * request.sigma, ask.x, rtol=2e-2, atol=0)
    told = request.model.condition(request.prompts)
    torch.testing.assert_close((request.conditioning.text, request.conditioning.pooled), (told.text, told.pooled))
    assert not request.null.text.any()
    torch.testing.assert_close(step.denoised, step.unconditional + 3 * (step.conditional - step.unconditional))
    assert request.model.decode(step.denoised)[0].shape == (32, 48, 3)


@pytest.mark.parametrize("kind", GUIDED)
def test_a_null_is_there_without_guidance_where_a_part_needs_it(pipes, kind):
    pipe = pipes[kind]
    plain = made(pipe, guidance_scale=1.0)
    assert torch.equal(plain, mitigated(pipe, of("Watched"), guidance_scale=1.0))
    assert SEEN[-1][2].null is None
    assert torch.equal(plain, mitigated(pipe, of(f"Watched(wants={(NULL,)})"), guidance_scale=1.0))
    _, step, request = SEEN[-1]
    assert (request.scale, step.unconditional, step.scale.tolist()) == (1.0, None, [1.0, 1.0])
    model = small(pipe.name_or_path)
    torch.testing.assert_close(request.null.text, model.condition(["", ""]).text)


# Captions


@contextlib.contextmanager
def read_by_tokenizers(pipe):
    """Texts that any tokenizer of the pipeline is given."""
    names = [name for name in ("tokenizer", "tokenizer_2", "tokenizer_3") if hasattr(pipe, name)]
    read, classes = [], {type(getattr(pipe, name)) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        for cls in classes:

            def spy(self, text, *args, before=cls.__call__, **kwargs):
                read.append([text] if isinstance(text, str) else list(text))
                return before(self, text, *args, **kwargs)

            patch.setattr(cls, "__call__", spy)
        yield read


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_rewritten_for_each_image_and_all_encoders(pipes, kind):
    pipe = pipes[kind]
    options = {"num_images_per_prompt": 2, "negative_prompt": ["ugly", "dull"]} if kind in GUIDED else {}
    expected = [
        Numbered().rewrite([text], rngs_of(7, 0, 4, 0)[row])
        for row, text in enumerate([TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[1]])
    ]
    assert len(set(expected)) == 4
    with read_by_tokenizers(pipe) as read:
        mitigated(pipe, of("Numbered", "Watched"), at=7, **{"num_images_per_prompt": 2} | options)
    assert SEEN[-1][2].prompts == expected
    texts = [each for each in read if each[0] not in {"ugly", "dull"}]
    assert expected in texts
    assert all(set(each) <= set(expected) for each in texts)
    negatives = [each for each in read if each[0] in {"ugly", "dull"}]
    assert all(each == ["ugly", "ugly", "dull", "dull"] for each in negatives)
    assert len(negatives) >= len(options) / 2


def test_captions_of_more_encoders_and_of_one_prompt(pipes):
    pipe = pipes["sdxl"]
    with read_by_tokenizers(pipe) as read:
        mitigated(pipe, of("Numbered"), "one", at=3, prompt_2="other", negative_prompt="ugly")
    (rng,) = rngs_of(3, 0, 1, 0)
    number = str(rng.integers(100, 1000))
    assert {text for texts in read for text in texts} == {f"one {number}", f"other {number}", "ugly"}
    with spied(pipe, "encode_prompt") as given:
        mitigated(pipe, of("Numbered(n=0)"), "one")
        mitigated(pipe, of("Numbered"), "one", num_images_per_prompt=2, negative_prompt="ugly")
    assert given[0]["prompt"] == "one"
    assert (len(given[1]["prompt"]), given[1]["num_images_per_prompt"]) == (2, 1)
    assert given[1]["negative_prompt"] == ["ugly", "ugly"]


def test_rewritten_captions_make_what_the_pipeline_makes_of_them(pipes):
    for kind in KINDS:
        with copyscope.mitigate(pipes[kind], of("Numbered", "Watched"), seed=1):
            found = made(
                pipes[kind], num_images_per_prompt=2, **({"negative_prompt": ["x", "y"]} if kind in GUIDED else {})
            )
        texts = SEEN[-1][2].prompts
        negative = {"negative_prompt": ["x", "x", "y", "y"]} if kind in GUIDED else {}
        assert torch.equal(found, made(pipes[kind], texts, **negative))


# Conditioning


@pytest.mark.parametrize("kind", KINDS)
def test_noise_on_the_states_is_exactly_the_given(pipes, kind):
    pipe, both = pipes[kind], kind in GUIDED
    with spied(network_of(pipe), "forward") as calls:
        made(pipe)
        plain = calls[0]["encoder_hidden_states"].clone()
        calls.clear()
        with copyscope.mitigate(pipe, [f"gaussian_noise(scale=0.3, both={both})"], seed=5):
            made(pipe)
            first, calls[:] = list(calls), []
            made(pipe)
    for number, made_there in enumerate((first, calls)):
        assert len(made_there) == 5
        rngs = rngs_of(5, number, 2, 0)
        seeds = [[int(rng.integers(2**63)) for rng in rngs] for _ in range(1 + both)]
        noise = [
            torch.randn(plain.shape[1:], generator=torch.Generator().manual_seed(seed))
            for half in seeds[::-1]
            for seed in half
        ]
        expected = plain + 0.3 * torch.stack(noise)
        assert all(torch.equal(each["encoder_hidden_states"], expected) for each in made_there)


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_the_pooled_vector_is_changed_where_the_network_has_it(pipes, kind):
    pipe = pipes[kind]
    with spied(network_of(pipe), "forward") as calls:
        made(pipe)
        mitigated(pipe, of("Moved"))
    before, after = (
        each["added_cond_kwargs"]["text_embeds"] if kind == "sdxl" else each["pooled_projections"]
        for each in (calls[0], calls[-1])
    )
    side = torch.tensor([-0.5, -0.5, 0.5, 0.5] if kind in GUIDED else [0.5, 0.5])[:, None]
    assert torch.equal(after, before + side)


def test_tokens_left_out_and_stressed_are_so_for_the_prompt_alone(pipes):
    pipe = pipes["sd1"]
    mitigated(pipe, of("Watched"))
    _, plain, _ = SEEN[0]
    SEEN.clear()
    with spied(pipe.unet, "forward") as calls:
        mitigated(pipe, of("Stressed", "Watched"))
    _, found, _ = SEEN[0]
    for call in calls:
        assert call["encoder_attention_mask"].tolist() == [[True] * 20] * 2 + [[True] * 10 + [False] * 10] * 2
    torch.testing.assert_close(found.unconditional, plain.unconditional)
    assert not torch.allclose(found.conditional, plain.conditional, rtol=1e-2, atol=1e-2)


def test_a_callback_may_turn_guidance_off_where_mitigations_do_without(pipes):
    from diffusers.callbacks import SDCFGCutoffCallback

    pipe, options = pipes["sd1"], {"callback_on_step_end": SDCFGCutoffCallback(None, 2)}
    with spied(pipe.unet, "forward") as calls:
        mitigated(pipe, ["gaussian_noise(scale=0.3)"], "a red fish", **options)
    assert [len(each["sample"]) for each in calls] == [2, 2, 2, 1, 1]
    assert torch.equal(calls[-1]["encoder_hidden_states"], calls[0]["encoder_hidden_states"][1:])
    with pytest.raises(InputError, match="callback turned guidance off"):
        mitigated(pipe, ["delayed_guidance(start=0.2)"], "a red fish", **options)


def test_a_callback_may_not_change_a_prompt_that_is_changed_already(pipes):
    def change(pipe, i, time, found):
        return {"prompt_embeds": found["prompt_embeds"] + 1}

    options = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    changed = made(pipes["sd1"], **options)
    assert torch.equal(changed, mitigated(pipes["sd1"], ["delayed_guidance(start=0.0)"], **options))
    with pytest.raises(InputError, match="callback changed the prompt"):
        mitigated(pipes["sd1"], ["gaussian_noise(scale=0.3)"], **options)


# Noise


NOISE = [*((kind, None) for kind in KINDS), *(("sd1", name) for name in ("euler", "euler fractional", "dpmpp", "heun"))]


@pytest.mark.parametrize(("kind", "scheduler"), NOISE, ids=[f"{kind}-{name or 'own'}" for kind, name in NOISE])
def test_other_noise_is_what_sampling_starts_from(pipes, kind, scheduler):
    pipe = prepared(pipes, kind, scheduler)
    noise = normal(2, 16 if kind in FLOWS else 4, 16, 16)
    shifted = noise + torch.tensor([0, 0.5]).view(2, 1, 1, 1)
    if kind == "flux":
        noise, shifted = (pipe._pack_latents(each, *each.shape) for each in (noise, shifted))
    given = noise.clone()
    found = mitigated(pipe, of("Shifted"), latents=given)
    assert torch.equal(given, noise)
    assert torch.equal(found[0], made(pipe, latents=noise)[0])
    alike(found, made(pipe, latents=shifted), 1e-4)
    assert not torch.equal(found[1], made(pipe, latents=noise)[1])


# Estimates


@everywhere
def test_an_estimate_of_ones_own_is_what_the_scheduler_goes_on_with(pipes, kind, scheduler):
    """Its own estimate of x0, where it says so, is ours; and the rows we leave alone are untouched."""
    pipe = prepared(pipes, kind, scheduler)
    plain, found = made(pipe), mitigated(pipe, of("Halved(first_only=True)", "Watched"))
    assert torch.equal(found[1], plain[1])
    assert not torch.equal(found[0], plain[0])
    if scheduler in {"euler", "dpmpp", "unipc"} or kind in FLOWS:
        # The last step of these ends in the estimate.
        last = SEEN[-1][1].denoised
        alike(found[0], (pipe._pack_latents(last, *last.shape) if kind == "flux" else last)[0])


def test_rescaling_of_guidance_leaves_our_estimates_alone(pipes):
    pipe = pipes["sd1"]
    alike(mitigated(pipe, of("Halved")), mitigated(pipe, of("Halved"), guidance_rescale=0.7))
    assert not torch.equal(made(pipe), made(pipe, guidance_rescale=0.7))


# Random numbers


@pytest.mark.parametrize("kind", ["sd1", "flux"])
def test_the_same_seed_gives_the_same_images(pipes, kind):
    specs = [*of("Numbered"), "gaussian_noise(scale=0.3)"]

    def three(seed):
        with copyscope.mitigate(pipes[kind], specs, seed=seed):
            return [made(pipes[kind], TEXTS[0], num_images_per_prompt=2) for _ in range(2)]

    first, second, other = three(0), three(0), three(1)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    for one, another in itertools.combinations([*first, *other], 2):
        assert not torch.equal(one, another)


def test_an_image_does_not_depend_on_its_neighbours(pipes):
    pipe, latents = pipes["sd1"], normal(2, 4, 16, 16)
    specs = [*of("Numbered"), "gaussian_noise(scale=0.3)", "delayed_guidance(start=0.5, dynamic=True)"]
    both = mitigated(pipe, specs, latents=latents)
    alike(mitigated(pipe, specs, TEXTS[:1], latents=latents[:1]), both[:1])


# What is left behind


def test_nothing_is_left_behind(pipes):
    specs = ["gaussian_noise(scale=0.1)", *of("Shifted", "Stressed", "Watched")]
    for kind in ("sd1", "flux"):
        pipe = pipes[kind]
        plain, before = made(pipe), state_of(pipe)
        with copyscope.mitigate(pipe, specs if kind == "sd1" else specs[:2]) as same:
            assert same is pipe
            made(pipe)
            assert "forward" not in vars(network_of(pipe))
        assert state_of(pipe) == before
        assert torch.equal(made(pipe), plain)


@pytest.mark.parametrize("kind", ["sd1", "sd3"])
def test_nothing_is_left_behind_by_an_exception(pipes, kind):
    pipe = pipes[kind]
    plain, before = made(pipe), state_of(pipe)

    def fail(*_):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), copyscope.mitigate(pipe, of("Failing")):
        made(pipe)
    assert state_of(pipe) == before
    with copyscope.mitigate(pipe, ["gaussian_noise(scale=0.3)"], seed=2):
        with pytest.raises(RuntimeError, match="on purpose"):
            made(pipe, callback_on_step_end=fail)
        after_a_failure = made(pipe)
    assert state_of(pipe) == before
    with pytest.raises(RuntimeError, match="on purpose"), copyscope.mitigate(pipe, ["gaussian_noise"]):
        fail()
    assert state_of(pipe) == before
    assert torch.equal(made(pipe), plain)
    with copyscope.mitigate(pipe, ["gaussian_noise(scale=0.3)"], seed=2):
        made(pipe)
        assert torch.equal(made(pipe), after_a_failure)


def test_what_was_wrapped_before_is_wrapped_after(pipes):
    pipe = pipes["sd1"]
    with spied(pipe, "encode_prompt") as texts, spied(pipe.unet, "forward") as calls:
        spies = pipe.encode_prompt, pipe.unet.forward
        mitigated(pipe, of("Numbered"))
        assert (pipe.encode_prompt, pipe.unet.forward) == spies
    assert (len(texts), len(calls)) == (1, 5)


def test_what_is_set_anew_meanwhile_stays(pipes):
    pipe, calls = pipes["sd1"], []

    def replacement(*args, **kwargs):
        calls.append(kwargs)
        return type(pipe).encode_prompt(pipe, *args, **kwargs)

    try:
        with copyscope.mitigate(pipe, of("Numbered")):
            pipe.encode_prompt = replacement
        assert pipe.encode_prompt is replacement
        made(pipe)
        assert len(calls) == 1
    finally:
        del pipe.encode_prompt


def test_questions_between_calls_are_the_pipelines_own_affair(pipes):
    pipe = pipes["sd1"]
    with torch.no_grad(), _pipelines.quiet():
        plain = pipe.encode_prompt(TEXTS, "cpu", 1, True)
        found = pipe.unet(normal(2, 4, 16, 16), 5, plain[0]).sample
        with copyscope.mitigate(pipe, of("Numbered", "Moved", "Halved")):
            for _ in range(2):
                again = pipe.encode_prompt(TEXTS, "cpu", 1, True)
                assert torch.equal(plain[0], again[0])
                assert torch.equal(pipe.unet(normal(2, 4, 16, 16), 5, again[0]).sample, found)
                made(pipe)


def test_offloading_goes_on(folders, monkeypatch):
    from accelerate.hooks import CpuOffload, add_hook_to_module

    def offloaded(pipe):
        def enable(device=None):
            pipe.remove_all_hooks()
            add_hook_to_module(pipe.unet, CpuOffload("cpu"))
            pipe._all_hooks = [pipe.unet._hf_hook]

        monkeypatch.setattr(pipe, "enable_model_cpu_offload", enable, raising=False)
        enable()
        return pipe

    specs = ["gaussian_noise(scale=0.3)", *of("Halved")]
    plain, pipe = loaded(folders["sd1"]), offloaded(loaded(folders["sd1"]))
    with copyscope.mitigate(plain, specs), copyscope.mitigate(pipe, specs):
        for _ in range(2):
            assert torch.equal(made(plain), made(pipe))
    assert torch.equal(made(plain), made(pipe))
    assert hasattr(pipe.unet, "_hf_hook")
    pipe.remove_all_hooks()
    assert torch.equal(made(plain), made(pipe))


def test_a_lora_goes_along(folders):
    from copyscope.diffusion.models._pipelines import add_lora

    pipe = loaded(folders["sd1"])
    before = made(pipe)
    add_lora(pipe.unet, 2, 2, 0)
    for name, value in pipe.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(0))
    plain = made(pipe)
    assert not torch.equal(before, plain)
    assert torch.equal(plain, mitigated(pipe, hooks("sd1", False)))
    assert not torch.equal(plain, mitigated(pipe, hooks("sd1", True)))


# Pipelines that start from an image


@pytest.fixture
def from_image(pipes):
    import diffusers

    def built(kind):
        pipe, cls = pipes[kind], getattr(diffusers, f"{CLASSES[kind]}Img2ImgPipeline")
        options = {"requires_safety_checker": False} if kind in {"sd1", "sd2"} else {}
        parts = {name: part for name, part in pipe.components.items() if name in cls.__init__.__code__.co_varnames}
        with _pipelines.quiet():
            made = cls(**parts, **options)
        made.set_progress_bar_config(disable=True)
        return made

    return built


@pytest.mark.parametrize("kind", KINDS)
def test_pipelines_that_start_from_an_image(from_image, kind):
    from PIL import Image

    pipe = from_image(kind)
    options = {"image": [Image.fromarray(each) for each in pictures(2)], "strength": 0.6}
    if kind in {"sd1", "sd2", "sdxl"}:
        options |= {"height": None, "width": None}

    def again(specs, **more):
        kept = {name: value for name, value in (options | more).items() if value is not None}
        with copyscope.mitigate(pipe, specs), _pipelines.quiet():
            generator = torch.Generator().manual_seed(0)
            return pipe(TEXTS, num_inference_steps=5, output_type="latent", generator=generator, **kept).images

    if kind in FLOWS:
        options |= {"height": 32, "width": 32}
    plain = again([])
    quiet = [spec for spec in hooks(kind, False) if "Shifted" not in spec]
    assert torch.equal(again(quiet), plain)
    assert [(ask.i, ask.n_steps) for ask, _, _ in SEEN] == [(0, 3), (1, 3), (2, 3)]
    ask, _, request = SEEN[0]
    torch.testing.assert_close(request.noise * request.sigma, ask.x)
    for spec in hooks(kind, True):
        if "Shifted" in spec:
            with pytest.raises(InputError, match=r"Shifted.* acts on noise.* starts from an image"):
                again([spec])
        elif "Watched" not in spec:
            assert not torch.equal(again([spec]), plain), spec


# Refusals


@pytest.fixture
def unasked(pipes):
    """Nothing here may reach a network."""
    with contextlib.ExitStack() as spies:
        calls = [spies.enter_context(spied(network_of(pipe), "forward")) for pipe in pipes.values()]
        yield
        assert not any(calls)


def test_unknown_mitigations_and_those_of_training_are_refused_at_the_door(pipes, unasked):
    for specs, error, match in (
        (["delayed_guidence"], PartError, "Did you mean 'delayed_guidance'"),
        (["gaussian_noise(scale=-1)"], PartError, "scale"),
        (["mix_up"], InputError, "acts in training only"),
        (of(f"Watched(wants={(NEAREST,)})"), InputError, "nearest training image"),
    ):
        with pytest.raises(error, match=match), copyscope.mitigate(pipes["sd1"], specs):
            raise AssertionError
    with pytest.raises(InputError, match="seed must be at least 0"), copyscope.mitigate(pipes["sd1"], [], seed=-1):
        raise AssertionError


@pytest.mark.parametrize("need", [NULL, GUIDANCE])
def test_flux_has_no_prediction_without_a_prompt(pipes, unasked, need):
    spec = of(f"Watched(wants={(need,)})")
    with (
        pytest.raises(
            InputError, match=r"a prediction without a prompt, which this model does not make.*\nUse another"
        ),
        copyscope.mitigate(pipes["flux"], spec),
    ):
        raise AssertionError


def test_guidance_of_its_own_kind_in_flux_keeps_its_negative_prompt(pipes):
    pipe, options = pipes["flux"], {"true_cfg_scale": 2.0, "negative_prompt": ["ugly", "dull"]}
    plain = made(pipe, **options)
    assert not torch.equal(plain, made(pipe))
    with read_by_tokenizers(pipe) as read:
        changed = mitigated(pipe, of("Numbered", "Moved", "Shifted"), **options)
    assert not torch.equal(plain, changed)
    assert ["ugly", "dull"] in read
    with spied(pipe.transformer, "forward") as calls:
        assert torch.equal(plain, mitigated(pipe, of("Numbered(n=0)", "Moved(by=0.0)", "Shifted(by=0.0)"), **options))
        mitigated(pipe, of("Moved"), **options)
    own, negative = ([each["encoder_hidden_states"] for each in calls[start::2]] for start in (0, 1))
    assert torch.equal(own[5], own[0] + 0.5)
    assert torch.equal(negative[5], negative[0])
    with pytest.raises(InputError, match=r"Halved.* does not fit true_cfg_scale"):
        mitigated(pipe, of("Halved"), **options)


def test_what_a_call_lacks_is_refused_in_the_call(pipes, unasked):
    pipe = pipes["sd1"]
    with pytest.raises(InputError, match=r"needs classifier-free guidance, and there is none"):
        mitigated(pipe, ["delayed_guidance"], guidance_scale=1.0)
    with _pipelines.quiet(), torch.no_grad():
        text, none = pipe.encode_prompt(TEXTS, "cpu", 1, True)
    embeddings = {"prompt_embeds": text, "negative_prompt_embeds": none}
    for spec in of("Numbered", f"Watched(wants={(PROMPTS,)})"):
        with pytest.raises(InputError, match=r"needs prompts as text, and was given embeddings"):
            mitigated(pipe, [spec], None, **embeddings)
    # The spec as it was given, without the tokenizer that the part was.
    with pytest.raises(InputError, match=r"^random_tokens\(n=3\) needs prompts as text"):
        mitigated(pipe, ["random_tokens(n=3)"], None, **embeddings)


def test_fused_projections_are_refused_before_the_network_is_asked(folders):
    pipe = loaded(folders["sd1"])
    with spied(pipe.unet, "forward") as calls:
        with copyscope.mitigate(pipe, ["attention_rescaling"]):
            pipe.fuse_qkv_projections(vae=False)
            with pytest.raises(InputError, match=r"attention_rescaling needs .* fused"):
                made(pipe)
        with pytest.raises(InputError, match="they are fused"), copyscope.mitigate(pipe, ["attention_rescaling"]):
            raise AssertionError
    assert not calls
    made(pipe)


def test_embeddings_do_for_the_rest(pipes):
    for kind in ("sd1", "sd3", "flux"):
        pipe = pipes[kind]
        with _pipelines.quiet(), torch.no_grad():
            if kind == "sd1":
                text, none = pipe.encode_prompt(TEXTS, "cpu", 1, True)
                embeddings = {"prompt_embeds": text, "negative_prompt_embeds": none}
            elif kind == "sd3":
                names = (
                    "prompt_embeds",
                    "negative_prompt_embeds",
                    "pooled_prompt_embeds",
                    "negative_pooled_prompt_embeds",
                )
                embeddings = dict(zip(names, pipe.encode_prompt(TEXTS, TEXTS, TEXTS), strict=True))
            else:
                embeddings = dict(
                    zip(("prompt_embeds", "pooled_prompt_embeds"), pipe.encode_prompt(TEXTS)[:2], strict=True)
                )
        kept = {name: value.clone() for name, value in embeddings.items()}
        with copyscope.mitigate(pipe, [*of("Shifted"), "gaussian_noise(scale=0.3)"], seed=4):
            found = made(pipe, None, **embeddings)
        assert all(torch.equal(value, kept[name]) for name, value in embeddings.items())
        assert torch.equal(found, mitigated(pipe, [*of("Shifted"), "gaussian_noise(scale=0.3)"], at=4))


def test_pipelines_of_other_kinds_are_refused(pipes):
    from diffusers import DDPMPipeline, EDMEulerScheduler, UNet2DModel

    options = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
    with _pipelines.quiet():
        other = DDPMPipeline(UNet2DModel(8, block_out_channels=(8,), **options), pipes["sd1"].scheduler)
    with (
        pytest.raises(InputError, match=r"DDPMPipeline.*\nTake one of StableDiffusionPipeline"),
        copyscope.mitigate(other, []),
    ):
        raise AssertionError
    pipes["sd1"].scheduler = EDMEulerScheduler()
    with spied(pipes["sd1"].unet, "forward") as calls, pytest.raises(InputError, match="EDMEulerScheduler"):
        mitigated(pipes["sd1"], ["gaussian_noise"])
    assert not calls


def test_a_second_time_within_is_refused_and_another_pipeline_is_not(pipes):
    with copyscope.mitigate(pipes["sd1"], ["gaussian_noise"]):
        with pytest.raises(InputError, match="has mitigations already"), copyscope.mitigate(pipes["sd1"], []):
            raise AssertionError
        with copyscope.mitigate(pipes["sd3"], ["gaussian_noise"]):
            made(pipes["sd3"])
        made(pipes["sd1"])


def test_guidance_by_skipped_layers_is_refused(pipes):
    with pytest.raises(InputError, match="do not fit skip_guidance_layers"):
        mitigated(pipes["sd3"], ["gaussian_noise"], skip_guidance_layers=[0], skip_layer_guidance_stop=1.0)


# Beside our own sampler


@pytest.mark.parametrize(
    "specs",
    [
        [],
        ["gaussian_noise(scale=0.3, both=True)", "delayed_guidance(start=0.35)"],
        ["noise_adjustment(rho=10.0)"],
        of("Shifted", "Halved", "Moved"),
    ],
    ids=["none", "guidance", "noise", "own"],
)
@pytest.mark.parametrize("kind", GUIDED)
def test_images_are_those_of_our_own_sampler(pipes, folders, kind, specs):
    pipe, model, seeds = pipes[kind], small(folders[kind]), seeds_of(9, 0, 2)
    recipe = SampleRecipe(steps=6, guidance=3.0, mitigations=tuple(specs), n_images=2)
    ours = sample(model, model.condition(TEXTS), seeds, recipe, prompts=TEXTS)
    levels = sampling.noise_levels(6, *model.sigmas, model.schedule).double()
    if kind in FLOWS:
        rescheduled(pipe, "FlowMatchEulerDiscreteScheduler", shift=1.0)
        sigmas = (levels / (1 + levels))[:-1].tolist()
    else:
        rescheduled(pipe, "EulerDiscreteScheduler", timestep_spacing="linspace")
        sigmas = levels.tolist()
    noise = sampling.noise(seeds, model.shape)
    # Our flows start at sigma * noise, those of diffusers at (1 + sigma) * noise.
    noise = noise * float(levels[0] / (1 + levels[0])) if kind in FLOWS else noise
    options = {"sigmas": sigmas, "latents": noise, "guidance_scale": 3.0, "output_type": "np"}
    with copyscope.mitigate(pipe, specs, seed=9):
        theirs = made(pipe, steps=6, **options)
    np.testing.assert_allclose(np.stack(ours) / 255, theirs, atol=0.02)
    assert np.stack(ours).std() > 10


# What it stands on


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_schedules_there_and_back(pipes, predicts):
    vp = dataclasses.replace(small(pipes["sd1"].name_or_path)._schedule, predicts=predicts)
    for schedule in (vp, _schedules.Flow(1000, 3.0)):
        sigma = torch.tensor([0.03, 0.5, 14.0])
        torch.testing.assert_close(schedule.level(schedule.time(sigma)), sigma, rtol=2e-3, atol=0)
        x, found, level = normal(3, 4, 8, 8), normal(3, 4, 8, 8, seed=1), sigma.view(-1, 1, 1, 1)
        torch.testing.assert_close(schedule.unscaled(schedule.scaled(x, level), level), x)
        back = schedule.found(x, level, schedule.denoised(x, level, found))
        torch.testing.assert_close(back, found, rtol=1e-3, atol=1e-4)
    assert torch.equal(vp.level(torch.arange(1000)), vp.table)
    assert vp.level(torch.tensor([-1.0, 5000])).tolist() == [*vp.sigmas]
    assert (vp.level(torch.arange(0, 999, 0.25)).diff() > 0).all()
    flow = _schedules.Flow(1000, 3.0)
    torch.testing.assert_close(flow.level(torch.tensor([0.0, 500.0, 1000.0])), torch.tensor([1 / 999, 1.0, 999.0]))


def test_a_model_around_a_pipeline_is_its_model(pipes, folders):
    for kind in KINDS:
        around, own = (
            StableDiffusion.around(pipes[kind], "cpu", (16, 16, 16) if kind in FLOWS else (4, 16, 16)),
            small(folders[kind]),
        )
        assert (around.shape, around.image_size, around.sigmas) == (own.shape, 32, own.sigmas)
        assert torch.equal(around.encode(pictures()), own.encode(pictures()))
        latents = own.encode(pictures())
        assert np.array_equal(around.decode(latents), own.decode(latents))
        with torch.no_grad():
            one, other = (each(latents, torch.ones(4), each.condition(TEXTS * 2)) for each in (around, own))
        assert torch.equal(one, other)


def test_the_pictures_of_a_model_around_a_pipeline_in_half_precision(folders):
    pipe = loaded(folders["sd1"]).to(torch.bfloat16)
    around = StableDiffusion.around(pipe, "cpu")
    assert (around.precision, around.shape) == ("bfloat16", (4, 16, 16))
    latents = around.encode(pictures())
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, small(folders["sd1"]).encode(pictures()), rtol=0.1, atol=0.1)
    assert around.decode(latents)[0].shape == (32, 32, 3)


@pytest.mark.parametrize("kind", GUIDED)
def test_a_part_that_only_asks_for_another_scale_is_heard(pipes, kind):
    found = mitigated(pipes[kind], of("HalfScale"), guidance_scale=6.0)
    assert torch.allclose(found, made(pipes[kind], guidance_scale=3.0), atol=1e-4)
    assert not torch.allclose(found, made(pipes[kind], guidance_scale=6.0), atol=1e-2)
    SEEN.clear()
    mitigated(pipes[kind], of("HalfScale", "Watched"), guidance_scale=6.0)
    assert [(ask.scale.tolist(), step.scale.tolist()) for ask, step, _ in SEEN] == [([6.0] * 2, [3.0] * 2)] * 5


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_an_answer_at_another_place_tells_its_scale_too(pipes, scale):
    mitigated(pipes["sd1"], of("Elsewhere", "Watched"), guidance_scale=scale)
    assert [step.scale.tolist() for _, step, _ in SEEN] == [[scale] * 2] * 5


# The shelf


def of_the_shelf():
    """Each mitigation of sampling, at a strength at which it acts on an untrained network."""
    strong = {
        "antimemorization_guidance": "antimemorization_guidance(threshold=-1.0, dissimilarity=5.0)",
        "attention_rescaling": "attention_rescaling(factor=8.0)",
        "delayed_guidance": "delayed_guidance(start=0.8)",
        "generalised_captions": "generalised_captions(words=1)",
        "noise_adjustment": "noise_adjustment(gamma=50.0, rho=5.0)",
        "prompt_optimisation": "prompt_optimisation(target=0.0)",
        "prompt_reanchoring": "prompt_reanchoring(threshold=0.0, trigger=0.0)",
        "random_tokens": "random_tokens(probability=1.0)",
        "sharpness_aware_noise": "sharpness_aware_noise(target=0.0)",
        "word_repetition": "word_repetition(probability=1.0)",
    }
    names = parts.names("mitigations")
    return [strong.get(each, each) for each in names if SAMPLING in parts.part_class("mitigations", each).stages]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("spec", of_the_shelf())
def test_every_part_of_the_shelf_acts_on_every_family_or_says_why_not(pipes, kind, spec):
    pipe, part = pipes[kind], parts.load("mitigations", spec)
    lacking = {NULL, GUIDANCE} if kind == "flux" else set()
    lacking |= {CROSS_ATTENTION} if kind in ("flux", "sd3") else set()

    def find(pictures):
        return [NearestImage(0.9, TEXTS[0], np.full((32, 32, 3), 90, np.uint8)) for _ in pictures]

    if lacking & set(part.needs):
        with pytest.raises(InputError, match="needs"), copyscope.mitigate(pipe, [spec], nearest=find):
            made(pipe)
        return
    plain = made(pipe)
    with copyscope.mitigate(pipe, [spec], seed=1, nearest=find):
        found = made(pipe)
    assert found.isfinite().all()
    assert found.shape == plain.shape
    assert not torch.equal(found, plain)
    assert torch.equal(made(pipe), plain), "nothing is left behind"
