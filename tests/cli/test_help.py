"""The list of commands that `copyscope -h` shows."""

from __future__ import annotations

import re

from typer.testing import CliRunner

from copyscope.cli import main


def test_each_command_fits_on_a_line_of_80_columns() -> None:
    shown = CliRunner().invoke(main.app, ["-h"], env={"COLUMNS": "80", "TERM": "dumb"}).stdout
    listed = re.findall(r"^  (\w+) {2,}(\S.*)$", shown.partition("Commands:")[2], re.MULTILINE)
    assert {name for name, _ in listed} >= {"audit", "lint", "curate", "index", "guard", "doctor"}
    assert dict(listed) == {name: main.SHORT[name] for name, _ in listed}
    assert not re.search(r"\n {4,}\S", shown.partition("Commands:")[2]), "a line goes on below"
