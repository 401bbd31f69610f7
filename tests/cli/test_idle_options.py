"""Options that a call has no use for are refused before any work, in two lines, whatever their value."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import copyscope
from copyscope.errors import InputError
from tests.cli.test_main import run

IDLE = [
    (["match", "images", "--index", "x", "-p", "sscd-288"], "--protocol/-p", "an index keeps the protocol"),
    (["match", "images", "--index", "x", "-p", "nonsense"], "--protocol/-p", "an index keeps the protocol"),
    (["match", "images", "--index", "x", "--engine", "processes"], "--engine", "by this process alone"),
    (["match", "a", "b", "--no-local"], "--local/--no-local", "without an index"),
    (["match", "a", "b", "--train", "t"], "--train", "without an index"),
    (["match", "a", "b", "--trust-parts"], "--trust-parts", "without an index"),
    (["index", "build", "train", "-o", "x", "--held-out", "h", "--seed", "1"], "--seed", "with --held-out"),
    (["curate", "c", "-o", "x", "--rate", "0.05"], "--rate", "add --duplication full"),
    (["curate", "c", "-o", "x", "--rate", "0.3", "--factor", "2"], "--rate and --factor", "without --duplication"),
    (["curate", "c", "-o", "x", "--n-captions", "2"], "--n-captions", "without --captions"),
    (["curate", "c", "-o", "x", "--conditioning", "fixed", "--class-column", "c"], "--class-column", "--conditioning"),
    (["curate", "c", "-o", "x", "-p", "phash"], "--protocol/-p", "without --drop-duplicates"),
    (["embed", "c", "-o", "x", "--engine", "processes", "--workers", "2"], "--workers", "processes(workers=4)"),
    (["audit", "g", "t", "--trust-held-out"], "--trust-held-out", "--held-out DIR or --control DIR"),
    (["audit", "g", "t", "--dry-run", "--held-out-exclude", "f"], "--held-out-exclude", "no images calibrate"),
    (["audit", "g", "t", "--embed", "full"], "--embed", "add -o DIR"),
    (["train", "c", "-o", "x", "--dry-run", "-p", "phash"], "--protocol/-p", "without --watch"),
]


@pytest.mark.parametrize(
    ("arguments", "option", "said"), IDLE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_option_without_effect_is_refused(arguments, option, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        run(*arguments)
    lines = str(caught.value).split("\n")
    assert len(lines) == 2
    assert lines[0].startswith(option)
    assert " no effect " in lines[0]
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_errors_that_python_meets_name_its_arguments_too():
    """An error of the library that names an option of the command line says what it is called in Python."""
    lacking = []
    package = Path(copyscope.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] in ("cli", "serve"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                texts = [each.value for each in ast.walk(node.exc) if isinstance(each, ast.Constant)]
                said = "".join(text for text in texts if isinstance(text, str))
                if re.search(r"(^|[ (])(--[a-z]|-o\\b)", said) and not re.search("in Python: |copyscope [a-z]+ ", said):
                    lacking.append(f"{path.name}:{node.lineno}: {said}")
    assert lacking == []


def test_an_index_that_is_there_is_added_to(tmp_path):
    (tmp_path / "index.json").touch()
    with pytest.raises(InputError, match=r"copyscope index add .* \(in Python: Index.open\(folder\)\.add\(train\)\)"):
        copyscope.Index.build("nowhere", tmp_path)
