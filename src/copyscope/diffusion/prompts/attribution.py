"""Attribute memorization to the words of a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from copyscope.diffusion import applied, generate, sampling
from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import Predict, text_conditional_norm
from copyscope.diffusion.mitigations import NULL
from copyscope.diffusion.models import Model
from copyscope.errors import InputError


class Weighed(NamedTuple):
    """A word of a prompt and how much it triggers a memory.

    Attributes:
        word: the word.
        weight: NaN where the model never saw it, the prompt being longer than what it takes in.
    """

    word: str
    weight: float


def by_gradient(model: Model, prompt: str, *, seeds: Sequence[int] = (0, 1, 2, 3)) -> list[Weighed]:
    """Attribute memorization to words by the gradient of the text-conditional norm with respect to their token states.

    Source: Wen et al. 2024, section 4. Two model calls a seed, one with its backward pass.

    Args:
        model: with a `tokenizer` that takes words one by one (CLIP, BERT, T5) and a null.
        prompt: the text.
        seeds: of the starting noise; one at least.

    Returns:
        Each word with the length of the gradient, root mean square over seeds.

    Raises:
        InputError: the model has no tokenizer or no null.
    """
    if model.tokenizer == "":
        raise InputError(f"{model} has no tokens.\nUse by_leaving_out")
    x, sigma, predict, null = _start(model, seeds)
    told = model.condition([prompt] * len(seeds)).to(model.device)
    found = []
    for row in range(len(seeds)):
        one = told.take([row])
        text = one.text.clone().requires_grad_()
        with torch.enable_grad():
            pull = predict(x[[row]], sigma[[row]], dataclasses.replace(one, text=text))
            with torch.no_grad():
                none = predict(x[[row]], sigma[[row]], null.take([row]))
            # Not `backward`, which would leave gradients on the model's weights.
            (gradient,) = torch.autograd.grad(text_conditional_norm(pull - none, sigma[[row]]).sum(), text)
        found.append(gradient[0].norm(dim=-1))
    tokens = torch.stack(found).square().mean(0)
    places = _places(model, prompt)
    return [Weighed(word, _length(tokens, at)) for word, at in zip(prompt.split(), places, strict=True)]


@torch.no_grad()
def by_leaving_out(model: Model, prompt: str, *, seeds: Sequence[int] = (0, 1, 2, 3)) -> list[Weighed]:
    """Attribute memorization to words by how much the text-conditional norm falls without each.

    Source: our own, with the norm of Wen et al. 2024. words + 2 model calls a seed.

    Args:
        model: with a null.
        prompt: the text.
        seeds: of the starting noise; one at least.

    Returns:
        Each word with the fall of the norm, the mean over seeds.

    Raises:
        InputError: the model has no null.
    """
    x, sigma, predict, null = _start(model, seeds)
    words = prompt.split()
    others = [" ".join(words[:place] + words[place + 1 :]) for place in range(len(words))]
    none, norms = predict(x, sigma, null), []
    for text in (prompt, *others):
        told = model.condition([text] * len(seeds)).to(model.device)
        norms.append(text_conditional_norm(predict(x, sigma, told) - none, sigma).mean().item())
    return [Weighed(word, norms[0] - norm) for word, norm in zip(words, norms[1:], strict=True)]


def _start(model: Model, seeds: Sequence[int]) -> tuple[Tensor, Tensor, Predict, Conditioning]:
    """Where sampling starts from each seed [n], at which level, what asks the model there, and what is nothing."""
    applied.refuse("Attribution", (NULL,), model, 1.0, ())
    noise = sampling.noise(seeds, model.shape).to(model.device)
    sigma = noise.new_full((len(seeds),), model.sigmas[1])
    null = model.condition([""]).take([0] * len(seeds)).to(model.device)
    return noise * model.sigmas[1], sigma, generate.in_blocks(model, generate.block_size(model.shape, len(seeds))), null


def _places(model: Model, prompt: str) -> list[range]:
    """The places of each word's tokens among those of the prompt."""
    whole = model.tokenizer(prompt).input_ids
    # What precedes the first word: the tokenizer's own first token, if it has one.
    at = model.tokenizer("").input_ids
    first = len(at) - 1 if len(at) > 1 else 0
    found = []
    for word in prompt.split():
        n = len(model.tokenizer(word).input_ids) - len(at)
        found.append(range(first, first + n))
        first += n
    if first + (1 if at else 0) != len(whole):
        raise InputError(f"The tokenizer of {model} does not take words one by one.\nUse by_leaving_out")
    return found


def _length(squares: Tensor, places: range) -> float:
    """Of a word's gradient; NaN where the model is told fewer tokens, the last of which says that the text ends."""
    return squares[places.start : places.stop].sum().sqrt().item() if places.stop < len(squares) else float("nan")
