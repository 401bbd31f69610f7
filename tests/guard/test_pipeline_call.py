"""The guard and mitigations on pipelines of more classes: inpainting, ControlNet, and what people derive from them."""

from __future__ import annotations

import copy
import dataclasses
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import copyscope
from copyscope import Guard, Policy
from copyscope.diffusion.models import _pipelines
from copyscope.errors import InputError
from copyscope.guard.kinds import kind_of
from copyscope.guard.pipeline_call import OtherPipelineCall, PipelineCall
from tests.guard.test_guard import RESEEDS, Listed, actions, arrays, generators
from tests.models import tiny_stable_diffusion
from tests.pipelines import loaded

TEXTS = ["a red fish", "two blue houses by the sea", "a dog"]
NEGATIVE = ["grey", "people", "noise"]
ASKED = {"num_inference_steps": 2, "height": 32, "width": 32}
NUMBERS = Policy(ladder=(("random_numbers(n=2, probability=1.0)",),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd1", "sd1")


@pytest.fixture
def pipe(folder):
    return loaded(folder)


def flat(*values):
    return [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in values]


def halves():
    """Masks that each leave out another part."""
    masks = np.zeros((3, 32, 32), np.uint8)
    masks[0, :16] = masks[1, 16:] = masks[2, :, :16] = 255
    return [Image.fromarray(mask) for mask in masks]


def inpainting(pipe):
    from diffusers import StableDiffusionInpaintPipeline

    return quiet(StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False))


def from_image(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    return quiet(StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))


def controlled(pipe, several=False):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    torch.manual_seed(0)
    networks = []
    for _ in range(1 + several):
        network = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
        # One that is new answers nothing.
        for part in network.parameters():
            torch.nn.init.normal_(part, std=0.2)
        networks.append(network.eval())
    parts = pipe.components | {"controlnet": networks if several else networks[0]}
    return quiet(StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False))


def derived(pipe, call=None):
    """A class of the user's own."""
    from diffusers import StableDiffusionPipeline

    class MyPipeline(StableDiffusionPipeline):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    if call:
        MyPipeline.__call__ = call
    return quiet(MyPipeline(**pipe.components, requires_safety_checker=False))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


CLASSES = {
    "text": (lambda pipe: pipe, dict),
    "derived": (derived, dict),
    "image": (from_image, lambda: {"image": flat(20, 120, 220), "strength": 0.9}),
    "inpaint": (inpainting, lambda: {"image": flat(20, 120, 220), "mask_image": halves(), "strength": 0.9}),
    "control": (controlled, lambda: {"image": flat(20, 120, 220)}),
}


def asked(kind, **more):
    found = ASKED | {"negative_prompt": NEGATIVE} | CLASSES[kind][1]() | more
    return {name: value for name, value in found.items() if kind != "image" or name not in ("height", "width")}


def alone(options, row):
    """The arguments of a call about this row."""
    listed = ("negative_prompt", "image", "mask_image")
    return {name: [value[row]] if name in listed else value for name, value in options.items()}


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_row_is_made_again_with_its_own_arguments(pipe, kind, output_type):
    pipe = CLASSES[kind][0](pipe)
    options = asked(kind, num_inference_steps=3)
    if output_type != "pil":
        options |= {"output_type": output_type}
    bare = pipe(TEXTS, generator=generators(3), **options).images
    shown = arrays(pipe(TEXTS, generator=generators(3), **options | {"output_type": "pil"}).images)
    guarding = Guard(Listed(lambda picture: np.array_equal(picture, shown[1])), RESEEDS)
    found = guarding(pipe)(TEXTS, generator=generators(3), **options)
    assert type(found) is type(pipe(TEXTS[:1], **alone(options, 0)))
    assert type(found.images) is type(bare)
    again = torch.Generator().manual_seed(guarding.records[-1].seed)
    by_itself = pipe([TEXTS[1]], generator=again, **alone(options, 1)).images
    assert np.array_equal(arrays(found.images), arrays([bare[0], by_itself[0], bare[2]]))
    assert actions(guarding.records)[-1] == (1, 1, "delivered")


