"""The pages that are made from the code and the results: `python docs/generate.py` writes each of PAGES anew.

tests/test_docs.py fails when one of them is not what this would write.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner

import copyscope
from copyscope import parts
from copyscope.cli import main
from copyscope.detection.embedding.protocols import PROTOCOLS
from copyscope.diffusion.applied import PRESETS
from copyscope.diffusion.generate import SampleRecipe
from copyscope.diffusion.mitigations import SAMPLING, TRAINING
from copyscope.diffusion.recipe import TrainRecipe
from copyscope.experiment.plan import AuditRecipe, ExperimentRecipe
from copyscope.experiment.prepare import DataRecipe
from copyscope.report import leaderboard, plots
from copyscope.report.charts import ROLES

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
| 3 | `--fail-over RATE`: the replication rate is above RATE; `leaks`: an image of one set stands in another |
| 4 | `--fail-over RATE`: `cannot tell`, `suspicious` or too little to calibrate on, without `--allow-cannot-tell` |
| 130 | stopped by Ctrl-C; the same command goes on from there |

`--fail-over` goes before `--strict` where both apply. It compares the share of copies found with RATE; with
`--fail-on upper`, the upper end of the corrected rate ([the gate](numbers.md#the-gate)).

```console
$ copyscope audit generated/ train/ --held-out held-out/ -o audit/
$ copyscope audit generated/ train/ --held-out held-out/ --fail-over 0.05 --json > audit.json
$ copyscope audit generated/ train/ --control base-model/ -o audit/
$ copyscope audit generated/ train/ --held-out held-out/ --held-out-exclude look-alikes.csv -o audit/
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
`package.module:Class(key=value)` ([how to write one](adding-a-part.md)).

## Protocols

A protocol is a descriptor with its preprocessing, a threshold and the similarity of near-duplicates, under a name, so
that numbers can be compared. Where a protocol is asked for, a descriptor's spec does too: its threshold is then 0.5,
and near-duplicates begin at 0.9 for `phash`, `pdq` and `clip`, at 0.75 for the others.
"""

MITIGATIONS = """\
# Mitigations

A mitigation is a part that makes a model copy less: while it trains, while it makes images, or both. It is named by a
spec, `name` or `name(key=value, ...)`, like [all parts](parts.md). Turned down to nothing, each changes nothing at all,
to the bit; each says below how.

What it costs stands beside what it does: in model calls here, in time in
[benchmarks/mitigations.py](../benchmarks/mitigations.py). What it costs in quality an audit tells.

## Use

In training, once for each, in the order they shall act:

```console
$ copyscope train train/ -o run/ --mitigation multiple_captions --mitigation 'gaussian_noise(scale=0.2)'
```

In sampling, of any model:

```console
$ copyscope generate run/ -o generated/ --mitigation 'gaussian_noise(scale=0.2)'
```

In a [recipe](recipes.md), and so in an experiment, they are the list `mitigations` of `[train]` and of `[sample]`:

```toml
[train]
mitigations = ["multiple_captions"]

[sample]
guidance = 4.0
mitigations = ["gaussian_noise(scale=0.2)", "delayed_guidance(start=0.4)"]

[grid]
"train.mitigations" = [[], ["dcr-2023:MC"], ["dcr-2023:GN"]]
```

In a pipeline of diffusers that you have, those of sampling act for as long as a `with` lasts:

```python
import copyscope
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("stable-diffusion")
with copyscope.mitigate(pipe, ["gaussian_noise(scale=0.2)", "delayed_guidance(start=0.4)"], seed=0):
    picture = pipe("a red fox", num_inference_steps=4).images[0]
```

In a training loop of your own, one that rewrites captions is a plain function of the captions of an image and a seed,
another for each draw; in `datasets.map` the row's index will do:

```python
from copyscope import parts

repeat = parts.load("mitigations", "word_repetition(n=2, probability=0.5)")
rows = [{"captions": ["a red fox", "a fox in snow"]}, {"captions": ["two blue houses by the sea"]}]
told = [repeat(row["captions"], seed) for seed, row in enumerate(rows)]
assert told == [repeat(row["captions"], seed) for seed, row in enumerate(rows)]
```

One that the stage has no use for, or that needs what is not there, is refused before the work begins. What they may
need is guidance above 1, a model that can be told nothing (`null`), cross-attention, the prompt as text, or to be told
the nearest training image: `copyscope generate --nearest TRAIN`, in Python `nearest=copyscope.nearest("train/")`.

## Hooks

A mitigation acts through one hook, its base class. In a step of training, and at the start of sampling, the hooks come
in this order, whatever the order of the list; mitigations of one hook act in the order of the list.

| hook | is given | acts in |
|---|---|---|
| `OnCaption` | the captions of an image -> the caption of this draw | training, sampling |
| `OnConditioning` | what the model is told -> what it is told instead | training, sampling |
| `OnLatents` | latents and conditioning of a batch -> others | training |
| `OnLoss` | the losses of a batch -> their weights | training |
| `OnNoise` | the noise sampling starts from -> other noise | sampling |
| `OnDenoiser` | a guided denoiser -> one around it, the first of the list the innermost | sampling |

Random numbers come from streams of their own: in training by (seed, step, place in the list), in
sampling by (seed of the image, place in the list). So batch size changes no image, a stopped run goes on to the same
bits, and images with and without a mitigation are pairs: same prompts, same noise. An image's `prompt` stays what was
asked; where a mitigation made it another, the column `told` has that. Draws that `caption_dropout` tells nothing stay
without text.
"""

