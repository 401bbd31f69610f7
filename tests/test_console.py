"""What is printed where: results on stdout, the rest on stderr; names from outside cannot format or drive the
terminal."""

from __future__ import annotations

import json
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
    for text in ("[bold]a[/bold]", "[/red]", r"new\nline", r"esc\x1b[31m", "日本", r"\u202e", "0.123", "['[x]']"):
        assert text in stdout
    assert "\x1b" not in stdout
    assert "\u202e" not in stdout
    assert stderr == ""


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


def test_notes_go_to_stderr_and_only_where_there_is_something(capsys):
    console.note("beside the results")
    console.note_unreadable(0)
    console.note_unreadable(3)
    assert capsys.readouterr() == ("", "beside the results\n3 images could not be read; their rows say why.\n")


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
