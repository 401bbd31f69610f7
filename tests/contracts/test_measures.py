"""What every measure must do; a new file on the shelf is tested by being there."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest

from copyscope import parts
from copyscope.detection.measures import Item, Measure, complexity_view
from tests.worlds import picture

CAPTIONS = ["a red fox", "a fox", "one of many foxes in the snow"]


def items():
    """Pictures of all kinds with any number of captions, fresh each time."""
    rng = np.random.default_rng(3)
    views = [complexity_view(picture(rng)[0]) for _ in range(3)]
    views += [np.full((224, 224, 3), grey, np.uint8) for grey in (0, 255)]
    return [
        Item(view, CAPTIONS[: number % 4], shared=number, near_shared=number % 2) for number, view in enumerate(views)
    ]


def check_measure(part: Measure) -> None:
    """Raises AssertionError where `part` breaks the contract of its shelf."""
    assert part.unit.strip(), "a unit"
    assert type(part.needs_image) is bool, "says whether it needs the image"
    given, untouched = items(), items()
    values = [part.measure(item) for item in given]
    assert all(type(value) is float for value in values), "a float"
    captioned = [value for value, item in zip(values, given, strict=True) if item.captions]
    assert all(math.isfinite(value) for value in captioned), "finite where there are a picture and a caption"
    assert all(value >= 0 for value in captioned), "not negative"
    for item, was in zip(given, untouched, strict=True):
        assert np.array_equal(item.image, was.image), "the picture is left as it was"
        assert item.captions == was.captions, "the captions are left as they were"
    backwards = [part.measure(item) for item in given[::-1]][::-1]
    np.testing.assert_array_equal(backwards, values, err_msg="depends on its item alone")
    with ThreadPoolExecutor(4) as pool:
        for again in pool.map(lambda _: [part.measure(item) for item in given], range(4)):
            np.testing.assert_array_equal(again, values, err_msg="the same from several threads")
    for item, value in zip(given, values, strict=True):
        blind = part.measure(dataclasses.replace(item, image=None))
        if part.needs_image:
            assert math.isnan(blind), "not a number without the picture it needs"
        else:
            np.testing.assert_array_equal(blind, value, err_msg="blind to a picture it does not need")
        mute = part.measure(dataclasses.replace(item, captions=[], shared=0, near_shared=0))
        if part.needs_image:
            np.testing.assert_array_equal(mute, value, err_msg="deaf to captions when it looks at the picture")
    assert parts.load("measures", str(part)) == part, "the spec rebuilds the part"


@pytest.mark.parametrize("name", parts.names("measures"))
def test_every_measure_keeps_the_contract(name):
    check_measure(parts.load("measures", name))


@dataclasses.dataclass(frozen=True)
class Good(Measure):
    """A tiny measure that keeps the contract, for the broken ones to break."""

    unit: ClassVar[str] = "grey levels"
    needs_image: ClassVar[bool] = True

    def measure(self, item: Item) -> float:
        return math.nan if item.image is None else float(item.image.mean())


@dataclasses.dataclass(frozen=True)
class GoodWords(Measure):
    """The same of a measure that needs no picture."""

    unit: ClassVar[str] = "letters"
    needs_image: ClassVar[bool] = False

    def measure(self, item: Item) -> float:
        return float(sum(map(len, item.captions))) if item.captions else math.nan


def broken(change, whole=Good, **declared):
    """A part on the shelf's base class whose value is `change(value, item)`, at a place where its spec finds it."""

    def measure(self, item):
        return change(whole().measure(item), item)

    body = {"unit": whole.unit, "needs_image": whole.needs_image, **declared}
    cls = type("Broken", (Measure,), body | {"measure": measure, "__module__": __name__, "__doc__": "Breaks a clause."})
    return dataclasses.dataclass(frozen=True)(cls)


def scribble(value, item):
    if item.image is not None:
        item.image[0, 0] ^= 255
    return value


def forget(value, item):
    item.captions.clear()
    return value


class Memory:
    """A value that grows with every call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, value, item):
        self.calls += 1
        return value + self.calls


class Racing:
    """Right when it is asked in turn, wrong on a thread of a pool."""

    def __call__(self, value, item):
        import threading

        return value + (threading.current_thread() is not threading.main_thread())


def unchanged(value, item):
    return value


BROKEN = {
    "a unit": lambda: broken(unchanged, unit=" "),
    "says whether it needs the image": lambda: broken(unchanged, needs_image=None),
    "a float": lambda: broken(lambda value, item: np.float32(value)),
    "finite where": lambda: broken(lambda value, item: math.inf if value == 0 else value),
    "not negative": lambda: broken(lambda value, item: value - 1),
    "the picture is left": lambda: broken(scribble),
    "the captions are left": lambda: broken(forget),
    "depends on its item alone": lambda: broken(Memory()),
    "several threads": lambda: broken(Racing()),
    "not a number without": lambda: broken(lambda value, item: 0.0 if item.image is None else value),
    "blind to a picture": lambda: broken(
        lambda value, item: value if item.image is None else value + float(item.image.mean()), GoodWords
    ),
    "deaf to captions": lambda: broken(lambda value, item: value + len(item.captions)),
    "the spec rebuilds": lambda: broken(unchanged),
}


@pytest.mark.parametrize("clause", BROKEN)
def test_each_clause_rejects_the_part_that_breaks_it(clause, monkeypatch):
    cls = BROKEN[clause]()
    if clause != "the spec rebuilds":
        monkeypatch.setitem(globals(), "Broken", cls)
        with pytest.raises(AssertionError, match=clause):
            check_measure(cls())
        return
    # Another class under the part's name: what its spec gives is not it.
    monkeypatch.setitem(globals(), "Broken", broken(lambda value, item: value + 1))
    with pytest.raises(AssertionError, match=clause):
        check_measure(cls())


@pytest.mark.parametrize("part", [Good(), GoodWords()], ids=str)
def test_the_measures_that_the_broken_ones_break_are_whole(part):
    check_measure(part)
