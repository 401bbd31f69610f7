"""Recipes: plain values back and forth, and messages that name what is wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyscope import recipes
from copyscope.errors import InputError


@dataclasses.dataclass(frozen=True)
class Recipe:
    steps: int = 2000
    learning_rate: float = 1e-3
    name: str = "small_unet"
    flip: bool = False
    betas: tuple[float, float] = (0.9, 0.99)
    words: tuple[str, ...] = ()
    precision: Literal["no", "bf16"] = "no"
    limit: int | None = None
    where: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, not {self.steps}")


@given(
    st.builds(
        Recipe,
        steps=st.integers(1),
        learning_rate=st.floats(allow_nan=False, allow_infinity=False),
        name=st.text(),
        flip=st.booleans(),
        betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
        words=st.lists(st.text()).map(tuple),
        precision=st.sampled_from(["no", "bf16"]),
        limit=st.none() | st.integers(),
        where=st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())),
    )
)
def test_a_recipe_survives_json(recipe):
    assert recipes.from_dict(Recipe, json.loads(json.dumps(recipes.as_dict(recipe)))) == recipe


def test_plain_values_have_no_tuples():
    assert recipes.as_dict(Recipe())["betas"] == [0.9, 0.99]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"step": 5}, r"no setting 'step'.\n.*Did you mean 'steps'\?"),
        ({"zzz": 5}, r"no setting 'zzz'.\nThere are: steps"),
        ({"steps": "many"}, "steps must be a whole number, not 'many'"),
        ({"steps": 5.0}, "steps must be a whole number, not 5.0"),
        ({"steps": True}, "steps must be a whole number, not True"),
        ({"flip": 1}, "flip must be true or false, not 1"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number"),
        ({"learning_rate": False}, "learning_rate must be a number"),
        ({"betas": [0.9]}, "betas must be a list of 2, each a number"),
        ({"betas": 0.9}, "betas must be a list of 2"),
        ({"words": ["a", 1]}, "words must be text, not 1"),
        ({"precision": "fp8"}, "precision must be one of 'no', 'bf16', not 'fp8'"),
        ({"limit": "x"}, "limit must be a whole number or absent, not 'x'"),
        ({"where": "a"}, "where must be a table, not 'a'"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
    ],
)
def test_what_does_not_fit_is_named(values, said):
    with pytest.raises(InputError, match=said):
        recipes.from_dict(Recipe, values)


def test_a_whole_number_does_for_a_number():
    rate = recipes.from_dict(Recipe, {"learning_rate": 1}).learning_rate
    assert (rate, type(rate)) == (1.0, float)


def test_a_field_without_default_must_be_given():
    @dataclasses.dataclass(frozen=True)
    class Needs:
        what: str

    # The annotation is text, looked up where the class stands.
    Needs.__annotations__["what"] = str
    with pytest.raises(InputError, match="Needs lacks what"):
        recipes.from_dict(Needs, {})


def test_settings_change_a_recipe():
    settings = ["steps=500", "learning_rate = 1e-2", "name=tiny", "flip=true", "betas=[0.8, 1]", 'words=["a"]']
    assert recipes.changed(Recipe(), settings) == Recipe(500, 0.01, "tiny", True, (0.8, 1.0), ("a",))
    assert recipes.changed(Recipe(), ["steps=1", "steps=2"]).steps == 2


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("5", "5"),
        ("true", "true"),
        ("'quoted = 5'", "quoted = 5"),
        ("unet(size=32)", "unet(size=32)"),
        ("text:a = b", "text:a = b"),
        ("", ""),
        ("1\nother = 2", "1\nother = 2"),
    ],
)
def test_a_text_field_takes_what_is_written(written, name):
    assert recipes.changed(Recipe(), [f"name={written}"]).name == name


def test_a_value_of_more_lines_cannot_bring_a_second_setting():
    assert recipes.setting("steps=1\nother = 2") == ("steps", "1\nother = 2")


@pytest.mark.parametrize("text", ["steps", "=5", ""])
def test_a_setting_without_name_or_value_is_refused(text):
    with pytest.raises(InputError, match="name=value"):
        recipes.changed(Recipe(), [text])


def test_a_setting_is_checked_like_any_value():
    with pytest.raises(InputError, match=r"Did you mean 'steps'\?"):
        recipes.changed(Recipe(), ["stepz=1"])
    with pytest.raises(InputError, match="flip must be true or false, not 'True'"):
        recipes.changed(Recipe(), ["flip=True"])


def test_override_reaches_into_tables_and_leaves_the_first_alone():
    tables = {"train": {"steps": 1, "flip": True}, "seeds": [0]}
    found = recipes.override(tables, ["train.steps=500", "seeds=[1, 2]", "data.train=emoji"])
    assert found == {"train": {"steps": 500, "flip": True}, "seeds": [1, 2], "data": {"train": "emoji"}}
    assert tables == {"train": {"steps": 1, "flip": True}, "seeds": [0]}
    with pytest.raises(InputError, match="seeds is a value"):
        recipes.override(tables, ["seeds.first=1"])


def test_toml_is_read_and_its_errors_say_the_line(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("[train]\nsteps = 5\n")
    assert recipes.read_toml(file) == {"train": {"steps": 5}}
    file.write_text("[train]\nsteps = = 5\n")
    with pytest.raises(InputError, match="line 2"):
        recipes.read_toml(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        recipes.read_toml(file)
    with pytest.raises(InputError, match="cannot be read"):
        recipes.read_toml(tmp_path / "absent.toml")


def test_provenance_says_versions_and_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = recipes.provenance()
    assert found["commit"] is None
    assert {"python", "copyscope", "numpy"} <= found["versions"].keys()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert recipes.provenance()["commit"] == head
    (tmp_path / "file").write_text("two")
    assert recipes.provenance()["commit"] == f"{head}-dirty"


def test_provenance_is_null_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert recipes.provenance()["commit"] is None


def test_provenance_imports_no_torch():
    code = "import sys; from copyscope import recipes; recipes.provenance(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