@pytest.mark.parametrize("kind", ["inpaint", "control", "image"])
def test_rows_of_several_images_a_prompt_are_made_again_with_all_others(pipe, kind):
    pipe = CLASSES[kind][0](pipe)
    options = asked(kind, num_images_per_prompt=2)
    bare = arrays(pipe(TEXTS, generator=generators(6), **options).images)
    guarding = Guard(Listed(lambda picture: np.array_equal(picture, bare[3])), RESEEDS)
    found = arrays(guarding(pipe)(TEXTS, generator=generators(6), **options).images)
    assert np.array_equal(np.delete(found, 3, 0), np.delete(bare, 3, 0))
    # Some encode their images with the generators of other rows.
    seeds = [int(np.random.SeedSequence([0, 0, row, 1]).generate_state(1)[0] >> 1) for row in range(6)]
    assert guarding.records[-1].seed == seeds[3]
    again = [torch.Generator().manual_seed(seed) for seed in seeds]
    whole = arrays(pipe(TEXTS, generator=again, **options).images)
    assert np.array_equal(found[3], whole[3]), "how a pipeline lays images out is its own"


def test_images_for_several_networks_are_not_taken_for_those_of_prompts(pipe):
    pipe = controlled(pipe, several=True)
    options = ASKED | {"image": [flat(20, 120), flat(60, 220)], "controlnet_conditioning_scale": [0.9, 0.5]}
    bare = arrays(pipe(TEXTS[:2], generator=generators(2), **options).images)
    guarding = Guard(Listed(lambda picture: np.array_equal(picture, bare[1])), RESEEDS)
    found = arrays(guarding(pipe)(TEXTS[:2], generator=generators(2), **options).images)
    seed = torch.Generator().manual_seed(guarding.records[-1].seed)
    whole = arrays(pipe(TEXTS[:2], generator=[*generators(1), seed], **options).images)
    assert np.array_equal(found, [bare[0], whole[1]])


def test_lists_of_a_class_of_ones_own_stay_with_their_rows(pipe):
    seen = []

    def call(self, prompt, styles=None, **kwargs):
        assert len(prompt) == len(styles)
        seen.append((prompt, styles))
        return super(type(self), self).__call__([f"{a} {b}" for a, b in zip(prompt, styles, strict=True)], **kwargs)

    pipe, answers = derived(pipe, call), iter([False, True, False, False])
    found = Guard(Listed(lambda picture: next(answers)), RESEEDS)(pipe)(TEXTS, styles=["x", "y", "z"], **ASKED)
    assert seen == [(TEXTS, ["x", "y", "z"])] * 2
    assert len(found.images) == 3


@pytest.mark.parametrize("kind", ["inpaint", "control", "derived"])
def test_prompts_are_rewritten_on_the_ladder_of_any_class(pipe, kind):
    pipe, answers, told = CLASSES[kind][0](pipe), iter([False, True, False, False]), []
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda prompt, *args, **kwargs: told.append(prompt) or encode(prompt, *args, **kwargs)
    guarding = Guard(Listed(lambda picture: next(answers)), NUMBERS)
    guarding(pipe)(TEXTS, **asked(kind))
    assert told[0] == TEXTS
    (text,) = told[1]
    assert len(numbered(text)) == 2
    assert [word for word in text.split() if not word.isdigit()] == TEXTS[1].split()
    assert guarding.records[-1].rung == NUMBERS.ladder[0]


def test_how_classes_are_guarded(pipe):
    from diffusers import StableDiffusionPipeline

    kinds = {kind: kind_of(CLASSES[kind][0](pipe)) for kind in CLASSES}
    assert kinds == dict.fromkeys(("text", "derived", "image"), PipelineCall) | dict.fromkeys(
        ("inpaint", "control"), OtherPipelineCall
    )
    assert _pipelines.family(derived(pipe)) == "StableDiffusionPipeline"
    # A name is no family.
    unrelated = type("StableDiffusionPipeline", (), {"__call__": lambda self, prompt: None})
    assert _pipelines.family(unrelated()) == ""
    assert _pipelines.family(pipe) == StableDiffusionPipeline.__name__
    for policy in (Policy(look_at=(0.5,)), Policy(ladder=(("delayed_guidance",),))):
        with pytest.raises(InputError, match="StableDiffusionInpaintPipeline"):
            Guard(Listed(lambda picture: False), policy)(inpainting(pipe))


