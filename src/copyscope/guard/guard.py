"""Guard: check each generated image against an index; retry, mitigate, blank or refuse copies.

    guard = copyscope.Guard("train.index", log="guard.jsonl")
    images = guard(pipe)("a red fox", num_inference_steps=30).images

Every image is looked up in the index. A copy is made again: with another seed first, then by the rungs of the policy's
ladder; an image of which every try is a copy is refused. `calls` makes the images.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import math
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from copyscope.detection.index.hits import is_rounded
from copyscope.detection.index.index import Hit, Index
from copyscope.diffusion.thresholds import Thresholds
from copyscope.errors import InputError
from copyscope.imaging.images import Image

from . import log as guard_log
from .log import Record
from .retries import GuardedCall

if TYPE_CHECKING:
    from copyscope.diffusion.denoiser import FindNearest

    from .calls import GenerationCall

KEPT_RECORDS = 10_000
LADDER = ((), (), ("random_numbers(n=2, probability=1.0)",), ("random_numbers(n=4, probability=1.0)",))
_LOCKS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_LOCKING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Policy:
    """Rules of a guard: which images are copies, and what is done about them.

    Args:
        rate: false-alarm rate per image, 0 to 1: at 0.05, 5 of 100 clean images are made again needlessly; 0 = the
            training image itself alone is a copy, which needs no calibration images.
        rate_again: the same for an image made again, since its prompt has given a copy already; no lower than `rate`.
        ladder: mitigation specs of the tries after the first, () = another seed alone; the last holds for all beyond.
        tries: of an image, the first included.
        seconds: of a call, after which no try begins.
        refuse: where all tries are copies, "raise" errors.Refused, or put a "blank" image or "none" in its place.
        look_at: shares of the steps, 0 to 1, after which estimates are looked up; if all are copies, the try stops.
        signals: what a signal that flags an image does: "log" alone, or count as a "hit".
        seed: of all that the guard draws.
        local: look up windows of the images too, ten times the work.
        hash_prompts: records hold the sha256 of a prompt, not its text.

    Raises:
        InputError: a value is out of range; the message names it.
    """

    rate: float = 0.05
    rate_again: float = 0.2
    ladder: tuple[tuple[str, ...], ...] = LADDER
    tries: int = 5
    seconds: float = math.inf
    refuse: Literal["raise", "blank", "none"] = "raise"
    look_at: tuple[float, ...] = ()
    signals: Literal["log", "hit"] = "log"
    seed: int = 0
    local: bool = True
    hash_prompts: bool = False

    def __post_init__(self) -> None:
        for name in ("rate", "rate_again"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must lie between 0 and 1, not {getattr(self, name)}.\nTake 0.05, say")
        if self.tries < 1:
            raise InputError(f"tries must be at least 1, not {self.tries}.\n1 makes no image again")
        if self.tries > 1 and not self.ladder:
            raise InputError("The ladder has no rung.\nName one, [] for another seed alone, or take tries=1")
        if any(isinstance(rung, str) for rung in self.ladder):
            raise InputError('A rung is a list of mitigations.\nWrite it as ["random_numbers(n=2, probability=1.0)"]')
        if not self.seconds >= 0:
            raise InputError(f"seconds must be at least 0, not {self.seconds}.\nLeave it out for no limit")
        for name, known in (("refuse", ("raise", "blank", "none")), ("signals", ("log", "hit"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} cannot be {getattr(self, name)!r}.\nThere are: {', '.join(known)}")
        if not all(0 < share < 1 for share in self.look_at) or list(self.look_at) != sorted(set(self.look_at)):
            raise InputError(f"look_at must be ascending shares between 0 and 1, not {self.look_at}.\nTake [0.5], say")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, not {self.seed}.\nTake another")


class Matches(Protocol):
    """Protocol of what may stand for an index; a hit without a p-value, as of a block-list, is always a copy."""

    def match(self, pictures: Sequence[Image]) -> list[list[Hit]]:
        """Hits of each picture [n], uint8 [h w 3], best first."""


class Guard:
    """Guards pipelines and functions with one index, one policy and one log. Safe to use from many threads.

    Args:
        index: an Index or its folder, or any object with a compatible `match`.
        policy: the rules; None = the defaults.
        thresholds: of signals, for pipelines of the network they were calibrated for; watch every unmitigated try.
        nearest: finds training images, for mitigations that want it.
        log: JSONL file to which each Record is appended; None = no file.

    Raises:
        InputError: the index has too few calibration images for the rate, or the log cannot be written.
    """

    def __init__(
        self,
        index: Index | str | os.PathLike[str] | Matches,
        policy: Policy | None = None,
        *,
        thresholds: Thresholds | None = None,
        nearest: FindNearest | None = None,
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        self.policy, self.thresholds, self.nearest = policy or Policy(), thresholds, nearest
        self.index = Index.open(os.fspath(index)) if isinstance(index, (str, os.PathLike)) else index
        self.log = None if log is None else Path(log).absolute()
        self._kept: collections.deque[Record] = collections.deque(maxlen=KEPT_RECORDS)
        self._calls, self._writing = itertools.count(), threading.Lock()
        if isinstance(self.index, Index):
            n = self.index.summary()["calibration"]["n"]
            # The least p-value there is.
            if self.policy.rate and 1 / (n + 1) > self.policy.rate * (1 + 1e-12):
                needed = math.ceil(1 / self.policy.rate * (1 - 1e-12)) - 1
                raise InputError(
                    f"The index has {n} calibration images, which tell no copies at a rate of {self.policy.rate}.\n"
                    f"Build it with {needed} held-out images or more, or take a higher rate (0: identical images alone)"
                )
        self._write("")

    def __call__(self, pipe: Callable[..., Any]) -> Guarded:
        """Guard a pipeline, model or function.

        Args:
            pipe: it; its own calls stay unguarded.

        Returns:
            The same, guarded.

        Raises:
            PartError: a rung of the ladder names no mitigation.
            InputError: a rung does not fit it, or the thresholds are of another network.
        """
        return Guarded(self, pipe)

    @property
    def records(self) -> list[Record]:
        """The last 10,000 records, oldest first."""
        return list(self._kept)

    def judge(self, pictures: Sequence[Image]) -> list[Hit | None]:
        """Look pictures up.

        Args:
            pictures: uint8 [h w 3] each.

        Returns:
            For each the hit of the image it is a copy of or most like; None where there is none.
        """
        if isinstance(self.index, Index):
            found = self.index.match(list(pictures), local=self.policy.local)
        else:
            found = self.index.match(list(pictures))
        return [hits[0] if hits else None for hits in found]

    def is_copy(self, hit: Hit | None, again: bool = False) -> bool:
        """Whether a picture with a hit is a copy: always where it is the training image itself, however rounded.

        Args:
            hit: of the picture; None = no copy.
            again: it was made again, after a copy.
        """
        if hit is None:
            return False
        rate = max(self.policy.rate, self.policy.rate_again if again else 0)
        return hit.p_value is None or hit.p_value <= rate or hit.identical or is_rounded(hit)

    def keep(self, records: Sequence[Record]) -> None:
        """Keep records, and append them to the log.

        Args:
            records: of one try.
        """
        lines = [json.dumps(record.as_dict(), ensure_ascii=False) + "\n" for record in records]
        self._write("".join(lines))
        self._kept.extend(records)

    def _write(self, text: str) -> None:
        if self.log is None:
            return
        try:
            with self._writing:
                guard_log.append(self.log, text)
        except OSError as error:
            raise InputError(f"Cannot write {self.log}: {error.strerror or error}.\nName another file") from None


class Guarded:
    """A pipeline or function whose calls return no copies. One call at a time.

    All other attributes are those of the pipeline, to read and to set: `guarded.to("cuda")`, `guarded.scheduler = ...`.
    A method that gives the pipeline gives the guarded one; one that gives images is refused, since only calls are
    guarded. What one reads of the pipeline (`guarded.unet`, `guarded.vae`) is not guarded.
    """

    # Names of the class's own, so that they hide none of the pipeline's.
    __slots__ = ("__guard", "__kind", "__lock", "__pipe", "__weakref__")
    __guard: Guard
    __pipe: Any
    __lock: contextlib.AbstractContextManager[Any]
    __kind: type[GenerationCall]

    def __init__(self, guard: Guard, pipe: Callable[..., Any]) -> None:
        from .kinds import kind_of

        if isinstance(pipe, Guarded):
            raise InputError("The pipeline is guarded already.\nGuard the bare one, with the index of both")
        own = {"guard": guard, "kind": kind_of(pipe), "lock": _lock_of(pipe), "pipe": pipe}
        for name, value in own.items():
            object.__setattr__(self, f"_Guarded__{name}", value)
        with self.__lock:
            self.__check()

    def __check(self) -> None:
        from copyscope.diffusion import observed

        guard, pipe, policy = self.__guard, self.__pipe, self.__guard.policy
        self.__kind.check(pipe, policy.ladder[: policy.tries - 1], guard.nearest)
        if not self.__kind.watchable and (policy.look_at or guard.thresholds):
            raise InputError(
                f"The steps of a {type(pipe).__name__} cannot be watched.\n"
                "Give a diffusers pipeline, or leave look_at and thresholds out"
            )
        if guard.thresholds and observed.fingerprint(self.__kind.model(pipe)) != guard.thresholds.model:
            raise InputError("The thresholds are of another model.\nCalibrate this one: guard calibrate")

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the pipeline or function; only images that are copies are made again, the others are its own bit by bit.

        Without a generator (or seed) it gets one an image from the policy's seed, the number of the call and the row.

        Raises:
            Refused: after all tries, where the policy says so.
            InputError: the call cannot be guarded, or returns something that is no image, or may be read as another.
        """
        with self.__lock:
            return GuardedCall(self.__guard, self.__maker, arguments, options).run()

    def __maker(self, arguments: tuple[Any, ...], options: dict[str, Any], look: Callable[..., bool]) -> GenerationCall:
        from .calls import StepObserver

        guard = self.__guard
        signals = tuple(guard.thresholds.signals) if guard.thresholds else ()
        return self.__kind(
            self.__pipe, arguments, options, StepObserver(look, signals, guard.policy.look_at, guard.nearest)
        )

    def __getattr__(self, name: str) -> Any:
        # Those would lead past the guard (`__wrapped__`), or belong to the class (`__array__`, `__deepcopy__`).
        if name.startswith(("__", "_Guarded__")):
            raise AttributeError(f"a guarded object has no attribute {name!r}")
        found = getattr(self.__pipe, name)
        if not inspect.isroutine(found):
            return found

        @functools.wraps(found)
        def method(*arguments: Any, **options: Any) -> Any:
            from .returned import refuse_images

            with self.__lock:
                result = found(*arguments, **options)
            return self if result is self.__pipe else refuse_images(result, name)

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):
            raise AttributeError(f"{name!r} of a guarded object cannot be set")
        with self.__lock:
            had, before = hasattr(self.__pipe, name), getattr(self.__pipe, name, None)
            setattr(self.__pipe, name, value)
            try:
                self.__check()
            except Exception:
                if had:
                    setattr(self.__pipe, name, before)
                raise

    def __delattr__(self, name: str) -> None:
        with self.__lock:
            delattr(self.__pipe, name)

    def __dir__(self) -> list[str]:
        return sorted({*dir(type(self)), *dir(self.__pipe)})

    def __repr__(self) -> str:
        return f"Guarded({self.__pipe!r})"


def _lock_of(pipe: Any) -> contextlib.AbstractContextManager[Any]:
    """The lock of a pipeline, whatever guards it."""
    with _LOCKING:
        try:
            lock: contextlib.AbstractContextManager[Any] = _LOCKS.setdefault(pipe, threading.RLock())
        except TypeError:  # Neither hashable nor to be forgotten.
            return threading.RLock()
    return lock
