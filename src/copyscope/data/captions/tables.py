"""Read tables of records: JSON lines, CSV and Parquet; and text in any Unicode encoding."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import posixpath
from collections.abc import Iterator
from typing import Any

from copyscope.data.folders.names import suffix_of
from copyscope.data.parquet_pages import opened
from copyscope.data.parquet_pages import records as parquet_records
from copyscope.data.storage import Storage
from copyscope.data.table import CAPTION_COLUMNS, STAND_INS
from copyscope.documents import MAX_LINE, parse_json
from copyscope.errors import InputError, reason

FILE_COLUMNS = (
    "file_name", "filename", "file", "path", "image", "image_path", "img_path", "file_path", "filepath", "image_file",
    "image_name", "img", "img_name", "name", "image_id", "key", "id",
)  # fmt: skip
"""Columns and keys that name the image of a record, the first that is there; case does not matter."""
ROW_ERROR = "\0error"
"""Key of a record under which it says why it cannot be used."""
_DELIMITERS = (",", ";", "\t", "|")
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(head: bytes) -> str:
    """The encoding of a text by its first bytes: that of its byte order mark, UTF-16 without one, else UTF-8."""
    for mark, name in _ENCODINGS:
        if head.startswith(mark):
            return name
    # Letters of most scripts leave every second byte of UTF-16 the same, and of Latin ones zero; text has no zeros.
    if len(head) >= 4 and b"\0" in head:
        even, odd = head[0::2].count(0), head[1::2].count(0)
        if even != odd:
            return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def decoded(data: bytes) -> str:
    """The text in the bytes of a file, whatever its Unicode encoding; what is none is replaced."""
    return data.decode(encoding_of(data[:64]), "replace")


def file_column(record: dict[str, Any]) -> str:
    """The key of a record that names its image; "" where there is none."""
    for name in FILE_COLUMNS[:5]:
        if is_file_name(record.get(name)):
            return name
    keys = {str(key).strip().lower(): key for key in record}
    return next((keys[name] for name in FILE_COLUMNS if name in keys and is_file_name(record[keys[name]])), "")


def is_file_name(value: Any) -> bool:
    """Whether a value may be the name of a file: text, or a whole number."""
    return (isinstance(value, str) and bool(value.strip())) or (isinstance(value, int) and not isinstance(value, bool))


def records(storage: Storage, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of a table of metadata: .jsonl, .csv, .tsv, .txt or .parquet. Raises InputError with the line."""
    suffix = suffix_of(path)
    try:
        with storage.open(path) as file:
            if suffix == ".parquet":
                yield from _parquet_records(path, file, storage.local)
                return
            encoding = encoding_of(file.read(64))
            file.seek(0)
            lines = suffix in (".jsonl", ".ndjson")
            text = io.TextIOWrapper(file, encoding, "replace", newline=None if lines else "")
            yield from _json_lines(path, text) if lines else _csv_records(path, text, suffix)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"Cannot read {path}: {reason(error)}.\nRepair the file, or move it elsewhere") from None


def _json_lines(path: str, text: io.TextIOWrapper) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(path, text), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({reason(error)}).\nRepair or remove the line") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: not a JSON object.\nEach line is one image's record: {{...}}")
        yield f"line {number}", record


def _lines(path: str, text: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a table, none of which may be longer than MAX_LINE: a file may be one line of any length."""
    number = 0
    while line := text.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise InputError(f"{path}, line {number}: more than {MAX_LINE:,} characters.\nRepair or remove the line")
        yield line


def _csv_records(path: str, text: io.TextIOWrapper, suffix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = _lines(path, text)
    head = next(lines, "")
    delimiter = _delimiter(head, "\t" if suffix == ".tsv" else ",")
    taken: list[str] = []  # the lines of the row that is read

    def taking() -> Iterator[str]:
        for line in itertools.chain([head], lines):
            taken.append(line)
            yield line

    table = csv.reader(taking(), delimiter=delimiter)
    names: list[str] | None = None
    while True:
        taken.clear()
        where = f"line {table.line_num + 1}"
        try:
            row = next(table, None)
            if len(taken) > 1:  # a caption of several lines, or a quote that is not closed
                list(csv.reader(taken, delimiter=delimiter, strict=True))
        except csv.Error as error:
            why = "a quote that is not closed" if len(taken) > 1 else error
            raise InputError(f"{path}, {where}: {why}.\nRepair or remove the line") from None
        if row is None:
            return
        if names is None:
            names = [name.strip() for name in row]
        elif row:
            n = len(names)
            excess = any(row[n:])
            if excess and names[-1].lower() in (*CAPTION_COLUMNS, *STAND_INS):
                # Commas of a caption that nobody put in quotes.
                row, excess = [*row[: n - 1], delimiter.join(row[n - 1 :])], False
            # A missing cell is as an empty one.
            cells = dict.fromkeys(names) | dict(zip(names, map(_cell, row), strict=False))
            if excess:
                place = f"{posixpath.basename(path)}, {where}"
                cells[ROW_ERROR] = f"more cells than the header has: {place}; put text with {delimiter!r} in quotes"
            yield where, cells


def _delimiter(head: str, usual: str) -> str:
    """What separates the columns: that which makes one of them name the image; else the usual one."""
    best, most = usual, 0
    for delimiter in dict.fromkeys((usual, *_DELIMITERS)):
        try:
            names = {name.strip().lower() for name in next(csv.reader([head], delimiter=delimiter), [])}
        except csv.Error:
            continue
        score = 2 * bool(names & {*FILE_COLUMNS}) + bool(names & {*CAPTION_COLUMNS}) if len(names) > 1 else 0
        if score > most:
            best, most = delimiter, score
    return best


def _cell(value: str) -> Any:
    """A cell of CSV: a number where it reads as one exactly, a JSON list of strings as that list, else its text."""
    if value == "":
        return None
    if value[0] == "[":
        try:
            found = parse_json(value)
        except ValueError:
            return value
        texts = isinstance(found, list) and all(isinstance(text, str) for text in found)
        return found if texts else value
    for kind in (int, float):
        try:
            number: int | float = kind(value)
        except ValueError:
            continue
        if str(number) == value:
            return number
    return value


def _parquet_records(path: str, file: Any, walk: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    for row, record in enumerate(parquet_records(*opened(file), file, None, walk=walk), 1):
        if isinstance(record, str):
            raise InputError(f"{path}, row {row}: {record}.\nRepair or remove the row")
        yield f"row {row}", record


def token_lines(text: str) -> list[tuple[str, str]]:
    """(file name, caption) of a text file that lists captions, as Flickr8k's: `1.jpg#0<TAB>A dog.`, or none."""
    found = []
    for line in text.splitlines():
        name, tab, caption = line.partition("\t")
        if line.strip() and not tab:
            return []
        stem, hash_, number = name.rpartition("#")
        found.append((stem if hash_ and number.isdigit() else name, caption))
    return [(name, caption) for name, caption in found if posixpath.basename(name)]