@pytest.mark.parametrize("kind", ["text", "inpaint", "control", "derived"])
def test_what_holds_no_pictures_is_refused_whatever_the_class(pipe, kind):
    guarded = Guard(Listed(lambda picture: False))(CLASSES[kind][0](pipe))
    with pytest.raises(InputError, match="latent"):
        guarded(TEXTS, output_type="latent", **asked(kind))


def test_a_class_that_gives_latents_by_itself_is_refused(pipe):
    def call(self, prompt, output_type="latent", **kwargs):
        return super(type(self), self).__call__(prompt, output_type=output_type, **kwargs)

    guarded = Guard(Listed(lambda picture: False))(derived(pipe, call))
    with pytest.raises(InputError, match="latent"):
        guarded("a", **ASKED)
    assert len(guarded("a", output_type="np", **ASKED).images) == 1


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda found: found.__setitem__("latents", torch.zeros(1, 4, 16, 16)), "latents"),
        (lambda found: found.__setitem__("images", torch.rand(1, 4, 16, 16)), "shape"),
        (lambda found: found.__setitem__("images", found.images * 2), "2 images where 1"),
    ],
)
def test_what_a_class_of_ones_own_gives_besides_or_instead_is_refused(pipe, change, wrong):
    def call(self, *args, **kwargs):
        found = super(type(self), self).__call__(*args, **kwargs)
        change(found)
        return found

    with pytest.raises(InputError, match=wrong):
        Guard(Listed(lambda picture: False))(derived(pipe, call))("a", **ASKED)


def test_a_class_whose_call_gives_something_else_is_refused(pipe):
    for other in ([], None, (flat(3),), {"frames": flat(3)}):
        guarded = Guard(Listed(lambda picture: False))(derived(pipe, lambda self, *args, given=other, **kwargs: given))
        with pytest.raises(InputError, match="without `images`"):
            guarded("a", **ASKED)


# Mitigations


def numbered(text):
    return [word for word in text.split() if word.isdigit()]


@pytest.mark.parametrize("kind", ["inpaint", "control"])
def test_mitigations_of_the_prompt_act_on_a_pipeline_of_no_known_family(pipe, kind):
    pipe, told = CLASSES[kind][0](pipe), []
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda prompt, *args, **kwargs: told.append(prompt) or encode(prompt, *args, **kwargs)
    cls = type(pipe)
    with copyscope.mitigate(pipe, ["random_numbers(n=2, probability=1.0)"], seed=1) as same:
        assert same is pipe
        assert isinstance(pipe, cls)
        pipe(TEXTS, **asked(kind))
        pipe(TEXTS[0], **alone(asked(kind), 0) | {"negative_prompt": "x"})
    assert type(pipe) is cls
    pipe(TEXTS, **asked(kind))
    assert [len(numbered(text)) for text in told[0]] == [2, 2, 2]
    assert len(numbered(told[1])) == 2
    assert told[1] != told[0][0]
    assert told[2] == TEXTS
    for refused in ("gaussian_noise", "delayed_guidance"):
        with pytest.raises(InputError, match=f"{refused} does not fit"), copyscope.mitigate(pipe, [refused]):
            raise AssertionError
    with pytest.raises(InputError, match="Signals"), copyscope.observe(pipe, ["text_conditional_norm"]):
        raise AssertionError
    assert type(pipe) is cls


def test_mitigations_act_on_a_derived_class_as_on_its_base(pipe):
    specs = ["random_numbers(n=2, probability=1.0)", "gaussian_noise(scale=0.3)", "delayed_guidance(start=0.5)"]
    found = []
    for each in (pipe, derived(pipe)):
        with copyscope.mitigate(each, specs, seed=3):
            found.append(arrays(each(TEXTS, generator=generators(3), **ASKED).images))
    assert np.array_equal(*found)
    assert not np.array_equal(found[0], arrays(pipe(TEXTS, generator=generators(3), **ASKED).images))


