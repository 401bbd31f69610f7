"""Copied training images by what may explain it: every one is counted once, under the first cause that applies."""

from __future__ import annotations

import pytest

from copyscope.report import render
from copyscope.report.causes import KINDS, causes, kind_of
from tests.audits import make_audit


@pytest.mark.parametrize(
    ("action", "duplication", "size", "kind"),
    [
        ("deduplicate", "full", 3, "full"),
        ("deduplicate", "partial", 2, "partial"),
        ("deduplicate", "uncaptioned", 2, "uncaptioned"),
        ("recaption", None, 1, "caption"),
        ("recaption", "full", 1, "caption"),
        ("drop", None, 1, "unknown"),
        ("review", None, None, "unknown"),
    ],
)
def test_the_kind_is_that_of_the_card(action, duplication, size, kind):
    assert kind_of(action, duplication, size) == kind


def test_each_copied_image_is_counted_once_and_others_never():
    risk = {
        "times_copied": [3, 1, 2, 0, None],
        "action": ["deduplicate", "recaption", "recaption", "keep", "keep"],
        "duplication": ["full", None, None, "full", None],
        "group_size": [4, 1, 1, 2, 1],
    }
    assert causes(risk) == [
        {"said": KINDS["full"], "n_train": 1, "n_copies": 3, "share": pytest.approx(1 / 3)},
        {"said": KINDS["caption"], "n_train": 2, "n_copies": 3, "share": pytest.approx(2 / 3)},
    ]
    assert causes({name: [] for name in risk}) == []


def test_the_page_says_it_in_plain_words():
    assert KINDS["full"] in render(make_audit(60, 12))
    assert "have in common" not in render(make_audit(40, 0))
