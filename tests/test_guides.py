"""The guides: each command that they show runs, in the order of the page, on a small world."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from copyscope.cli import main
from tests.test_docs import ROOT, blocks, commands_in
from tests.worlds import World

# Commands that need a trained model, a download, minutes or an end: their own tests run them.
ELSEWHERE = {"train", "generate", "fetch", "experiment", "serve"}
# Commands that describe images: a hash does so in place of SSCD, for speed.
DESCRIBE = {"audit", "lint", "duplicates", "match", "leaks"}
# Exit codes that are answers: the rate is above what --fail-over allows, or is not known.
ANSWERS = {0, 3, 4}


@pytest.fixture
def folders(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in (world.train, world.generated, world.held_out):
        shutil.copytree(folder, tmp_path / folder.name)
    shutil.copytree(world.generated, tmp_path / "lora-images")
    shutil.copytree(world.held_out, tmp_path / "base-model")
    first = sorted(path for path in (tmp_path / "train").iterdir() if path.suffix == ".png")[0]
    (tmp_path / "opt-out").mkdir()
    shutil.copy(first, tmp_path / "opt-out")
    for name in ("drop.txt", "opt-out.txt"):
        (tmp_path / name).write_text(f"{first.name}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["release", "lora", "curate", "service", "review"])
def test_the_commands_of_a_guide_run(name: str, folders: Path) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    shown = "".join(f"```{language}\n{content}```\n" for language, content in blocks(text) if language == "console")
    commands = [words[1:] for words in commands_in(shown) if words[1] not in ELSEWHERE]
    assert commands
    if name == "review":
        commands.insert(0, ["audit", "generated/", "train/", "--held-out", "held-out/", "-o", "audit/"])
    # The page names images as most folders do.
    shown_as = dict(
        zip(("0.png", "1.png"), sorted(path.name for path in (folders / "train").glob("*.png")), strict=False)
    )
    seen = sorted(path.name for path in (folders / "held-out").iterdir() if path.suffix == ".png")[0]
    for words in commands:
        if "--held-out-exclude" in words:
            # An audit writes this list only where it finds look-alikes; here it finds none.
            (folders / words[words.index("--held-out-exclude") + 1]).write_text(f"id\n{seen}\n")
        given = [shown_as.get(word, word) for word in (words[: words.index(">")] if ">" in words else words)]
        if " ".join(given[:2]) == "index build" or given[0] in DESCRIBE or "--drop-duplicates" in given:
            given = [*given, "-p", "phash"] if "--index" not in given else given
        given = [*given, "--sensitivity", "0"] if given[0] == "audit" else given
        done = CliRunner().invoke(main.app, given)
        assert done.exit_code in (ANSWERS if "--fail-over" in given or given[0] == "leaks" else {0}), (
            f"{words}\n{done.output}"
        )
