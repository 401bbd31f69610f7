"""What the command line shows: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from .machine import Progress


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on stderr with rate and time left; silent where stderr is no terminal.

    What follows a comma in a label may change from one report to the next.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        tasks: dict[tuple[str, int], Any] = {}

        def report(label: str, done: int, total: int) -> None:
            key = (label.partition(",")[0], total)
            if key not in tasks:
                tasks[key] = bars.add_task(label, total=total, rate="")
            speed = bars.tasks[tasks[key]].speed
            bars.update(tasks[key], description=label, completed=done, rate=f"{speed:,.0f}/s" if speed else "")

        yield report


def show(result: Any) -> None:
    """A result as it shows itself in a terminal."""
    from rich.console import Console

    Console(soft_wrap=False).print(result)


def show_table(table: Any, title: str) -> None:
    """An Arrow table; nothing where it has no rows."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for name in table.column_names:
        shown.add_column(name, overflow="fold")
    for row in table.to_pylist():
        shown.add_row(
            *(f"{cell:.3f}" if isinstance(cell, float) else escape(printable(str(cell))) for cell in row.values())
        )
    if table.num_rows:
        Console().print(shown)


def printable(text: str) -> str:
    """`text` with control characters spelled out: a file name must not drive the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def show_json(value: Any) -> None:
    """One JSON value."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def note_unreadable(n: int) -> None:
    """How many images could not be read, if any."""
    if n:
        note(f"{n} images could not be read; their rows say why.")


def note(text: str) -> None:
    """A line for the person, beside the results."""
    print(text, file=sys.stderr)
