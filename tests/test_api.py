"""The public names, pinned; and that they load lazily."""

from __future__ import annotations

import subprocess
import sys

import pytest

import copyscope


def test_the_public_names():
    assert copyscope.__all__ == [
        "Audit",
        "CopyscopeError",
        "Corpus",
        "Embeddings",
        "Estimate",
        "Experiment",
        "Groups",
        "Guard",
        "Index",
        "Lint",
        "Matches",
        "Policy",
        "Run",
        "SampleRecipe",
        "TrainRecipe",
        "audit",
        "duplicates",
        "embed",
        "fetch",
        "generate",
        "lint",
        "match",
        "mitigate",
        "nearest",
        "observe",
        "train",
        "__version__",
    ]
    assert all(getattr(copyscope, name) is not None for name in copyscope.__all__)
    assert set(copyscope.__all__) <= set(dir(copyscope))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = copyscope.nonsense


def test_importing_copyscope_loads_nothing_heavy():
    code = "import sys, copyscope; assert not {'numpy', 'pyarrow', 'torch', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
