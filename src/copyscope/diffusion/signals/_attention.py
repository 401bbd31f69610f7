"""Read cross-attention maps of a model by hooks: no fork of diffusers, no processor of one's own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import SamplingContext

LEFT_OUT = -10000.0
"""What diffusers adds to the logits of tokens that do not count."""
Reduce = Callable[[Tensor], Tensor]
"""What a layer attends to [n heads places tokens] -> what is kept of it [n ...]."""


def attention(request: SamplingContext, x: Tensor, sigma: Tensor, keep: Reduce) -> list[Tensor]:
    """Read the cross-attentions of a model while it computes D(x, sigma, conditioning): one model call a row.

    Args:
        request: with the model and the conditioning.
        x: latents [n c h w].
        sigma: noise levels [n].
        keep: reduces each map at once, since maps of all layers together are large.

    Returns:
        [n ...] of each of `Model.cross_attentions`.
    """
    told, n, thread = request.conditioning, len(x), threading.get_ident()
    layers = request.model.cross_attentions
    queries: dict[int, Tensor] = {}
    found: list[list[Tensor]] = [[] for _ in layers]

    def watching(place: int, layer: Any) -> tuple[Callable[..., None], Callable[..., None]]:
        def asked(module: nn.Module, given: Any, query: Tensor) -> None:
            if threading.get_ident() == thread:
                queries[place] = query

        def answered(module: nn.Module, given: Any, key: Tensor) -> None:
            if threading.get_ident() == thread:
                # The model is shown the rows in order, in blocks of which the last may be filled up with its last row.
                done = sum(map(len, found[place]))
                rows = torch.arange(done, done + len(key), device=x.device).clamp(max=n - 1)
                found[place].append(keep(probabilities(layer, queries.pop(place), key, told.take(rows))))

        return asked, answered

    with contextlib.ExitStack() as hooks:
        for place, layer in enumerate(layers):
            part: Any = layer
            for projection, hook in zip((part.to_q, part.to_k), watching(place, layer), strict=True):
                hooks.callback(projection.register_forward_hook(hook).remove)
        request.predict(x, sigma, told)
    return [torch.cat(each)[:n] for each in found]


def probabilities(layer: Any, query: Tensor, key: Tensor, told: Conditioning) -> Tensor:
    """Attention probabilities softmax(scale * query . key) over tokens, as the layer itself computes them, in float32.

    Args:
        layer: the attention layer.
        query: [n places d], as its `to_q` gives it.
        key: [n tokens d], as its `to_k` gives it.
        told: conditioning, for mask and emphasis.

    Returns:
        [n heads places tokens].
    """
    heads = [each.float().view(*each.shape[:2], layer.heads, -1).transpose(1, 2) for each in (query, key)]
    for place, norm in enumerate((getattr(layer, "norm_q", None), getattr(layer, "norm_k", None))):
        heads[place] = heads[place] if norm is None else norm(heads[place])
    logits = layer.scale * heads[0] @ heads[1].transpose(-1, -2)
    if told.emphasis is not None:  # Of the model's own hooks, which come after ours.
        logits[..., 0] *= told.emphasis.view(-1, 1, 1)
    if not told.mask.all():
        logits = logits + torch.where(told.mask, 0.0, LEFT_OUT)[:, None, None]
    found: Tensor = logits.softmax(-1)
    return found
