"""`generate`: sample images from a model into an imagefolder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from copyscope import parts, recipes
from copyscope.data.captions.tables import records
from copyscope.data.corpus import Corpus
from copyscope.data.storage import connect
from copyscope.documents import read_json
from copyscope.errors import InputError
from copyscope.files import is_bare, write_bytes, write_json
from copyscope.imaging import images
from copyscope.machine import Progress

from . import applied, observed, sampling
from .conditioning import Conditioning
from .denoiser import DenoiseQuery, DenoiseResult, FindNearest, GuidedDenoiser, Predict, SamplingContext, guided
from .mitigations import NEAREST, PROMPTS, SAMPLING
from .models import Image, Model
from .signals import Signal

if TYPE_CHECKING:
    from .run import Run

SCHEMA = "copyscope.generated/1"
METADATA = "metadata.jsonl"
SCORES = "scores.json"
"""Of the images made so far, by their file, as long as METADATA is not there."""
PROMPT_STREAM = 1
"""Stream of the recipe's seed that training captions are drawn from; those of the noise are its children."""
BLOCK_NUMBERS, BLOCK_IMAGES = 2**18, 64
"""Most numbers of latents, and most images, that a network is shown at a time."""

Prompt = tuple[str, str | None]
"""A prompt, and the id of the training image whose caption it is, None if it is of none."""


@dataclasses.dataclass(frozen=True)
class SampleRecipe:
    """Recipe of sampling: how images are made.

    Args:
        n_images: how many, 1 or more.
        steps: of the sampler.
        sampler: as in `sampling`: "euler", "heun" or "dpmpp_2m".
        schedule: of noise levels, as in `sampling`; "" = the model's own.
        guidance: scale of classifier-free guidance; 1 = none.
        negative: text that guidance moves away from; "" = no text.
        prompts: "" = the training captions of a run, in an order drawn by the seed, each image's once before any comes
            again; "text:..." = that one; else a file with one a line, taken in turn.
        mitigations: specs of the shelf, in the order they act.
        signals: specs of that shelf, which watch and change no pixel.
        batch_size: images under way at a time; changes no pixel.
        seed: of the recipe; each image has a seed of its own, drawn from it.

    Raises:
        InputError: a value is out of range; the message names it.
    """

    n_images: int = 256
    steps: int = 25
    sampler: str = "euler"
    schedule: str = ""
    guidance: float = 1.0
    negative: str = ""
    prompts: str = ""
    mitigations: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_images", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.\nCorrect the recipe")
        for name, known in (("sampler", (*sampling.SAMPLERS,)), ("schedule", ("", *sampling.SCHEDULES))):
            if getattr(self, name) not in known:
                there = ", ".join(filter(None, known))
                raise InputError(f"{name} cannot be {getattr(self, name)!r}.\nThere are: {there}")
        if not 0 <= self.guidance < math.inf:
            raise InputError(f"guidance must be a number from 0 on, not {self.guidance}.\n1 is none")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, not {self.seed}.\nCorrect the recipe")


@torch.no_grad()
def sample(
    model: Model,
    conditioning: Conditioning,
    seeds: Sequence[int],
    recipe: SampleRecipe,
    *,
    prompts: Sequence[str] | None = None,
    nearest: FindNearest | None = None,
    on_step: Callable[[DenoiseResult], None] | None = None,
    watched: observed.Observed | None = None,
) -> list[Image]:
    """Sample pictures, each from the noise of its seed: [n], uint8 [h w 3] each.

    Args:
        model: the model.
        conditioning: of the pictures [n].
        seeds: of the pictures [n].
        recipe: how.
        prompts: the text of the conditioning [n]; some mitigations want it. None = not known.
        nearest: finds training images; some mitigations want it.
        on_step: is shown each step, once the model has answered and the signals have seen it.
        watched: is filled with what the signals of the recipe see; None = they are not asked.

    Raises:
        InputError: the model gives no finite numbers, or lacks what a mitigation or a signal needs.
    """
    parts = _loaded(model, recipe, prompts is not None, nearest)
    signals = [] if watched is None else _signals(model, recipe, prompts is not None)
    sigmas = sampling.noise_levels(recipe.steps, *model.sigmas, recipe.schedule or model.schedule)
    block = block_size(model.shape, recipe.n_images)
    predict = in_blocks(model, block)
    null = None
    if recipe.guidance != 1 or ((parts.parts or signals) and model.has_null):
        null = model.condition([recipe.negative]).take([0] * len(conditioning)).to(model.device)
    noise = sampling.noise(seeds, model.shape).to(model.device)
    told = conditioning.to(model.device)
    request = SamplingContext(
        model, prompts, told, null, recipe.guidance, float(sigmas[0]), noise, predict, (), nearest, block
    )
    request = parts.prepare(request, seeds)
    if watched is not None:
        watched.begin(signals, request, seeds)
    asked = parts.around(_plain(request), request, seeds)
    scale = noise.new_full((len(noise),), recipe.guidance)

    def denoise(x: Tensor, sigma: Tensor, i: int | None) -> Tensor:
        step = asked(DenoiseQuery(x, sigma, i, recipe.steps, scale))
        if watched is not None:
            watched.see(step)
        if on_step and i is not None:
            on_step(step)
        return step.denoised

    x = sampling.SAMPLERS[recipe.sampler](denoise, request.noise * request.sigma, sigmas)
    if not x.isfinite().all():
        name = str(model).partition("(")[0]
        raise InputError(f"{name} gives numbers that are not finite.\nTrain it again, with a lower learning_rate")
    return [picture for latent in x for picture in model.decode(latent[None].clone())]