NOT_PARTS = """\
## What is not a part

- **Near-duplicates removed or down-weighted, captions added**: rows of the training set, so `copyscope curate`
  (`--drop-duplicates`, `--captions`) or `copyscope.curation.curate` changes them, before any training.
- **Min-SNR weights**: `min_snr` of the recipe of training.
- **To stop in time**: `stop_at_replication` of the recipe, with `--watch`: training ends once it surely copies.
- **Captions that name a class alone**: `conditioning = "class"`.
- **Fewer steps, more images**: `steps`, and your data.
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
    "mitigations": """\
What makes a model copy less, in training or in sampling: [a page of their own](mitigations.md).""",
    "signals": """\
What tells, while an image is made, that it is likely memorized: one number an image, higher = more likely
([how they are used, and what they found](signals.md)).""",
}


def cli_page() -> str:
    """docs/cli.md: the real `--help` of every command."""
    blocks = [MADE, CLI, _help("copyscope")]
    return "\n".join([*blocks, *(_help(f"copyscope {name}", *name.split()) for name in commands())])


def commands() -> dict[str, Any]:
    """Every command under its name, those of a group after it: `experiment`, `experiment run`, ..."""
    found = {}
    for name, command in typer.main.get_command(main.app).commands.items():  # type: ignore[attr-defined]
        found[name] = command
        found |= {f"{name} {inner}": each for inner, each in getattr(command, "commands", {}).items()}
    return found


def _help(title: str, *command: str) -> str:
    # Help is wrapped to the terminal: one width for all who run this.
    shown = CliRunner().invoke(main.app, [*command, "--help"], env={"COLUMNS": "80", "TERM": "dumb"}).stdout
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
        if shelf != "mitigations":
            blocks += [_part(name, parts.part_class(shelf, name)) for name in parts.names(shelf)]
    return "\n".join(blocks)


def _part(name: str, part: type) -> str:
    unit = getattr(part, "unit", "")
    return f"### {_called(name, part)}\n\n{_said(part)}\n" + (f"\nUnit: {unit}.\n" if unit else "")


def _called(name: str, part: type) -> str:
    fields = dataclasses.fields(part)
    arguments = ", ".join(
        f"{field.name}=..." if field.default is dataclasses.MISSING else f"{field.name}={field.default!r}"
        for field in fields
    )
    return f"`{name}({arguments})`"


def mitigations_page() -> str:
    """docs/mitigations.md: how they are used, a table of them all, and each with its docstring."""
    found = {name: parts.part_class("mitigations", name) for name in parts.names("mitigations")}
    table = [
        "## All of them\n",
        f"{CALLS_ARE}\n",
        "| name | source | hook | acts in | needs | calls, sampling | calls, training |",
        "|---|---|---|---|---|---|---|",
        *(_mitigation(name, part) for name, part in found.items()),
        "",
    ]
    presets = ["## Presets\n", f"{PRESETS_ARE}\n", "| preset | in training | in sampling |", "|---|---|---|"]
    for name, stages in PRESETS.items():
        for letters in dict.fromkeys([*stages[TRAINING], *stages[SAMPLING]]):
            there = (stages[stage].get(letters) for stage in (TRAINING, SAMPLING))
            cells = (f"`{spec}`" if spec else "" for spec in there)
            presets.append(f"| `{name}:{letters}` | {' | '.join(cells)} |")
    blocks = [MADE, MITIGATIONS, *("\n".join(each) for each in (table, [*presets, ""]))]
    return "\n".join([*blocks, NOT_PARTS, "## Each\n", *(_part(name, part) for name, part in found.items())])


STEPS = 25
CALLS_ARE = f"""\
Calls are model calls, forward passes of one image, at the defaults: in sampling at most so many beyond the sampler's
own, which at {STEPS} steps are {STEPS}, or {2 * STEPS} with guidance; in training beyond the one an image of a step."""
PRESETS_ARE = """\
Settings of others under a name, which stands where a spec may; one that acts in both stages may have another setting in
each."""


def _mitigation(name: str, part: Any) -> str:
    """Its row of the table."""
    heading = _called(name, part)
    anchor = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
    # As far as the year, `GN of Somepalli et al. 2023, section 6.`, or the number, `FPAN (arXiv 2505.21848).`
    year = r"(?:(?!\.\s+[A-Za-z])[^;:])*?\b(?:19|20)\d\d\b(?!\.\d)"
    source = re.search(rf"Source:\s+({year}|[^.,;:(]+(?:\(arXiv [\d.]+\))?)", inspect.getdoc(part) or "")
    said = " ".join(source[1].split()) if source else ""
    if ")" not in said:
        said = said.rpartition("(")[2]
    whole = all(each.default is not dataclasses.MISSING for each in dataclasses.fields(part))
    calls = (part().calls(STEPS) if whole else "by its arguments") if SAMPLING in part.stages else ""
    training = part.training_calls if TRAINING in part.stages else ""
    cells = [f"[`{name}`](#{anchor})", said, f"`{parts.base(part, 'mitigations')}`", ", ".join(part.stages)]
    return f"| {' | '.join([*cells, ', '.join(part.needs), str(calls), str(training)])} |"


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
    """A docstring as Markdown: its arguments as a list with bold names, without what it raises."""
    text = re.sub(r"\n+Raises:\n(?: +.*\n?)+", "", inspect.getdoc(cls) or "")
    prose, _, arguments = text.partition("Args:\n")
    # A line that goes on is indented by two, as a list's item is.
    listed = re.sub(r"^    (?! )(\w+):", r"- **\1**:", arguments, flags=re.M).replace("\n        ", "\n  ")
    return f"{prose}{listed}".strip()


LEADERBOARD = """\
# The leaderboard of mitigations

