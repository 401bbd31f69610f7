"""Named protocols: what each is, in the literature's numbers, and what a wrong name is told."""

from __future__ import annotations

import pytest

from copyscope import parts
from copyscope.detection.descriptors.clip import Clip
from copyscope.detection.descriptors.pdq import Pdq
from copyscope.detection.descriptors.phash import Phash
from copyscope.detection.descriptors.sscd import Sscd
from copyscope.detection.descriptors.sscd_distilled import SscdDistilled
from copyscope.detection.embedding.protocols import PROTOCOLS, protocol
from copyscope.errors import PartError


@pytest.mark.parametrize(
    ("name", "descriptor"),
    [
        ("sscd-288", Sscd(size=288, crop=0, square=False, norm="imagenet")),
        ("sscd-distilled", SscdDistilled(size=256)),
        ("dcr-2023", Sscd(size=256, crop=224, square=False, norm="half")),
        ("membench", Sscd(size=288, crop=0, square=True, norm="imagenet")),
    ],
)
def test_each_name_stands_for_its_preprocessing_and_thresholds(name, descriptor):
    found = protocol(name)
    assert found is PROTOCOLS[name]
    assert found.load() == descriptor
    assert (found.name, found.threshold, found.duplicates) == (name, 0.5, 0.75)
    assert found.about


def test_all_protocols_are_pinned_and_carry_the_shortest_spec():
    assert list(PROTOCOLS) == ["sscd-288", "sscd-distilled", "dcr-2023", "membench"]
    for name, found in PROTOCOLS.items():
        assert found.name == name
        assert str(parts.load("descriptors", found.descriptor)) == found.descriptor


@pytest.mark.parametrize(
    ("spec", "descriptor", "duplicates"),
    [
        ("phash", Phash(), 0.9),
        ("phash( side = 16 )", Phash(side=16), 0.9),
        ("pdq", Pdq(), 0.9),
        ("clip('a/folder')", Clip("a/folder"), 0.9),
        ("sscd(size=320, square=True)", Sscd(size=320, square=True), 0.75),
        ("sscd(size=288)", Sscd(), 0.75),
    ],
)
def test_a_descriptor_spec_is_a_protocol_under_its_shortest_spec(spec, descriptor, duplicates):
    found = protocol(spec)
    assert found.load() == descriptor
    assert found.name == found.descriptor == str(descriptor)
    assert (found.threshold, found.duplicates) == (0.5, duplicates)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sscd-28", "Did you mean 'sscd-288'?"),
        ("dcr2023", "Did you mean 'dcr-2023'?"),
        ("mem-bench", "Did you mean 'membench'?"),
        ("nonsense", "descriptors: clip, pdq, phash, sscd, sscd_distilled"),
        ("phash(side=1)", "side must be in 2..32"),
        ("sscd(sise=1)", "unexpected keyword argument 'sise'"),
        ("", "not a part spec"),
    ],
)
def test_what_is_neither_is_told_in_two_lines_with_what_there_is(name, says):
    with pytest.raises(PartError) as caught:
        protocol(name)
    message = str(caught.value)
    assert says in message
    assert len(message.splitlines()) == 2
    assert f"Protocols: {', '.join(PROTOCOLS)}" in message


def test_a_name_like_no_other_gets_no_suggestion():
    with pytest.raises(PartError) as caught:
        protocol("zzz")
    assert "Did you mean" not in str(caught.value)
