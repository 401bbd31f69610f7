"""One guarded call: generate, judge, make copies again until none is left or the tries are spent."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from copyscope.detection.index.hits import Hit
from copyscope.errors import Refused
from copyscope.imaging.images import Image

from .log import Record

if TYPE_CHECKING:
    from .calls import Attempt, GenerationCall
    from .guard import Guard

clock = time.monotonic


@dataclasses.dataclass(frozen=True)
class Judged:
    """Judgement of one image of a try.

    Attributes:
        row: of the call.
        place: in the try.
        hit: the training image it is most like; None = there is none.
        flagged: names of the signals above their threshold.
        is_copy: whether the image is taken for a copy.
    """

    row: int
    place: int
    hit: Hit | None
    flagged: tuple[str, ...]
    is_copy: bool


class GuardedCall:
    """One call of a Guarded: its images, tried until they are no copies or may be tried no more."""

    def __init__(
        self, guard: Guard, maker_of: Callable[..., GenerationCall], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self.guard, self.policy = guard, guard.policy
        self.maker = maker_of(arguments, options, self._look)
        self.number, self.begun, self.fixed = next(guard._calls), clock(), False
        self.records: list[Record] = []
        self.hits: list[Hit | None] = []
        self.images: dict[int, Any] = {}
        self.beside: dict[str, dict[int, Any]] = collections.defaultdict(dict)
        self.last_copies: dict[int, tuple[Any, Image | None]] = {}
        """Of each row the image that was last made, or its estimate: what a blank image stands for."""

    def run(self) -> Any:
        """What the call returns. Raises Refused as the policy asks."""
        attempt, rows = 0, list[int]()
        while attempt == 0 or rows:
            # Generate.
            began = clock()
            seed_of, rung = self._seeds(attempt), self._rung(attempt)
            made = self.maker.again(rows, rung, seed_of) if rows else self.maker.first(seed_of)
            # Judge.
            judged = self._judge(made, rows or range(len(self.maker.prompts)), attempt)
            copies = [each for each in judged if each.is_copy]
            # Decide whether the copies are made again, and how.
            now = clock()
            upcoming = self._next(attempt, copies, made.views)
            more = upcoming < self.policy.tries and now - self.begun < self.policy.seconds
            # Keep what is no copy, and a record of all.
            records = []
            for each in judged:
                action = "delivered" if not each.is_copy else "redone" if more else "refused"
                records.append(self._record(made, each, attempt, rung, action, now - began))
                self._keep(made, each, attempt)
            self.records += records
            self.guard.keep(records)
            rows = [each.row for each in copies]
            if not more:
                break
            attempt = upcoming
        return self._output(rows)

    def _judge(self, made: Attempt, rows: Sequence[int], attempt: int) -> list[Judged]:
        """What is said of each image of a try, those of the rows [n]."""
        hits = self.hits if made.share is not None else self._nearest(made.views)
        return [
            Judged(row, place, hit, flagged, self._is_copy(hit, flagged, attempt > 0))
            for place, (row, hit, flagged) in enumerate(zip(rows, hits, self._flagged(made, len(rows)), strict=True))
        ]

    def _is_copy(self, hit: Hit | None, flagged: tuple[str, ...], again: bool) -> bool:
        return self.guard.is_copy(hit, again) or bool(flagged and self.policy.signals == "hit")

    def _keep(self, made: Attempt, judged: Judged, attempt: int) -> None:
        """Keep an image that is no copy, and what was returned beside it."""
        row, place = judged.row, judged.place
        if not judged.is_copy:
            self.images[row] = made.images[place]
            if attempt or made.share is not None:
                for name, values in made.beside.items():
                    self.beside[name][row] = values[place]
        self.last_copies[row] = made.images[place], made.estimates[place] if made.estimates else None

    def _output(self, refused: Sequence[int]) -> Any:
        """What the call returns, given the rows of which every try was a copy."""
        for row in refused:
            self.images[row] = None if self.policy.refuse != "blank" else self.maker.blank(*self.last_copies[row])
        images = [self.images[row] for row in range(len(self.maker.prompts))]
        if refused and self.policy.refuse == "raise":
            every, do = " in every try", "Ask for something else, allow more tries, or go up another ladder"
            if self.fixed:
                every = ". The function takes no seed and gives the same each time: it was not asked further"
                do = "Give it an argument `seed` or `generator`, or ask for something else"
            said = f"{len(refused)} of {len(images)} images are copies of training images{every}.\n{do}"
            raise Refused(said, self.records, images)
        return self.maker.given(images, self.beside)

    def _next(self, attempt: int, copies: Sequence[Judged], views: Sequence[Any]) -> int:
        """The next try. What takes no seed and gave the same copies again is asked with other words, then no more."""
        rows = [each.row for each in copies]
        if not views or not self.maker.same_again(rows, [views[each.place] for each in copies]):
            return attempt + 1
        others = () if self._rung(attempt) else range(attempt + 1, self.policy.tries)
        found = next((each for each in others if self._rung(each)), self.policy.tries)
        self.fixed = found == self.policy.tries
        return found

    def _rung(self, attempt: int) -> tuple[str, ...]:
        """The rung of a try; where the call lacks what it needs, another seed alone."""
        if attempt == 0:
            return ()
        rung = self.policy.ladder[min(attempt, len(self.policy.ladder)) - 1]
        return rung if self.maker.fits(rung) else ()

    def _look(self, share: float, estimates: list[Image]) -> bool:
        self.hits = self.guard.judge(estimates)
        return all(self.guard.is_copy(hit) for hit in self.hits)

    def _nearest(self, views: Sequence[Sequence[Image]]) -> list[Hit | None]:
        """Of each image, the hit of the view of it that is most like a training image."""
        found = iter(self.guard.judge([view for each in views for view in each]))

        def nearness(hit: Hit | None) -> tuple[bool, float]:
            return self.guard.is_copy(hit), -math.inf if hit is None else -(hit.p_value or 0.0)

        return [max(itertools.islice(found, len(each)), key=nearness) for each in views]

    def _seeds(self, attempt: int) -> Callable[[int], int]:
        def seed_of(row: int) -> int:
            keys = [self.policy.seed, self.number, row, attempt]
            # Of 31 bits: numpy's old generators, which people's functions use, take no more than 32.
            return int(np.random.SeedSequence(keys).generate_state(1)[0] >> 1)

        return seed_of

    def _flagged(self, made: Attempt, n: int) -> list[tuple[str, ...]]:
        if not (self.guard.thresholds and made.signals):
            return [()] * n
        # Of a try that was stopped, signals may have no score yet, and that is not said against it.
        known = {spec: np.isfinite(values) | (made.share is None) for spec, values in made.signals.items()}
        flags = self.guard.thresholds.flagged(made.signals)
        return [tuple(spec for spec in flags if flags[spec][place] and known[spec][place]) for place in range(n)]

    def _record(
        self, made: Attempt, judged: Judged, attempt: int, rung: tuple[str, ...], action: str, seconds: float
    ) -> Record:
        row, hit = judged.row, judged.hit
        prompt = self.maker.prompts[row]
        if prompt is not None and self.policy.hash_prompts:
            prompt = hashlib.sha256(prompt.encode()).hexdigest()
        values = {spec: float(each[judged.place]) for spec, each in made.signals.items()}
        seed = self._seeds(attempt)(row) if self.maker.seed_used(row, attempt) else None
        return Record(
            call=self.number,
            row=row,
            attempt=attempt,
            rung=rung,
            prompt=prompt,
            seed=seed,
            score=hit.score if hit else None,
            combined=hit.combined if hit else None,
            p_value=hit.p_value if hit else None,
            match=hit.id if hit else None,
            box=hit.box if hit else None,
            signals={spec: value if math.isfinite(value) else None for spec, value in values.items()},
            flagged=judged.flagged,
            copy=action != "delivered",
            look=made.share,
            action=action,
            seconds=round(seconds, 3),
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