Every mitigation on one small model: what it takes from the model's copying, and what it costs those who ask for
something else. Made from [results/mitigations.json](../results/mitigations.json), which is what
[experiments/mitigations.toml](../experiments/mitigations.toml) gave; how it was run is in its first lines.

The model is `small_unet`, trained for 700 steps on 256 distinct emoji, of which 5 % are drawn five times as often.
Every mitigation was tried in training, and every one in sampling on the plain model, at three strengths or more: 116
arms. The first arms that trained took 2 to 3 minutes each; all together took 5.3 hours and the rechecks 0.5, up to
three at a time on two cores with other work. Copies are counted among 256 images from training captions, quality
among images from 128 held-out captions. *Copies regained* tries each lost copy six times: with other noise, with
other words, and with noise on the embedding. The strong mitigations, alone or together, break the link from a caption
to its one picture, and with it much of the agreement of image and caption. What did not help is in
[LOG.md](../LOG.md).

![Copies against Fréchet distance](leaderboard.svg)

The numbered rows are on the frontier: no other row has both fewer copies and less excess. Ranked by copies, rows whose
excess is more than 5 % last. Each number is of one training seed, with its 95 % interval in the JSON file, or, where
`seeds` says more, the mean over so many.
"""
BEST_ROWS = """
## The first rows, with intervals
"""
ALL_ROWS = """
## All rows
"""
RESULTS = Path(__file__).parents[1] / "results"


def _results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def leaderboard_page() -> str:
    """docs/leaderboard.md: the rows of the leaderboard, ranked."""
    results = _results("mitigations")
    rows = results["leaderboard"]
    shown = leaderboard.columns(rows)
    numbers = {label: str(number) for number, label in enumerate(leaderboard.numbered(rows), 1)}
    head = ["", "arm", "seeds", "fewer copies", "dearer", "excess", *(heading for _, heading, _ in shown)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        values = [_written(row[name], "percent") for name in ("fewer_copies", "dearer", "excess")]
        values += [_written(row["estimates"][name], style) for name, _, style in shown]
        first = [numbers.get(row["label"], ""), f"`{row['label']}`", str(len(row["seeds"]))]
        lines.append(f"| {' | '.join([*first, *values])} |")
    terms = [f"- **{name}**: {said}" for name, said in leaderboard.TERMS.items() if name != "■"]
    said = f"{results['sentence']} {leaderboard.scales(rows)}\n"
    return "\n".join([MADE, LEADERBOARD, said, *terms, BEST_ROWS, *best_rows(), ALL_ROWS, *lines, ""])


BEST = 16


def signals_page() -> str:
    """docs/signals.md with its table of what each signal finds and costs."""
    text = (Path(__file__).parent / "signals.md").read_text(encoding="utf-8")
    return _with_table(text, "signals", signal_rows())


def _with_table(text: str, name: str, lines: list[str]) -> str:
    """`text` with a table between its marks."""
    begin, end = f"<!-- {name}: made by `python docs/generate.py` -->", f"<!-- end of the {name} -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.partition(end)[2]}"


def best_rows() -> list[str]:
    """The first rows of the leaderboard."""
    shown = {"fewer copies": "fewer_copies", "excess": "excess", "copies regained": "copies_regained"}
    rows = _results("mitigations")["leaderboard"]
    numbers_of = {label: str(number) for number, label in enumerate(leaderboard.numbered(rows), 1)}
    lines = [f"| | arm | {' | '.join(shown)} | seeds |", "|---" * (len(shown) + 3) + "|"]
    for row in rows[:BEST]:
        numbers = (_with_ends(row["estimates"].get(name) or row[name]) for name in shown.values())
        first = f"{numbers_of.get(row['label'], '')} | `{row['label']}`"
        lines.append(f"| {first} | {' | '.join(numbers)} | {len(row['seeds'])} |")
    return lines


def signal_rows() -> list[str]:
    """What each signal tells, and costs."""
    lines = [
        "| signal | AUC | TPR at 1 % FPR | steps it needs | more model calls | time |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in _results("benchmark-signals")["signals"].items():
        told = [_with_interval(row["known"][each]) for each in ("auc", "tpr_at_1_percent_fpr")]
        cost = ["", "", ""]
        if name != "combined":
            cost = [str(row["needed_steps"]), str(row["calls"]), f"{row['ratio']:.2f}"]
        lines.append(f"| `{name}` | {' | '.join([*told, *cost])} |")
    return lines


def _with_interval(estimate: dict[str, Any]) -> str:
    """`0.73 [0.67, 0.79]`."""
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def _with_ends(estimate: dict[str, Any]) -> str:
    """A share as `50.1 [40.2, 60.3] %`; the ends left out where nobody knows them."""
    if estimate["value"] is None:
        return "–"
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    ends = "" if low is None or low == high else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f}{ends} %"


def _written(estimate: dict[str, Any], style: str) -> str:
    value = estimate["value"]
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if style == "percent" else f"{value:.3f}"


def leaderboard_drawing() -> str:
    """docs/leaderboard.svg: the report's drawing of the leaderboard."""
    return _own_file(leaderboard.frontier(_results("mitigations")["leaderboard"]))


