"""Links of the site that lead out of docs/: to the file in the repository."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Source"]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`markdown` with `../FILE`, which the site does not have, as a link to the repository; mkdocs calls this."""
    return re.sub(r"\]\(\.\./([^)\s]+)\)", rf"]({SOURCE}/blob/main/\1)", markdown)
