"""What surrounds the code: workflows, markers, versions and the changelog agree with the project's own file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from copyscope import __version__
from tests import slow

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def workflow(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def test_the_matrix_has_every_python_that_the_project_names() -> None:
    matrix = workflow("ci.yml")["jobs"]["fast"]["strategy"]["matrix"]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["project"]["classifiers"]))
    assert named[0] == PROJECT["project"]["requires-python"].removeprefix(">=")
    assert set(named) <= set(matrix["python"])
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}


def test_the_extras_that_are_installed_exist() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"])
    assert set(workflow("ci.yml")["env"]["EXTRAS"].split(",")) <= extras
    for path in (*WORKFLOWS, ROOT / "Makefile", ROOT / "README.md"):
        for named in re.findall(r"copyscope\[([\w,]+)\]|\.\[([\w,]+)\]", path.read_text(encoding="utf-8")):
            assert set("".join(named).split(",")) <= extras, path.name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_and_no_more(path: Path) -> None:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert found["permissions"] == {"contents": "read"}
    beyond = {name: job["permissions"] for name, job in found["jobs"].items() if "permissions" in job}
    assert beyond == ({"publish": {"id-token": "write"}} if path.name == "release.yml" else {})


def test_versions_are_dated_and_the_newest_is_this_one() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    versions = [re.fullmatch(r"(\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)", heading) for heading in headings[1:]]
    assert all(versions), headings
    # Nothing is released yet; then the newest is that of the package.
    assert all(found is not None and found[1] == __version__ for found in versions[:1])


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["repository-code"] == PROJECT["project"]["urls"]["Source"]


def test_forms_and_hooks_can_be_read() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert forms
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        assert len({each["id"] for each in form["body"] if "id" in each}) == sum("id" in each for each in form["body"])
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-format", "ruff-check", "mypy"]


def test_each_slow_test_exists() -> None:
    gone = []
    for name in slow.names():
        file, _, function = name.partition("::")
        path = ROOT / file
        if not path.is_file() or (function and f"def {function}(" not in path.read_text(encoding="utf-8")):
            gone.append(name)
    assert not gone, "slow.txt names tests that are gone: take them out"


def test_parameters_and_set_ups_of_a_slow_test_count_together() -> None:
    text = "\n".join(
        [
            "1.00s call     tests/a.py::test_one[x-y z]",
            "0.60s setup    tests/a.py::test_one[b]",
            "1.40s call     tests/a.py::test_two",
            "0.90s teardown tests/a.py::test_two",
            "12.00s call     tests/b/c.py::test_three",
        ]
    )
    assert slow.slowest(text) == ["tests/a.py::test_one", "tests/b/c.py::test_three"]
    found = frozenset(["tests/a.py::test_one", "tests/b.py"])
    assert slow.is_slow("tests/a.py::test_one[x-y::z]", found)
    assert slow.is_slow("tests/b.py::test_any", found)
    assert not slow.is_slow("tests/a.py::test_one_more", found)


def test_tests_are_marked_by_what_they_use(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        marks = {mark.name for mark in item.iter_markers()}
        fixtures = set(getattr(item, "fixturenames", ()))
        assert "browser" in marks or "chromium" not in fixtures
        assert {"ray", "slow"} <= marks or "cluster" not in fixtures
        assert "slow" in marks or not slow.is_slow(item.nodeid, slow.names())