def generate(
    model: Model | Run | str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: SampleRecipe | None = None,
    *,
    captions: Sequence[str] | None = None,
    ids: Sequence[str | None] | None = None,
    nearest: FindNearest | None = None,
    trust_parts: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Generate images into the imagefolder `out`; the same call again makes what is missing and no more.

    Deleted and empty images are missing too, and a call with a higher `n_images` goes on from there.

    PNG files, and, last, `metadata.jsonl` with prompt, seed, recipe, source_id, `told` (the prompt that the model got
    instead, where mitigations rewrote it), and the score of each signal under its spec, null where it has none.

    Args:
        model: a run or its folder, a model, or a spec of the shelf.
        out: folder of the images.
        recipe: how; None = the defaults.
        captions: prompts taken in turn, in place of those that the recipe names; None = the recipe's.
        ids: the training image that each caption is of, None for none.
        nearest: finds training images, for mitigations that want it (`copyscope.nearest` makes one).
        trust_parts: of the folder of a run, as in `Run.open`.
        progress: called with a label, the number done and the total.

    Returns:
        The images with their metadata.

    Raises:
        InputError: `out` holds anything else or cannot be written, there are no prompts, or a mitigation or signal does
            not fit.
        PartError: there is no such model, mitigation or signal, or it is not trusted.
    """
    recipe, out = recipe or SampleRecipe(), Path(out)
    model, run = opened(model, trust_parts)
    prompts, said = _prompts(recipe, captions, ids, run), made_with(model, run, recipe)
    parts = _loaded(model, recipe, True, nearest)
    _signals(model, recipe, True)
    rows = [
        {"file_name": f"{row:06d}.png", "prompt": prompt, "seed": seed, "recipe": said, "source_id": source}
        | _told(parts, prompt, seed)
        for row, ((prompt, source), seed) in enumerate(zip(prompts, seeds_of(recipe), strict=True))
    ]
    try:
        _begin(out, _identity(model, run, recipe, prompts, parts, nearest), prompts)
        if not (out / METADATA).is_file() or not all(_is_made(out / str(row["file_name"])) for row in rows):
            _make(model, out, recipe, rows, nearest, progress)
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_bytes(lines.encode(), out / METADATA)
            (out / SCORES).unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or error
        raise InputError(
            f"Cannot write into {out}: {why}.\nMake room, then call again: what is there is kept"
        ) from None
    return Corpus.open(out)


def block_size(shape: tuple[int, ...], n_images: int) -> int:
    """Block size: how many images a network is shown at a time, ever; fewer the larger they are, `n_images` at most.

    The last bits of a convolution depend on how many images go through it together, and one image in two comes out with
    some value a step off. So batches are cut into blocks of one size, the last one filled up, whatever `batch_size` is.
    """
    return max(1, min(BLOCK_IMAGES, BLOCK_NUMBERS // math.prod(shape), n_images))


def _plain(request: SamplingContext) -> GuidedDenoiser:
    """The model itself, told what to make, with classifier-free guidance unless its scale is 1."""

    def denoiser(ask: DenoiseQuery) -> DenoiseResult:
        with_prompt = denoised = request.predict(ask.x, ask.sigma, request.conditioning)
        without, scale = None, torch.ones_like(ask.scale)
        if request.scale != 1 and request.null is not None:
            without, scale = request.predict(ask.x, ask.sigma, request.null), ask.scale
            denoised = guided(with_prompt, without, scale)
        return DenoiseResult(ask.i, ask.n_steps, ask.sigma, ask.x, with_prompt, without, denoised, scale)

    return denoiser


def in_blocks(model: Model, size: int) -> Predict:
    """Call the model on blocks of `size` rows, for any number of rows."""

    def predict(x: Tensor, sigma: Tensor, told: Conditioning) -> Tensor:
        n, found = len(x), []
        for start in range(0, n, size):
            rows = torch.arange(start, start + size, device=x.device).clamp(max=n - 1)
            # A block is copied out, never a view: sums in a matrix product may depend on where in memory it begins.
            block = told.take(rows)
            with model.attending(block.emphasis):
                found.append(model(x[rows], sigma[rows], block))
        return torch.cat(found)[:n] if found else x

    return predict


def _make(
    model: Model,
    out: Path,
    recipe: SampleRecipe,
    rows: list[dict[str, Any]],
    nearest: FindNearest | None,
    progress: Progress | None,
) -> None:
    """Writes the images of `rows` that are not there yet, and puts the scores of all into `rows`."""
    scores = _scores(out, recipe.signals) if recipe.signals else {}
    known = scores if recipe.signals else {row["file_name"] for row in rows}
    missing = [row for row in rows if row["file_name"] not in known or not _is_made(out / row["file_name"])]
    done = len(rows) - len(missing)
    block = block_size(model.shape, recipe.n_images)
    # Whole blocks, since part of one takes as long.
    size = math.ceil(recipe.batch_size / block) * block
    for start in range(0, len(missing), size):
        batch = missing[start : start + size]
        prompts = [row.get("told", row["prompt"]) for row in batch]
        told = model.condition(prompts)
        seeds, watched = [row["seed"] for row in batch], observed.Observed()
        pictures = sample(model, told, seeds, recipe, prompts=prompts, nearest=nearest, watched=watched)
        for row, picture in zip(batch, pictures, strict=True):
            write_bytes(images.encode(picture, "png"), out / row["file_name"])
        if recipe.signals:
            found = {spec: each.tolist() for spec, each in watched.scores.items()}
            for place, row in enumerate(batch):
                values = {spec: each[place] for spec, each in found.items()}
                scores[row["file_name"]] = {spec: v if math.isfinite(v) else None for spec, v in values.items()}
            write_json(scores, out / SCORES)
        done += len(batch)
        if progress:
            progress("generating", done, len(rows))
    for row in rows:
        row.update(scores.get(row["file_name"], {}))


def _is_made(path: Path) -> bool:
    """Whether an image is there: an empty file is what a full disk or a cut copy leaves."""
    return path.is_file() and path.stat().st_size > 0


def _scores(out: Path, signals: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """The scores of the images made so far; as long as there is no metadata they have a file of their own.

    Raises InputError where that is damaged.
    """
    path, then = out / SCORES, "Remove it: the images are then made again"
    if path.is_file():
        scores = read_json(path, then)
        if not all(isinstance(each, dict) for each in scores.values()):
            raise InputError(f"Cannot read {path}: it holds no scores by image.\n{then}")
        return scores
    if not (out / METADATA).is_file():
        return {}
    found = {record["file_name"]: record for _, record in records(*connect(os.fspath(out / METADATA)))}
    return {
        name: {spec: record.get(spec) for spec in signals}
        for name, record in found.items()
        if all(spec in record for spec in signals)
    }


def _loaded(model: Model, recipe: SampleRecipe, prompted: bool, nearest: FindNearest | None) -> applied.MitigationStack:
    has = [what for what, there in ((PROMPTS, prompted), (NEAREST, nearest is not None)) if there]
    return applied.load(recipe.mitigations, SAMPLING, model, guidance=recipe.guidance, has=has)


def _signals(model: Model, recipe: SampleRecipe, prompted: bool) -> list[Signal]:
    return observed.load(recipe.signals, model, guidance=recipe.guidance, has=[PROMPTS] if prompted else [])


def _told(parts: applied.MitigationStack, prompt: str, seed: int) -> dict[str, str]:
    """What the model is told in place of the prompt, where mitigations make it another."""
    told = parts.caption([prompt], lambda number: applied.sampling_rngs([seed], number)[0])
    return {} if told == prompt else {"told": told}


def opened(model: Model | Run | str | os.PathLike[str], trust_parts: bool = False) -> tuple[Model, Run | None]:
    """Load a model, and the run it is of, if it is of one.

    Args:
        model: a run or its folder, a model, or a spec.
        trust_parts: as in `Run.open`.

    Raises:
        InputError: there is no such run.
    """
    from .run import Run

    if isinstance(model, Model):
        return model, None
    if isinstance(model, Run):
        return model.model, model
    text = os.fspath(model)
    if Path(text).is_dir():
        run = Run.open(text, trust_parts=trust_parts)
        return run.model, run
    if os.sep in text.partition("(")[0]:
        raise InputError(f"There is no folder {text}.\nName the folder of a run, or a model such as small_unet")
    return parts.load("models", text), None


def _prompts(
    recipe: SampleRecipe, captions: Sequence[str] | None, ids: Sequence[str | None] | None, run: Run | None
) -> list[Prompt]:
    """What each image is of [n_images]."""
    found: list[Prompt] = []
    if captions is not None:
        if ids is not None and len(ids) != len(captions):
            raise InputError(f"There are {len(captions)} captions and {len(ids)} ids.\nGive one id a caption, or none")
        found = list(zip(captions, ids or [None] * len(captions), strict=True))
    elif recipe.prompts.startswith("text:"):
        found = [(recipe.prompts.removeprefix("text:"), None)]
    elif recipe.prompts:
        found = [(line, None) for line in prompts_in(recipe.prompts)]
    elif run is not None:
        columns = run.table.select(["id", "captions", "weight", "error"]).to_pylist()
        drawn = [row for row in columns if row["error"] is None and row["weight"] > 0]
        rng = np.random.default_rng(np.random.SeedSequence([recipe.seed, PROMPT_STREAM]))
        while len(found) < recipe.n_images:
            found += [((drawn[row]["captions"] or [""])[0], drawn[row]["id"]) for row in rng.permutation(len(drawn))]
    if not found:
        raise InputError("There are no prompts.\nGive a prompt, a file with one a line, or the folder of a run")
    return [found[row % len(found)] for row in range(recipe.n_images)]


def prompts_in(path: str) -> list[str]:
    """Prompts of a file: its lines that are not empty.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}.\nName a file with a prompt a line"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text in UTF-8.\nName a file with a prompt a line") from None
    return [line.strip() for line in lines if line.strip()]