def _own_file(drawing: str) -> str:
    """A drawing of the report as a file of its own, in the colours of its page, light and dark."""
    css = (Path(plots.__file__).parent / "page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--(\w+): (#\w+)", css.split("{")[place])) for place in (1, 2))
    rules = [
        "\n".join(f".fill-{role} {{ fill: {look[role]} }} .stroke-{role} {{ stroke: {look[role]} }}" for role in ROLES)
        for look in (light, dark)
    ]
    dark_rules = f"@media (prefers-color-scheme: dark) {{ {rules[1]} }}"
    style = f"<style>svg {{ font-family: sans-serif }}\n{rules[0]}\n{dark_rules}</style>"
    start, rest = drawing.split(">", 1)
    return f'{start} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


def _beside(name: str) -> Any:
    """A module that lies beside this file, however this one was loaded."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scale_page() -> str:
    """docs/scale.md with its tables."""
    page, text = _beside("scale_page"), (Path(__file__).parent / "scale.md").read_text(encoding="utf-8")
    for results, tables in (("benchmark-scale", page.TABLES), ("benchmark-scale-rates", page.OF_RATES)):
        for name, make in tables.items():
            text = _with_table(text, name, make(_results(results)))
    return text


def index_page() -> str:
    """docs/indexes.md with its tables of what an index costs."""
    text = (Path(__file__).parent / "indexes.md").read_text(encoding="utf-8")
    for name, make in _beside("index_page").TABLES.items():
        text = _with_table(text, name, make(_results("benchmark-index-cost")))
    return text


def json_page() -> str:
    """docs/json.md with its tables of keys, of the types in the code."""
    page, text = _beside("json_page"), (Path(__file__).parent / "json.md").read_text(encoding="utf-8")
    for name, kind in page.TABLES.items():
        text = _with_table(text, name, page.table(kind))
    return text


def numbers_page() -> str:
    """docs/numbers.md with its measured tables."""
    page, text = _beside("growth_page"), (Path(__file__).parent / "numbers.md").read_text(encoding="utf-8")
    validity = _beside("validity_page")
    made = (
        ("benchmark-growth", page.TABLES),
        ("benchmark-peers", page.OF_PEERS),
        ("benchmark-validity", validity.TABLES),
        ("benchmark-validity-scores", validity.OF_SCORES),
        ("benchmark-validity-controls", validity.OF_CONTROLS),
        ("benchmark-groups", _beside("groups_page").TABLES),
    )
    for results, tables in made:
        for name, make in tables.items():
            text = _with_table(text, name, make(_results(results)))
    return text


def growth_drawing() -> str:
    """docs/growth.svg: seconds and memory of each stage against the number of rows."""
    return _own_file(_beside("growth_page").drawing(_results("benchmark-growth")))


def tree() -> list[str]:
    """The modules of the package with the first sentence of each."""
    lines = ["```text", "src/copyscope/"]

    def add(folder: Path, indent: str) -> None:
        files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        folders = sorted(path.parent for path in folder.glob("*/__init__.py"))
        every = [*files, *folders]
        for path in every:
            last = path == every[-1]
            name = f"{indent}{'└' if last else '├'}── {path.name}{'/' if path.is_dir() else ''}"
            source = path / "__init__.py" if path.is_dir() else path
            lines.append(f"{name:<44} {_first_line(source)}")
            if path.is_dir():
                add(path, f"{indent}{' ' if last else '│'}   ")

    add(Path(copyscope.__file__).parent, "")
    return [*lines, "```"]


def _first_line(source: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def architecture_page() -> str:
    """docs/architecture.md with the tree of modules."""
    text = (Path(__file__).parent / "architecture.md").read_text(encoding="utf-8")
    return _with_table(text, "tree", tree())


PAGES: dict[str, Callable[[], str]] = {
    "architecture.md": architecture_page,
    "cli.md": cli_page,
    "growth.svg": growth_drawing,
    "indexes.md": index_page,
    "json.md": json_page,
    "leaderboard.md": leaderboard_page,
    "leaderboard.svg": leaderboard_drawing,
    "mitigations.md": mitigations_page,
    "numbers.md": numbers_page,
    "parts.md": parts_page,
    "recipes.md": recipes_page,
    "scale.md": scale_page,
    "signals.md": signals_page,
}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (Path(__file__).parent / page).write_text(make(), encoding="utf-8")
