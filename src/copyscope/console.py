"""Terminal output: tables, JSON, progress bar, notes; control characters are removed.

Names, captions and messages come from outside and may hold what drives a terminal. `shield` puts a stream that spells
control characters out in the place of stdout and stderr, so that whatever writes there is covered; rich, whose colours
are control characters, is the one that writes past it, and is given text that is spelled out.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from .machine import Progress

_DRIVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, colour, hide or turn round what a terminal shows; line feed and tab are none."""


class Shield:
    """Text stream that spells out control characters before it writes them to another stream.

    All other attributes are those of the other stream.

    Args:
        stream: the stream to write to.
    """

    def __init__(self, stream: Any) -> None:
        self.unshielded = stream

    def write(self, text: str) -> int:
        """Write `text` and return its length."""
        self.unshielded.write(spelled(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unshielded, name)


def shield() -> None:
    """From now on nothing that this process prints drives the terminal, errors and logs included."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Windows consoles and pipes may not be UTF-8, and file names can hold anything.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")
        if stream is not None and not isinstance(stream, Shield):
            setattr(sys, name, Shield(stream))


def spelled(text: str) -> str:
    """Spell out the characters of `text` that drive a terminal; line breaks stay."""
    return _DRIVES.sub(lambda found: repr(found[0])[1:-1], text)


class _Spelled:
    """Anything that rich shows, its text spelled out."""

    def __init__(self, shown: Any) -> None:
        self._shown = shown

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.segment import Segment

        for each in console.render(self._shown, options):
            yield each if each.control else Segment(spelled(each.text), each.style)


def _console(stream: Any, **options: Any) -> Any:
    from rich.console import Console

    return Console(file=getattr(stream, "unshielded", stream), **options)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on stderr with rate and time left; silent where stderr is no terminal.

    What follows a comma in a label may change from one report to the next.
    """
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, shielded = _console(sys.stderr), isinstance(sys.stderr, Shield)
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        tasks: dict[tuple[str, int], Any] = {}
        if shielded:
            shield()  # rich has put streams of its own in place, so that what is printed stands above the bar

        def report(label: str, done: int, total: int) -> None:
            label = escape(printable(label))
            key = (label.partition(",")[0], total)
            if key not in tasks:
                tasks[key] = bars.add_task(label, total=total, rate="")
            speed = bars.tasks[tasks[key]].speed
            bars.update(tasks[key], description=label, completed=done, rate=f"{speed:,.0f}/s" if speed else "")

        yield report


def show(result: Any) -> None:
    """Print a result as it shows itself in a terminal."""
    _console(sys.stdout, soft_wrap=False).print(_Spelled(result))


def show_table(table: Any, title: str) -> None:
    """Print an Arrow table as wide as the terminal; nothing if it has no rows.

    Numbers stay whole. Where room is short, ids lose their middle, then other texts fold.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    if not table.num_rows:
        return
    console, names = _console(sys.stdout), table.column_names
    cells = {name: [_cell(value) for value in table[name].to_pylist()] for name in names}
    wide = {name: max(map(cell_len, (name, *cells[name]))) for name in names}
    texts = [name for name in names if any(isinstance(value, str | list) for value in table[name].to_pylist())]
    gap = 2 if sum(wide.values()) + 2 * len(names) <= console.width else 1
    room = console.width - gap * len(names) - sum(wide[name] for name in names if name not in texts)
    # Ids first: what they need at least is their name; other texts fold into what is left.
    left = sorted(texts, key=lambda name: (not _is_id(name), wide[name]))
    while left:
        name = left.pop(0)
        share = max(room // (len(left) + 1), cell_len(name) if _is_id(name) else LEAST)
        wide[name] = min(wide[name], share)
        room -= wide[name]
    shown = Table(title=Text(title), title_justify="left", box=None, padding=(0, gap, 0, 0))
    for name in names:
        is_text = name in texts
        justify: Any = "left" if is_text else "right"
        # A name is the last to go: where even the least room is too much, all that is left folds.
        shown.add_column(Text(name), justify=justify, overflow="fold", no_wrap=not is_text, max_width=wide[name])
        if _is_id(name):
            cells[name] = [_shortened(text, wide[name]) for text in cells[name]]
    for row in zip(*cells.values(), strict=True):
        shown.add_row(*map(Text, row))
    console.print(_Spelled(shown))


LEAST = 9
"""Letters' room that a text has in any case."""


def _cell(value: Any) -> str:
    """A value of a table as text."""
    if value is None or isinstance(value, bool):
        return "-" if value is None else "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(map(_cell, value)) or "-"
    return f"{value:.3f}" if isinstance(value, float) else printable(str(value))


def _is_id(name: str) -> bool:
    """Whether a column of this name holds ids."""
    return name == "id" or name.endswith("_id")


def _shortened(text: str, width: int) -> str:
    """`text` in at most `width` letters' room, without its middle: names of files differ at their ends."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    head, tail = text[: (width - 1) // 3], text
    while cell_len(head) > (width - 1) // 3:
        head = head[:-1]
    while cell_len(tail) > width - 1 - cell_len(head):
        tail = tail[1:]
    return f"{head}…{tail}"


def printable(text: str) -> str:
    """Spell out all control characters of `text`, such as a file name that would drive the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def show_json(value: Any) -> None:
    """Print one JSON value.

    Where the stream cannot spell a letter, all letters beyond ASCII are escaped: what the stream itself would make of
    it is no JSON.
    """
    text = _DRIVES.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, indent=1, ensure_ascii=False))
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(value, indent=1)
    print(text)


def note_unreadable(n: int) -> None:
    """Print how many images could not be read, if any."""
    if n:
        note(f"{n} {'image' if n == 1 else 'images'} could not be read; the column `error` says why.")


def note(text: str) -> None:
    """Print a line for the person on stderr, beside the results."""
    print(text, file=sys.stderr)
