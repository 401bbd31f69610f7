"""What is printed where: results on stdout, the rest on stderr; names from outside cannot format or drive the
terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from copyscope import console


class Terminal:
    """A stderr that says it is a terminal."""

    def __init__(self, stream):
        self.stream = stream

    def isatty(self):
        return True

    def __getattr__(self, name):
        return getattr(self.stream, name)


def test_a_table_shows_every_cell_as_text(capsys):
    rows = pa.table(
        {
            "id": ["[bold]a[/bold]", "[/red]", "new\nline", "esc\x1b[31m", "ü 日本 \u202e", "a b"],
            "score": [0.12345, 1.0, None, 0.5, 0.0, -1.0],
            "captions": [["[x]"], [], [], None, [], []],
        }
    )
    console.show_table(rows, "six [of] them")
    stdout, stderr = capsys.readouterr()
    for text in ("[bold]a[/bold]", "[/red]", r"new\nline", r"esc\x1b[31m", "日本", r"\u202e", "0.123", "  [x]"):
        assert text in stdout
    assert "\x1b" not in stdout
    assert "\u202e" not in stdout
    assert stderr == ""


LONG = "run-2026-11-24/step-00012000/seed-0/0001-a-red-fox-in-the-snow.png"


def test_a_table_fits_80_columns_and_long_ids_lose_their_middle(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    n = 3
    rows = {"query_id": [LONG.replace("0001", f"{i:04}") for i in range(n)], "reference_id": ["train/" + LONG] * n}
    rows |= {name: [0.5] * n for name in ("score", "verified", "combined", "p_value")}
    rows |= {"identical": [True, False, None], "part": ["upper left, 25 %", None, "middle, 9 %"]}
    console.show_table(pa.table(rows), "3 matches")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 2 + 2 * n  # the words of a part may fold, nothing else
    body = [line for line in lines if ".png" in line]
    assert len(body) == n
    assert all(line.startswith("run") and line.count("0.500") == 4 for line in body)
    assert all(text.endswith("now.png") and "…" in text for line in body for text in line.split()[:2])
    for name in ("score", "verified", "combined", "p_value", "identical"):
        assert name in lines[1]
    assert [word for line in body for word in line.split() if word in ("yes", "no")] == ["yes", "no"]


def test_what_has_room_is_not_shortened(capsys, monkeypatch):
    monkeypatch.setenv("LINES", "50")  # else a terminal that is called dumb has 80 columns, whatever COLUMNS says
    monkeypatch.setenv("COLUMNS", "200")
    console.show_table(pa.table({"query_id": [LONG], "score": [0.5]}), "one")
    assert LONG in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "30")
    console.show_table(pa.table({"query_id": ["日本" * 30], "score": [0.5]}), "one")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 30
    monkeypatch.setenv("COLUMNS", "12")  # narrower than any table: it folds, and nothing is lost but middles
    console.show_table(pa.table({"query_id": [LONG], "score": [0.5]}), "one")
    assert "0.500" in capsys.readouterr().out.replace("\n", "")


def test_a_table_without_rows_shows_nothing(capsys):
    console.show_table(pa.table({"id": pa.array([], pa.string())}), "none")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain.png", "plain.png"),
        ("a\tb", r"a\tb"),
        ("\x07", r"\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("é🐞", "é🐞"),
        ("", ""),
    ],
)
def test_control_characters_are_spelled_out(text, shown):
    assert console.printable(text) == shown


def test_json_is_one_value_on_stdout_in_plain_letters(capsys):
    console.show_json({"id": "größer", "n": None})
    stdout, stderr = capsys.readouterr()
    assert json.loads(stdout) == {"id": "größer", "n": None}
    assert "größer" in stdout
    assert stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_json_is_json_whatever_the_encoding_of_stdout(encoding):
    said = {"id": "größer 犬 \x1b🐕.png"}
    code = f"from copyscope import console; console.shield(); console.show_json({said!r})"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert json.loads(found.stdout.decode(encoding)) == said


def test_notes_go_to_stderr_and_only_where_there_is_something(capsys):
    console.note("beside the results")
    console.note_unreadable(0)
    console.note_unreadable(3)
    assert capsys.readouterr() == ("", "beside the results\n3 images could not be read; the column `error` says why.\n")


def test_progress_is_silent_where_stderr_is_no_terminal(capsys):
    with console.progress_bar() as progress:
        progress("sscd", 1, 10)
        progress("sscd", 10, 10)
    assert capsys.readouterr() == ("", "")


def test_progress_is_drawn_on_stderr_of_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    with console.progress_bar() as progress:
        for done in (0, 4, 10):
            progress("sscd", done, 10)
        # Another step of the same name but size has a bar of its own.
        progress("sscd", 3, 5)
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    for text in ("sscd", "10/10", "3/5"):
        assert text in stderr


def test_what_follows_a_comma_in_a_label_changes_on_the_same_line(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    with console.progress_bar() as progress:
        progress("training, loss 0.9", 1, 10)
        progress("training, loss 0.1", 10, 10)
    before, now, after = capsys.readouterr().err.rpartition("loss 0.1")
    assert now
    assert "10/10" in after
    assert "loss 0.9" not in before.rpartition("\x1b[2K")[2]


def test_a_result_shows_itself_on_stdout(capsys):
    class Result:
        def __rich__(self):
            return "the [bold]verdict[/bold]"

    console.show(Result())
    assert capsys.readouterr() == ("the verdict\n", "")


# Nothing that comes from outside drives the terminal

HOSTILE = "a\x1b[2J\x1b]0;owned\x07b\x9b31m\r\u202ec\u2028d\x7f"
SPELLED = r"a\x1b[2J\x1b]0;owned\x07b\x9b31m\r\u202ec\u2028d\x7f"


def shielded(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal(getattr(sys, name)))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    console.shield()
    console.shield()


def test_whatever_writes_is_spelled_out_errors_warnings_and_logs_included(capsys, monkeypatch):
    shielded(monkeypatch)
    import logging
    import traceback

    import typer

    print(HOSTILE)
    sys.stdout.writelines([HOSTILE, "\n"])
    typer.echo(HOSTILE)
    console.note(HOSTILE)
    handler = logging.StreamHandler()
    handler.emit(logging.makeLogRecord({"msg": HOSTILE}))
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        traceback.print_exc()
    print("two\nlines\tand 日本")
    stdout, stderr = capsys.readouterr()
    assert stdout == f"{SPELLED}\n" * 3 + "two\nlines\tand 日本\n"
    assert stderr.count(SPELLED) == 3
    assert not console._DRIVES.search(stderr)


def test_what_rich_shows_is_spelled_out_and_keeps_its_colours(capsys, monkeypatch):
    shielded(monkeypatch)
    from rich.panel import Panel
    from rich.text import Text

    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("COLUMNS", "200")
    console.show(Panel(Text(HOSTILE, style="bold red"), title=Text(HOSTILE)))
    console.show_table(pa.table({HOSTILE: [HOSTILE]}), HOSTILE)
    shown = capsys.readouterr().out
    # Rich takes some of the characters away by itself.
    assert shown.count(r"\x1b[2J\x1b]0;owned") == 5
    for drives in ("\x1b[2J", "\x1b]", "\x9b", "\x07", "\u202e", "\u2028"):
        assert drives not in shown
    assert "\x1b[1;31m" in shown


def test_what_is_printed_while_a_bar_is_shown_is_spelled_out_too(capsys, monkeypatch):
    shielded(monkeypatch)
    with console.progress_bar() as progress:
        progress(HOSTILE, 1, 2)
        print(HOSTILE)
        console.note(HOSTILE)
    shown = "".join(capsys.readouterr())
    assert shown.count(r"\x1b]0;owned") >= 3
    assert "\x1b]" not in shown
    assert "\x9b" not in shown


def test_json_holds_no_control_character_and_says_the_same(capsys):
    console.show_json({HOSTILE: [HOSTILE, "\ud800"]})
    text = capsys.readouterr().out
    assert not console._DRIVES.search(text)
    assert json.loads(text) == {HOSTILE: [HOSTILE, "\ud800"]}


def test_an_error_of_the_command_line_drives_nothing(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "copyscope", "lint", str(tmp_path / HOSTILE), "--protocol", HOSTILE],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert r"\x1b" in found.stderr
    assert not console._DRIVES.search(found.stdout + found.stderr)
    found = subprocess.run([sys.executable, "-m", "copyscope", HOSTILE, HOSTILE], capture_output=True, text=True)
    assert not console._DRIVES.search(found.stdout + found.stderr)
