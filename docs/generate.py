"""The pages that are made from the code: `python docs/generate.py` writes cli.md, parts.md and recipes.md anew.

tests/test_docs.py fails when one of them is not what this would write.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner

from copyscope import cli, parts
from copyscope.copying.protocols import PROTOCOLS
from copyscope.diffusion.generate import SampleRecipe
from copyscope.diffusion.train import TrainRecipe
from copyscope.plan import AuditRecipe, ExperimentRecipe
from copyscope.prepare import DataRecipe

MADE = "<!-- Made by `python docs/generate.py`; do not edit. -->\n"

CLI = """\
# The command line

One command a verb. Results go to stdout, progress, notes and errors to stderr; `--json` prints one JSON value and
nothing else on stdout ([what it holds](json.md)). Where a folder of images is asked for, [any corpus](corpora.md) will
do: Parquet, WebDataset, a URL. `--protocol` takes a name or a descriptor's spec ([both are listed here](parts.md)).

| exit code | means |
|---|---|
| 0 | done, whatever the verdict and however many images could not be read |
| 1 | `--strict`: an image could not be read |
| 2 | an error: two lines on stderr say what is wrong and what to do next; `copyscope --debug COMMAND` shows where |
| 3 | `--fail-over RATE`: the replication rate is above RATE, or unknown |
| 130 | stopped by Ctrl-C; the same command goes on from there |

`--fail-over` goes before `--strict` where both apply. It compares the rate itself with RATE, not the ends of its
interval, and "cannot tell" does not exit 3: look at `verdict.answer` too.

```console
$ copyscope audit generated/ train/ --held-out held-out/ -o audit/
$ copyscope audit generated/ train/ --fail-over 0.05 --json > audit.json
$ copyscope lint train/ -o lint/
$ copyscope train train/ -o run/ --set duplication=full --watch 64 --held-out held-out/
$ copyscope generate run/ -o generated/ -n 256
$ copyscope experiment run experiments/conditions.toml
```

A recipe is a TOML file or a preset; `--set NAME=VALUE` changes one of its values, `--dry-run` prints what comes of it
([what they mean](training.md)). `train`, `generate` and `experiment run` that were stopped go on from there.
"""

PARTS = """\
# Parts and protocols

A part is named by a spec: `name` or `name(key=value, ...)`, values written as in Python. The spec stands for the part
on the command line, in the results and in the report; `copyscope parts` lists what is there. A part of your own is
`package.module:Class(key=value)` ([how to write one](architecture.md#a-part-of-your-own)).

## Protocols

A protocol is a descriptor with its preprocessing, a threshold and the similarity of near-duplicates, under a name, so
that numbers can be compared. Where a protocol is asked for, a descriptor's spec does too: its threshold is then 0.5,
and near-duplicates begin at 0.9 for `phash`, `pdq` and `clip`, at 0.75 for the others.
"""

RECIPES = """\
# Recipes

A recipe is a frozen dataclass of plain values; these are all of them, with their defaults. On the command line
`--set NAME=VALUE` changes one, in a TOML file they are keys ([training](training.md)), and a result carries the recipe
that made it as `recipe.json`.
"""

ABOUT = {
    "descriptors": """\
From an image to a vector of unit length; the inner product of two says how alike the images are, from -1 to 1, higher =
more alike.""",
    "measures": """\
What one training image is like, as one number: what the audit weighs against copying. Picture measures look at the
middle 224 x 224 pixels of the image after its shorter side was resized to 224.""",
    "models": """\
What makes images, from noise and a caption: a denoiser with its text encoder and its decoder. `train` takes those that
can be trained, `generate` all of them ([training](training.md)).""",
}


def cli_page() -> str:
    """docs/cli.md: the real `--help` of every command."""
    blocks = [MADE, CLI, _help("copyscope")]
    return "\n".join([*blocks, *(_help(f"copyscope {name}", *name.split()) for name in commands())])


def commands() -> dict[str, Any]:
    """Every command under its name, those of a group after it: `experiment`, `experiment run`, ..."""
    found = {}
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        found[name] = command
        found |= {f"{name} {inner}": each for inner, each in getattr(command, "commands", {}).items()}
    return found


def _help(title: str, *command: str) -> str:
    # Help is wrapped to the terminal: one width for all who run this.
    shown = CliRunner().invoke(cli.app, [*command, "--help"], env={"COLUMNS": "80", "TERM": "dumb"}).stdout
    text = "\n".join(line.rstrip() for line in shown.strip().splitlines())
    return f"## {title}\n\n```text\n{text}\n```\n"


def parts_page() -> str:
    """docs/parts.md: every protocol, and every part with its docstring."""
    rows = [
        f"| `{each.name}` | `{each.descriptor}` | {each.threshold:g} | {each.duplicates:g} | {each.about} |"
        for each in PROTOCOLS.values()
    ]
    head = ["| name | descriptor | threshold | near-duplicates from | |", "|---|---|---|---|---|"]
    blocks = [MADE, PARTS, "\n".join([*head, *rows, ""])]
    for shelf in parts.SHELVES:
        blocks.append(f"## {shelf.capitalize()}\n\n{ABOUT[shelf]}\n")
        blocks += [_part(name, parts.part_class(shelf, name)) for name in parts.names(shelf)]
    return "\n".join(blocks)


def _part(name: str, part: type) -> str:
    fields = dataclasses.fields(part)
    called = ", ".join(
        f"{field.name}=..." if field.default is dataclasses.MISSING else f"{field.name}={field.default!r}"
        for field in fields
    )
    unit = getattr(part, "unit", "")
    return f"### `{name}({called})`\n\n{_said(part)}\n" + (f"\nUnit: {unit}.\n" if unit else "")


def recipes_page() -> str:
    """docs/recipes.md: every recipe with its docstring and its defaults."""
    return "\n".join(
        [MADE, RECIPES, *map(_recipe, (TrainRecipe, SampleRecipe, ExperimentRecipe, DataRecipe, AuditRecipe))]
    )


def _recipe(cls: type) -> str:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    rows = []
    for name, field in fields.items():
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        rows.append(f"| `{name}` | {'' if default is dataclasses.MISSING else f'`{default!r}`'} |")
    return "\n".join([f"## {cls.__name__}\n", f"{_said(cls)}\n", "| value | default |", "|---|---|", *rows, ""])


def _said(cls: type) -> str:
    """A docstring as Markdown: what it says of fields begins with their names and a colon, which are made bold."""
    fields = {field.name for field in dataclasses.fields(cls)}

    def bold(found: re.Match[str]) -> str:
        return f"**{found[1]}**{found[2]}" if fields.issuperset(re.split(r",\s", found[1])) else found[0]

    return re.sub(r"((?:\w+,\s)*\w+)((?:,? [^:.]*)??:\s)", bold, inspect.getdoc(cls) or "")


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli_page, "parts.md": parts_page, "recipes.md": recipes_page}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (Path(__file__).parent / page).write_text(make(), encoding="utf-8")
