"""The small corpora of the tests, for benchmarks: who copied what is known there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.worlds import ALTERATIONS, alter, light_copy, picture, world, write_metadata

__all__ = ["ALTERATIONS", "alter", "light_copy", "picture", "world", "write_metadata"]
