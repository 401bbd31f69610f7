"""The docs say what is true: commands, parts, JSON keys and modules are in them, examples run, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest

import copyscope
from copyscope import parts
from copyscope.detection.embedding.protocols import PROTOCOLS

ROOT = Path(__file__).parent.parent
SOURCE = Path(copyscope.__file__).parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CODE_OF_CONDUCT", "CHANGELOG")), *DOCS]
# Hosts that what we ship may name. A mirror of packages, or a machine, must not get in.
HOSTS = {"github.com", "arxiv.org", "doi.org", "filesystem-spec.readthedocs.io", "www.apache.org", "www.w3.org"}
HOSTS |= {"127.0.0.1"}


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = generator()
COMMANDS = GENERATE.commands()

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


def blocks(text):
    """(language, content) of the fenced blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def prose(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


# Generated pages


MADE = ["../README.md", "cli.md", "leaderboard.md", "leaderboard.svg", "mitigations.md", "parts.md", "recipes.md"]
MADE += ["json.md", "scale.md", "numbers.md", "growth.svg"]


@pytest.mark.parametrize("name", MADE)
def test_generated_pages_are_up_to_date(name):
    assert name in GENERATE.PAGES
    stale = f"docs/{name} is stale: run python docs/generate.py"
    assert (ROOT / "docs" / name).read_text() == GENERATE.PAGES[name](), stale


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented_with_all_its_options(name):
    section = (ROOT / "docs" / "cli.md").read_text().partition(f"\n## copyscope {name}\n")[2].partition("\n## ")[0]
    assert section
    assert COMMANDS[name].help
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"
        for option in parameter.opts if parameter.param_type_name == "option" else [parameter.metavar.strip("[]")]:
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", section), option


def test_every_part_and_protocol_is_documented():
    text = (ROOT / "docs" / "parts.md").read_text()
    for protocol in PROTOCOLS:
        assert f"| `{protocol}` |" in text
    assert parts_in((ROOT / "docs" / "mitigations.md").read_text(), "Each") == parts.names("mitigations")
    for shelf in parts.SHELVES.keys() - {"mitigations"}:
        assert parts_in(text, shelf.capitalize()) == parts.names(shelf)


def parts_in(text, heading):
    """Names of the parts described below a heading of the second level."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^### `(\w+)\(", section, re.MULTILINE)


def test_the_table_of_mitigations_has_a_row_a_part_and_its_presets_are_specs_that_load():
    text = (ROOT / "docs" / "mitigations.md").read_text()
    rows = re.findall(r"^\| \[`(\w+)`\]\(#([\w-]+)\) \| ([^|]*)\| `(On\w+)` \| ([^|]+) \|", text, re.MULTILINE)
    assert [name for name, *_ in rows] == parts.names("mitigations")
    found = {name: (source.strip(), door, stages) for name, _, source, door, stages in rows}
    assert found["gaussian_noise"] == ("GN of Somepalli et al. 2023", "OnConditioning", "training, sampling")
    assert found["delayed_guidance"] == ("Jain et al. 2025", "OnDenoiser", "sampling")
    assert all(source for source, *_ in found.values()), "each says where it is from"
    presets = text.partition("\n## Presets\n")[2].partition("\n## ")[0]
    specs = re.findall(r"`(\w+(?:\([^`]*\))?)`", presets)
    assert len(specs) >= 9
    for spec in specs:
        parts.load("mitigations", spec)


# Examples


def python_pages():
    found = [path for path in [README, *DOCS] if any(language == "python" for language, _ in blocks(path.read_text()))]
    assert {"python.md", "adding-a-part.md", "mitigations.md"} <= {path.name for path in found}
    return found


@pytest.mark.parametrize("path", python_pages(), ids=lambda path: path.name)
def test_every_python_example_runs(path, world, tmp_path, monkeypatch):
    for folder in (world.train, world.generated, world.held_out):
        shutil.copytree(folder, tmp_path / folder.name)
    monkeypatch.chdir(tmp_path)
    if "from_pretrained(" in path.read_text():
        from tests.models import tiny_stable_diffusion

        tiny_stable_diffusion(tmp_path / "stable-diffusion")
    # A module, so that a class which an example defines can be found under its name.
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    text = path.read_text()
    for language, code in blocks(text):
        if language == "python":
            above = text[: text.index(code)].count("\n")
            exec(compile("\n" * above + code, str(path), "exec"), module.__dict__)


def test_the_mitigations_of_adding_a_part_keep_the_contract(tmp_path, monkeypatch):
    from tests.contracts.test_mitigations import check_mitigation

    text = (ROOT / "docs" / "adding-a-part.md").read_text()
    files = [
        code for language, code in blocks(text) if language == "python" and re.search(r"^class \w+\(On", code, re.M)
    ]
    named = re.search(r"`(\w+)/(\w+)\.py`", text)
    folder = tmp_path / named[1]
    folder.mkdir()
    # The second example goes on from the first, and then makes images: that part runs with the page.
    whole = files[0] + files[1].partition("\n\n\nraised =")[0]
    (folder / f"{named[2]}.py").write_text(whole)
    monkeypatch.syspath_prepend(tmp_path)
    module = f"{named[1]}.{named[2]}"
    assert f"--mitigation '{module}:ShuffledWords(" in text
    shelf_line = re.search(r'^"shuffled_words": \("shuffled_words(.+)", "shuffled_words(.+)"\),$', text, re.MULTILINE)
    settings = {"ShuffledWords": shelf_line.groups(), "RisingGuidance": ("(power=1.0)", "(power=0)")}
    try:
        for name, (on, off) in settings.items():
            part = parts.load("mitigations", f"{module}:{name}{on}")
            check_mitigation(part, parts.load("mitigations", f"{module}:{name}{off}"))
            assert str(part) == f"{module}:{name}" + (on if on != "(power=1.0)" else "")
    finally:
        for each in (module, named[1]):
            sys.modules.pop(each, None)


def commands_in(text):
    """Words of every command that a page shows: in blocks of a shell's, and in `copyscope ...` within the prose."""
    for language, content in blocks(text):
        if language in ("", "console", "sh", "bash", "shell"):
            for line in content.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words[:1] == ["copyscope"]:
                    yield words
    for span in re.findall(r"`(copyscope [^`]+)`", prose(text)):
        yield span.split()


def check_command(words):
    arguments = words[1:]
    known = {"--version", "--debug", "--help", "-h"}
    while arguments and arguments[0] in known:
        arguments = arguments[1:]
    if arguments and arguments[0] != "COMMAND":
        name = " ".join(arguments[:2]) if hasattr(COMMANDS.get(arguments[0]), "commands") else arguments[0]
        assert name in COMMANDS, f"no command: {' '.join(words)}"
        known = {"-h", "--help"} | {option for each in COMMANDS[name].params for option in each.opts}
    for word in arguments[1:]:
        assert not word.startswith("-") or word.partition("=")[0] in known, f"no option {word}: {' '.join(words)}"


@page
def test_every_command_shown_exists(path):
    for words in commands_in(path.read_text()):
        check_command(words)


def test_the_check_of_commands_sees_wrong_ones():
    shown = "```console\n$ copyscope audit a b \\\n    --held-uot c\n```\nSee `copyscope adit`.\n"
    first, second = commands_in(shown)
    with pytest.raises(AssertionError, match="no option --held-uot"):
        check_command(first)
    with pytest.raises(AssertionError, match="no command"):
        check_command(second)


# The JSON contract


def documented(heading, table=None):
    """First column of the table of keys below a heading of json.md, or of the columns of one of its tables."""
    text = (ROOT / "docs" / "json.md").read_text()
    section = text.partition(f"\n{heading}\n")[2]
    section = re.split(r"\n##+ ", section)[0]
    if table:
        section = re.split(r"\n`\w+`: ", section.partition(f"\n`{table}`: ")[2])[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


@pytest.fixture(scope="module")
def audited(world):
    return copyscope.audit(world.generated, world.train, world.held_out, "sscd-distilled")


@pytest.fixture(scope="module")
def linted(world):
    return copyscope.lint(world.train, "sscd-distilled")


def test_the_columns_of_an_audit_are_those_documented(audited):
    for name, table in audited.tables.items():
        assert table.column_names == documented("### Audit tables", name), name


def test_the_types_of_the_columns_are_those_documented(audited):
    text = (ROOT / "docs" / "json.md").read_text().partition("\n### Audit tables\n")[2].partition("\n## ")[0]
    names = {pa.string(): "string", pa.float32(): "float", pa.float64(): "double", pa.bool_(): "bool"}
    names |= {pa.int32(): "integer", pa.int64(): "integer", pa.binary(): "binary"}
    names[pa.list_(pa.string())] = "list of strings"
    names[pa.list_(pa.float32())] = "list of floats"
    for name, table in audited.tables.items():
        section = re.split(r"\n`\w+`: ", text.partition(f"\n`{name}`: ")[2])[0]
        rows = dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", section, re.MULTILINE))
        assert rows == {field.name: names[field.type] for field in table.schema}, name


def test_the_columns_of_a_lint_are_those_documented(linted):
    for name, table in linted.tables.items():
        where = ("### Lint tables", "risk") if name == "risk" else ("### Audit tables", name)
        assert table.column_names == documented(*where), name


# Links, modules, and what must be said or must not


def anchors(path):
    """Fragments that lead to a heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(path):
    text = prose(path.read_text())
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    for target in found:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            yield target


@page
def test_every_relative_link_leads_somewhere(path):
    assert not list(broken_links(path))


def test_the_check_of_links_sees_broken_ones(tmp_path):
    text = "# One, two\n[a](#one-two) [b](gone.md) [c](here.md#three) ![d](no.png) [e](https://x.org)\n"
    (tmp_path / "here.md").write_text(text)
    assert list(broken_links(tmp_path / "here.md")) == ["gone.md", "here.md#three", "no.png"]


def test_the_readme_says_how_to_see_it_work_and_how_to_test_it():
    text = README.read_text()
    assert "make demo" in text
    assert "make test" in text


def test_contributing_fits_on_one_screen():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 40


MACHINE = re.compile(r"(?<![\w.~}])/(?:work|root|home|Users|mnt|private)/|(?<![\w\\])[A-Z]:\\Users")
REGISTRY = re.compile(r"registry\.(?:npmjs|yarnpkg)\.|\bpypi\.org|pythonhoste[d]|proxy\.golang\.|index\.crates\.io")
URL = re.compile(r"\bhttps?://([\w.-]+)")


def shipped():
    """Text files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in data:
            yield name, data.decode("utf-8", "replace")


def named_wrongly(name, text):
    """Machine paths, registries and, outside the tests, unknown hosts in a text."""
    found = [match[0] for pattern in (MACHINE, REGISTRY) for match in pattern.finditer(text)]
    if not name.startswith("tests/"):
        found += [host for host in URL.findall(text) if host not in HOSTS]
    return found


def test_no_file_names_a_registry_or_a_path_of_a_machine():
    assert {name: found for name, text in shipped() if (found := named_wrongly(name, text))} == {}


def test_the_check_of_names_sees_them():
    path, host = "/".join(["", "home", "me", "train"]), ".".join(["pypi", "org"])
    wrong = f"in {path}, from {host} or http://mirror.local:80/x; see https://github.com/a and ~/home/x"
    assert len(named_wrongly("docs/x.md", wrong)) == 3
    assert len(named_wrongly("tests/x.py", wrong)) == 2


def test_the_patch_of_a_script_of_diffusers_is_the_one_that_is_tested():
    from tests.diffusion.training.test_data import PATCH

    assert PATCH.strip() in (ROOT / "docs/training.md").read_text()