def seeds_of(recipe: SampleRecipe) -> list[int]:
    """Seeds of a recipe's images, 63 bits each."""
    children = np.random.SeedSequence(recipe.seed).spawn(recipe.n_images)
    return [int(child.generate_state(1, np.uint64)[0] >> 1) for child in children]


def _spec(model: Model, run: Run | None) -> str:
    """A run's model as it was asked for, without the folder of its weights."""
    return run.recipe.model if run else str(model)


def made_with(model: Model, run: Run | None, recipe: SampleRecipe) -> str:
    """Model and recipe of an image in one line."""
    kept = ("steps", "sampler", "schedule", "guidance", "negative")
    values = {name: getattr(recipe, name) for name in kept} | {"schedule": recipe.schedule or model.schedule}
    said = [f"{name}={value}" for name, value in values.items() if value != ""]
    return ", ".join([_spec(model, run), *said, *recipe.mitigations])


def _identity(
    model: Model,
    run: Run | None,
    recipe: SampleRecipe,
    prompts: list[Prompt],
    parts: applied.MitigationStack,
    nearest: FindNearest | None,
) -> dict[str, Any]:
    """All that decides the images, and so which folder a call may go on with."""
    training = hashlib.sha256((run.folder / "summary.json").read_bytes()).hexdigest() if run else None
    who = {"schema": SCHEMA, "model": _spec(model, run), "run_sha256": training, "prompts_sha256": _digest(prompts)}
    if any(NEAREST in part.needs for part in parts.parts):
        who["nearest"] = getattr(nearest, "fingerprint", None)
    return who | {"recipe": recipes.as_dict(recipe)}


