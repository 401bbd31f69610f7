"""Markers, and fixtures that several files share. No test touches the user's cache or the network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# As in copyscope.diffusion, before any test imports torch.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from tests import slow, worlds


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by what they use: a Ray cluster, a browser, much time."""
    names = slow.names()
    for item in items:
        fixtures, call = getattr(item, "fixturenames", ()), getattr(item, "callspec", None)
        if "cluster" in fixtures or (call and call.params.get("engine") == "ray"):
            item.add_marker("ray")
            item.add_marker("slow")
        if "chromium" in fixtures:
            item.add_marker("browser")
        if slow.is_slow(item.nodeid, names):
            item.add_marker("slow")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Each test process writes to a cache of its own, which the tests share so that models describe an image once.

    For the whole session: a fixture of a module is made before those of a function, and would miss it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPYSCOPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    from tests.models import tiny_clip

    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> worlds.World:
    """A small world: 60 training, 40 generated (16 copies) and 120 held-out images."""
    return worlds.world(tmp_path_factory.mktemp("world"), n_train=60, n_generated=40, n_held_out=120)