def test_a_derived_class_that_goes_past_the_mitigations_is_refused(pipe):
    def call(self, prompt, **kwargs):
        from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput

        return StableDiffusionPipelineOutput(images=flat(3), nsfw_content_detected=None)

    other = derived(pipe, call)
    with copyscope.mitigate(other, ["gaussian_noise"]), pytest.raises(InputError, match="past the mitigations"):
        other("a")
    with copyscope.mitigate(other, []):
        assert len(other("a").images) == 1


# Threads


def run_together(*works):
    """Runs them at once, and gives what each raised."""
    begin, failed = threading.Barrier(len(works)), []

    def run(work):
        begin.wait()
        try:
            work()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def test_threads_that_share_mitigations_take_turns(pipe):
    specs = ["gaussian_noise(scale=0.5)"]
    with copyscope.mitigate(pipe, specs, seed=1):
        one_by_one = [arrays(pipe("a", generator=generators(1), **ASKED).images) for _ in range(6)]
    made = []
    with copyscope.mitigate(pipe, specs, seed=1):
        work = lambda: made.append(arrays(pipe("a", generator=generators(1), **ASKED).images))  # noqa: E731
        assert run_together(*[work] * 6) == []
    assert sorted(each.tobytes() for each in made) == sorted(each.tobytes() for each in one_by_one)


def test_a_second_thread_that_enters_is_refused_and_told_what_to_do(pipe):
    entered, ended = [], threading.Barrier(3)

    def work():
        try:
            with copyscope.mitigate(pipe, ["gaussian_noise"]):
                entered.append(1)
                ended.wait()
        except InputError:
            ended.wait()
            raise

    failed = run_together(work, work, work)
    assert len(entered) == 1
    assert [type(error) for error in failed] == [InputError] * 2
    assert "threads share one `with`" in str(failed[0])
    with copyscope.mitigate(pipe, ["gaussian_noise"]):
        pass


def test_pipelines_that_share_a_network_do_not_mix(pipe):
    from diffusers import StableDiffusionPipeline

    def another():
        return quiet(StableDiffusionPipeline(**pipe.components, requires_safety_checker=False))

    def made(pipeline):
        return arrays(pipeline(TEXTS, generator=generators(3), **ASKED).images)

    plans = {"strong": ["gaussian_noise(scale=0.9)"], "late": ["delayed_guidance(start=0.5)"], "bare": None}

    def work(plan):
        # A scheduler has the state of one call, and so has a tokenizer.
        pipeline = another()
        pipeline.tokenizer = copy.deepcopy(pipe.tokenizer)
        pipeline.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        if plans[plan] is None:
            return made(pipeline)
        with copyscope.mitigate(pipeline, plans[plan], seed=2):
            return made(pipeline)

    wanted = {plan: work(plan) for plan in plans}
    found = []
    assert run_together(*[lambda plan=plan: found.append((plan, work(plan))) for plan in plans for _ in range(3)]) == []
    assert len(found) == 9
    for plan, images in found:
        assert np.array_equal(images, wanted[plan]), plan
    assert "forward" not in vars(pipe.unet)


def test_a_call_within_a_call_of_the_same_network_is_refused(pipe):
    from diffusers import StableDiffusionPipeline

    other = quiet(StableDiffusionPipeline(**pipe.components, requires_safety_checker=False))
    for inner in (pipe, other):

        def again(pipeline, i, t, kwargs, inner=inner):
            inner("a", **ASKED)
            return kwargs

        with (
            copyscope.mitigate(other, ["gaussian_noise"]),
            copyscope.mitigate(pipe, ["gaussian_noise"]),
            pytest.raises(InputError, match="in a call with mitigations"),
        ):
            pipe("a", callback_on_step_end=again, **ASKED)


