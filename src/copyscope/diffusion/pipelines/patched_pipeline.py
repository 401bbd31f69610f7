"""Patch the call of one pipeline object; prompt mitigations for any text pipeline."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from copyscope.diffusion import applied
from copyscope.diffusion.mitigations import NEEDS, PROMPTS, SAMPLING, OnCaption
from copyscope.diffusion.models import _pipelines
from copyscope.diffusion.observed import Observed
from copyscope.errors import InputError

PROMPTS_OF = ("prompt", "prompt_2", "prompt_3")
MARK = "_copyscope_wrapped"
"""Attribute of the class that an object has meanwhile."""
_ENTERING = threading.Lock()
_LOCKS: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def wrapped_calls(pipeline: Any, call: Callable[..., Any]) -> Iterator[None]:
    """Wrap the calls of one pipeline object while it lasts: `pipeline(...)` is `call(its own call, ...)`.

    Python looks `__call__` up in the class: this one object is of a subclass meanwhile, of the same name.

    Raises:
        InputError: its calls are wrapped already, by whichever thread.
    """
    with _ENTERING:
        kind = type(pipeline)
        if hasattr(kind, MARK):
            raise InputError(
                "The pipeline has mitigations already.\n"
                "Name all of them in one list; threads share one `with`, or have a pipeline each"
            )

        @functools.wraps(kind.__call__)
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            return call(functools.partial(kind.__call__, self), *args, **kwargs)

        names = {"__call__": __call__, "__module__": kind.__module__, "__qualname__": kind.__qualname__, MARK: True}
        _become(pipeline, type(kind.__name__, (kind,), names | {"__doc__": kind.__doc__}))
    try:
        yield
    finally:
        _become(pipeline, kind)


def wrapped_method(until: contextlib.ExitStack, owner: Any, name: str, new: Callable[..., Any]) -> Callable[..., Any]:
    """Sets a method of this one object; gives the one it had. Undone at the end of `until`, unless it was set anew."""
    before: Callable[..., Any] = getattr(owner, name)
    own = vars(owner).get(name)

    def back() -> None:
        if vars(owner).get(name) is not new:
            return
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)

    setattr(owner, name, new)
    until.callback(back)
    return before


def lock_of(shared: Any) -> threading.RLock:
    """Lock of a network, whichever pipelines it is a part of."""
    with _ENTERING:
        return _LOCKS.setdefault(shared, threading.RLock())


def seeds_of(seed: int, call: int, n: int) -> list[int]:
    """Seeds of 63 bits for the n images of a call."""
    keys = ([seed, call, row] for row in range(n))
    return [int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1) for key in keys]


def rewritten(parts: applied.MitigationStack, texts: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Captions of this draw, each rewritten with the seed of its image."""
    rngs_of = [lambda number, seed=seed: applied.sampling_rngs([seed], number)[0] for seed in seeds]
    return [parts.caption([text], rng_of) for text, rng_of in zip(texts, rngs_of, strict=True)]


class CaptionsOnly:
    """Prompt mitigations for a pipeline of any class whose calls take `prompt`: rewrites it before the call begins.

    A rewritten prompt holds for all images of the prompt, since how many there are is the pipeline's own.

    Args:
        pipeline: the pipeline.
        parts: the mitigations.
        specs: of them.
        seed: of what they draw.
    """

    observed = Observed()
    """Nothing is observed."""

    def __init__(self, pipeline: Any, parts: applied.MitigationStack, specs: Sequence[str], seed: int) -> None:
        self.pipeline, self.parts, self.specs, self.seed = pipeline, parts, specs, seed
        self.signature = _pipelines.call_signature(pipeline)
        self.calls, self.lock = itertools.count(), threading.RLock()

    @contextlib.contextmanager
    def there(self) -> Iterator[None]:
        """Rewrite prompts while it lasts."""
        with contextlib.ExitStack() as wrapped:
            wrapped.enter_context(wrapped_calls(self.pipeline, self._called))
            try:
                yield
            finally:
                # Not in the midst of another thread's call.
                wrapped.enter_context(self.lock)

    def _called(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            given = _pipelines.named(self.signature, args, kwargs)
            if self.specs and given.get("prompt") is None:
                what, instead = NEEDS[PROMPTS]
                raise InputError(f"{self.specs[0]} needs {what}.\n{instead}")
            n = 1 if isinstance(given.get("prompt"), str) else len(given.get("prompt") or ())
            each = given.get("num_images_per_prompt") or 1
            seeds = seeds_of(self.seed, next(self.calls), n * each)[::each]
            for name in PROMPTS_OF:
                if value := given.get(name):
                    texts = [value] * n if isinstance(value, str) else list(value)
                    found = rewritten(self.parts, texts, seeds)
                    given[name] = found[0] if isinstance(given["prompt"], str) else found
            return plain(**given)


def captions_only(pipeline: Any, mitigations: Sequence[str], signals: Sequence[str], seed: int) -> CaptionsOnly:
    """Prompt mitigations for a pipeline of no known family.

    Raises:
        InputError: more is asked than to rewrite its prompt.
    """
    parts = applied.MitigationStack(tuple(applied.named(spec, SAMPLING) for spec in mitigations))
    unfit = [spec for spec, part in zip(mitigations, parts.parts, strict=True) if not isinstance(part, OnCaption)]
    if signals or unfit or not _pipelines.takes_prompt(pipeline):
        supported = ", ".join(_pipelines.NETWORKS)
        what = "Signals" if signals else unfit[0] if unfit else "Mitigations"
        raise InputError(
            f"{what} do{'es' * bool(unfit and not signals)} not fit a {type(pipeline).__name__}.\n"
            f"Take one of {supported}, or its {_pipelines.IMAGE_TO_IMAGE} kind; "
            "any pipeline that takes a prompt has random_numbers and the like"
        )
    return CaptionsOnly(pipeline, parts, tuple(mitigations), seed)


def _become(pipeline: Any, kind: type) -> None:
    try:
        # Past the setattr of pipelines, which is for their parts.
        object.__setattr__(pipeline, "__class__", kind)
    except TypeError:
        raise InputError(f"Mitigations do not fit a {type(pipeline).__name__}.\nTake a pipeline of diffusers") from None
