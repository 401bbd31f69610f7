"""The command that runs an audit or a lint again, from its recipe."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

#: Option of the recipe -> (option of the command, its default), which is left out.
OPTIONS = {
    "held_out_exclude": ("--held-out-exclude", None),
    "trust_held_out": ("--trust-held-out", False),
    "sensitivity": ("--sensitivity", 200),
    "parts": ("--parts", "auto"),
    "protocol": ("--protocol", "sscd-288"),
    "fdr": ("--fdr", 0.05),
    "clip": ("--clip", None),
    "embed_images": ("--embed", "large"),
}


def command(kind: str, summary: Mapping[str, Any]) -> str:
    """The command line for a shell, one line; "" where the recipe does not say what it was made from.

    Args:
        kind: "audit" or "lint".
        summary: of the result.
    """
    recipe = summary.get("recipe") or {}
    about = summary.get("about") or {}
    names = ("generated", "train") if kind == "audit" else ("train",)
    if not all(recipe.get(name) for name in names):
        return ""
    words = ["copyscope", kind, *(str(recipe[name]) for name in names)]
    for name, option in (("held_out", "--held-out"), ("control", "--control")):
        words += [option, str(recipe[name])] if recipe.get(name) else []
    options = recipe.get("options") or {}
    for name, (option, default) in OPTIONS.items():
        value = options.get(name, default)
        if value != default:
            words += [option] if value is True else [option, str(value)]
    for name in ("title", "model", "note"):
        words += [f"--{name}", str(about[name])] if about.get(name) else []
    decisions = (summary.get("decisions") or {}).get("file")
    words += ["--decisions", str(decisions)] if decisions else []
    words += ["--seed", str(recipe["seed"])] if recipe.get("seed") else []
    return shlex.join([*words, "-o", "again"])