def _digest(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def _begin(out: Path, identity: dict[str, Any], prompts: Sequence[Prompt]) -> None:
    """Writes `recipe.json`, or checks the one that is there: with more images it is written again."""
    path = out / "recipe.json"
    if not path.exists():
        if out.exists() and not is_bare(out):
            raise InputError(f"{out} is not empty and holds no generated images.\nName another folder")
        out.mkdir(parents=True, exist_ok=True)
        write_json(identity | recipes.provenance(), path)
        return
    try:
        saved = read_json(path, "Name another folder")
        # Folders from before the finder was kept do not tell which it was.
        before = {"nearest": identity.get("nearest"), **saved, **recipes.as_dict(SampleRecipe()), **saved["recipe"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} cannot be read.\nName another folder") from None
    now = {**identity, **identity["recipe"]}
    had = before["n_images"]
    more = isinstance(had, int) and had < now["n_images"]
    if more:
        # The images that are there are the first ones: of the same seeds, and to be of the same prompts.
        now |= {"n_images": had, "prompts_sha256": _digest(prompts[:had])}
    elif had != now["n_images"]:
        del now["prompts_sha256"]  # of fewer prompts it is another one
    # Not the batch size, which changes no image, nor the file of prompts, but the prompts that were in it.
    decides = now.keys() - {"recipe", "batch_size", "prompts"}
    other = sorted(name.removesuffix("_sha256") for name in decides if before.get(name) != now[name])
    if other:
        hint = f"It has {had} images; fewer cannot be made of them. " if other[0] == "n_images" else ""
        raise InputError(f"{out} holds images that differ in {', '.join(other)}.\n{hint}Name another folder")
    if more:
        # The metadata is of all images or not there; it also has the scores of those that were made.
        if (out / METADATA).is_file():
            if signals := identity["recipe"]["signals"]:
                write_json(_scores(out, signals), out / SCORES)
            (out / METADATA).unlink()
        write_json(identity | recipes.provenance(), path)