def test_the_end_waits_for_a_call_under_way(pipe):
    begun, go_on, made = threading.Event(), threading.Event(), []

    def slow(pipeline, i, t, kwargs):
        begun.set()
        go_on.wait()
        return kwargs

    with copyscope.mitigate(pipe, ["gaussian_noise(scale=0.5)"], seed=1):
        wanted = arrays(pipe("a", generator=generators(1), **ASKED).images)
    with copyscope.mitigate(pipe, ["gaussian_noise(scale=0.5)"], seed=1):
        thread = threading.Thread(
            target=lambda: made.append(
                arrays(pipe("a", generator=generators(1), callback_on_step_end=slow, **ASKED).images)
            )
        )
        thread.start()
        begun.wait()
        threading.Timer(0.05, go_on.set).start()
    thread.join()
    assert np.array_equal(made[0], wanted)


# A guarded object is its pipeline


def test_attributes_of_the_pipeline_are_read_and_set_through_the_guard(pipe):
    from diffusers import EulerDiscreteScheduler

    guarded = Guard(Listed(lambda picture: False), RESEEDS)(pipe)
    assert guarded.unet is pipe.unet
    assert guarded.to("cpu") is guarded
    assert guarded.components.keys() == pipe.components.keys()
    scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    guarded.scheduler = scheduler
    assert pipe.scheduler is scheduler
    guarded.scheduler.config["own"] = 1
    guarded.enable_attention_slicing()
    pipe.pipe, pipe.guard, pipe._lock = "a", "b", "c"
    assert (guarded.pipe, guarded.guard, guarded._lock) == ("a", "b", "c")
    guarded.mine = 3
    assert pipe.mine == 3
    del guarded.mine
    assert not hasattr(pipe, "mine")
    assert "StableDiffusionPipeline" in repr(guarded)
    assert "unet" in dir(guarded)
    with pytest.raises(AttributeError):
        guarded.nothing  # noqa: B018


def test_attributes_do_not_lead_past_the_guard(pipe):
    training = arrays(pipe("a", generator=generators(1), **ASKED).images)[0]
    guarded = Guard(Listed(lambda picture: np.array_equal(picture, training)), Policy(tries=1, refuse="none"))(pipe)
    assert guarded.__call__("a", generator=generators(1), **ASKED).images == [None]
    with pytest.raises(AttributeError):
        guarded.__call__ = pipe.__call__
    with pytest.raises(InputError, match="only calls are guarded"):
        guarded.numpy_to_pil(training[None] / 255)
    with pytest.raises(InputError, match="guarded already"):
        Guard(Listed(lambda picture: False))(guarded)

    def make(prompt):
        return training

    make.text = "kept"
    guarded = Guard(Listed(lambda picture: True), Policy(tries=1, refuse="none"))(make)
    assert guarded.text == "kept"
    with pytest.raises(AttributeError):
        guarded.__wrapped__  # noqa: B018


@dataclasses.dataclass
class Painted:
    picture: object


HIDDEN = {
    "a mapping": lambda image: {"image": image},
    "a list of lists": lambda image: [[image], [image]],
    "a dataclass": lambda image: Painted(image),
    "a tuple of a score and a mapping": lambda image: (0.5, {"all": (image,)}),
    "frames": lambda image: np.stack([image] * 2)[None],
    "the last of many": lambda image: [*["a"] * 200, image],
    "a generator": lambda image: (each for each in [image]),
}


@pytest.mark.parametrize("form", HIDDEN)
def test_no_method_gives_images_in_whatever_form(form):
    class Maker:
        def __call__(self, prompt):
            return np.zeros((8, 8, 3), np.uint8)

        def paint(self):
            return HIDDEN[form](np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))

        def state(self):
            return {"weights": [np.zeros((4, 4)), np.full((2, 3, 3), -0.5), torch.nn.Linear(3, 3).weight]}

    guarded = Guard(Listed(lambda picture: False), RESEEDS)(Maker())
    with pytest.raises(InputError, match="paint gave images, and only calls are guarded"):
        list(guarded.paint())
    assert list(guarded.state()) == ["weights"]
