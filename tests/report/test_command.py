"""The command that runs a result again: every option of the recipe that is not the default, safe for a shell."""

from __future__ import annotations

import inspect
import shlex

import pytest

import copyscope
from copyscope.cli.audit import audit as command_of_audit
from copyscope.report.command import OPTIONS, command

RECIPE = {"generated": "made here", "train": "set;rm", "held_out": "real", "control": None, "seed": 0, "options": {}}


def test_defaults_are_left_out_and_paths_are_quoted():
    said = command("audit", {"recipe": RECIPE})
    assert said == "copyscope audit 'made here' 'set;rm' --held-out real -o again"


def test_what_is_not_the_default_is_there():
    options = {name: default for name, (_, default) in OPTIONS.items()}
    options |= {"fdr": 0.1, "trust_held_out": True, "parts": "off", "embed_images": "full"}
    about = {"title": "Release 3", "model": "m@1", "note": None}
    found = shlex.split(command("audit", {"recipe": RECIPE | {"options": options, "seed": 7}, "about": about}))
    assert found[6:] == [
        *("--trust-held-out", "--parts", "off", "--fdr", "0.1", "--embed", "full"),
        *("--title", "Release 3", "--model", "m@1", "--seed", "7", "-o", "again"),
    ]


def test_the_decisions_that_were_honoured_are_named():
    assert "--decisions d.jsonl" in command("audit", {"recipe": RECIPE, "decisions": {"file": "d.jsonl"}})


@pytest.mark.parametrize("summary", [{}, {"recipe": {"generated": "a"}}, {"recipe": None}])
def test_without_a_recipe_there_is_no_command(summary):
    assert command("audit", summary) == ""
    assert command("lint", {"recipe": {"train": "set"}}) == "copyscope lint set -o again"


def test_defaults_are_those_of_audit():
    parameters = inspect.signature(copyscope.audit).parameters
    assert {name: parameters[name].default for name in OPTIONS} == {name: each[1] for name, each in OPTIONS.items()}
    assert set(OPTIONS) - {"embed_images"} <= set(inspect.signature(command_of_audit).parameters)
