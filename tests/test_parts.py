"""Specs and parts: text <-> frozen dataclass."""

from __future__ import annotations

import dataclasses
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyscope import parts
from copyscope.detection.descriptors.phash import Phash
from copyscope.detection.descriptors.sscd import Sscd
from copyscope.errors import PartError


def test_a_spec_gives_its_part_and_the_part_its_shortest_spec():
    assert parts.load("descriptors", "sscd") == Sscd()
    assert parts.load("descriptors", " sscd(size=256, crop=224, norm='half') ") == Sscd(size=256, crop=224, norm="half")
    assert str(Sscd()) == "sscd"
    assert str(Sscd(size=288, norm="half")) == "sscd(norm='half')"


@given(st.integers(2, 32))
def test_reading_what_a_part_prints_gives_the_part(side):
    part = Phash(side=side)
    assert parts.load("descriptors", str(part)) == part


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("scsd", "Did you mean 'sscd'"),
        ("sscd(sise=3)", "sscd(weights"),
        ("sscd(size=3)", "at least 32"),
        ("sscd(", "not a part spec"),
        ("sscd(size=open('x'))", "not a part spec"),
        ("sscd(**{})", "not a part spec"),
        ("sscd(size=288)+1", "not a part spec"),
        ("", "not a part spec"),
        ("os:system", "not a part of the shelf"),
        ("no.such.module:Part", "Cannot load"),
        ("clip", "model"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong_and_what_there_is(spec, says):
    with pytest.raises(PartError, match="\n") as caught:
        parts.load("descriptors", spec)
    assert says in str(caught.value)


def test_an_unknown_shelf_is_told():
    with pytest.raises(PartError, match="descriptors"):
        parts.load("shelves", "sscd")


@dataclasses.dataclass(frozen=True)
class Outside(Phash.__mro__[1]):
    """A descriptor of somebody else's."""

    k: int = 1

    @property
    def dim(self):
        return self.k

    def describe(self, images):
        raise AssertionError


def test_a_part_from_outside_is_loaded_by_its_dotted_name_and_prints_it():
    part = parts.load("descriptors", f"{__name__}:Outside(k=3)")
    assert part.k == 3
    assert str(part) == f"{__name__}:Outside(k=3)"


def test_the_base_of_a_part_is_the_class_of_the_shelf_that_it_is_made_of():
    assert parts.base(Phash, "descriptors") == "Descriptor"
    assert parts.base(Outside, "descriptors") == "Descriptor"
    assert parts.base(parts.part_class("mitigations", "gaussian_noise"), "mitigations") == "OnConditioning"


def test_names_lists_the_shelf_without_private_files():
    assert {"sscd", "sscd_distilled", "phash", "pdq", "clip"} <= set(parts.names("descriptors"))
    assert not any(name.startswith("_") for name in parts.names("descriptors"))


@dataclasses.dataclass(frozen=True)
class Derived(Outside):
    """A part that keeps something it was not given."""

    twice: int = dataclasses.field(init=False, default=0)

    def __post_init__(self):
        object.__setattr__(self, "twice", 2 * self.k)


def test_a_spec_says_only_what_a_part_takes():
    part = parts.load("descriptors", f"{__name__}:Derived(k=3)")
    assert part.twice == 6
    assert str(part) == f"{__name__}:Derived(k=3)"
    assert parts.load("descriptors", str(part)) == part


def module(*classes):
    """A module in which `classes` stand as if written there."""
    made = types.ModuleType("somewhere")
    for cls in classes:
        setattr(made, cls.__name__, type(cls.__name__, (cls,), {"__module__": "somewhere"}))
    return made


def test_a_shelf_file_defines_one_public_part_and_whatever_else_it_needs():
    one = module(Outside)
    one.imported, one._Private, one.Other = Phash, type("_Private", (Phash,), {"__module__": "somewhere"}), int
    one.Mine = type("Mine", (), {"__module__": "somewhere"})
    assert parts._only_class(one) is one.Outside
    for wrong, n in ((module(), 0), (module(Outside, Phash), 2)):
        with pytest.raises(PartError, match=f"defines {n}"):
            parts._only_class(wrong)
