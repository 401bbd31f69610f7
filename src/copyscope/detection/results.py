"""Result: base of Audit, Lint, Lookup and Experiment. Save and load a result folder: report, tables, checksums."""

from __future__ import annotations

import abc
import csv
import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow as pa
import pyarrow.compute

from copyscope._version import __version__
from copyscope.data.account import SetAccount
from copyscope.data.corpus import Corpus
from copyscope.data.parquet_pages import read_table
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.documents import read_json
from copyscope.errors import InputError
from copyscope.files import AGAIN, safe_cell, unwritable, write_file, write_parquet

SUMS = "SHA256SUMS"
"""Checksums of the tables and the summary, as `sha256sum --check` reads them; results of version 0.1 have none."""
PACKAGES = ("numpy", "scipy", "pyarrow", "pillow", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class Result(abc.ABC):
    """Base of all results: a summary that is plain JSON, and tables. `docs/json.md` describes both.

    Args:
        summary: plain values, as JSON holds them.
        tables: name -> Arrow table.
    """

    summary: Mapping[str, Any]
    tables: dict[str, pa.Table]

    schema: ClassVar[str]
    """What `summary["schema"]` says."""

    @abc.abstractmethod
    def page(self) -> str:
        """The report as one HTML page."""

    @property
    def sentence(self) -> str:
        """The result in a sentence."""
        return str(self.summary["sentence"])

    @property
    def lists(self) -> dict[str, pa.Table]:
        """Tables that people edit, by name: `NAME.csv`, no file where a table has no rows."""
        return {}

    def save(self, folder: str | Path) -> Path:
        """Write `report.html`, one Parquet file a table and, last, `summary.json`.

        Args:
            folder: made if it is not there; an older result of the same kind is replaced.

        Returns:
            The folder.

        Raises:
            InputError: the folder cannot be written, or holds something else.
        """
        return save_result(folder, self.summary, self.tables, self.page(), self.lists)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load a result that `save` wrote.

        Args:
            folder: the folder.

        Returns:
            The result.

        Raises:
            InputError: the folder holds no finished result of this kind, or a damaged one.
        """
        return cls(*load_result(folder, cls.schema))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.sentence}>"


def save_result(
    folder: str | Path,
    summary: Mapping[str, Any],
    tables: dict[str, pa.Table],
    page: str,
    lists: Mapping[str, pa.Table] | None = None,
) -> Path:
    """Write a result; until all is written the folder has no `summary.json`, so no reader takes it for whole.

    Args:
        folder: made if it is not there.
        summary: plain values.
        tables: name -> table; `NAME.parquet`.
        page: the report, HTML.
        lists: name -> table that people edit; `NAME.csv`, no file without rows.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("summary.json", SUMS):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from None
    for name, table in tables.items():
        write_table(folder, name, table)
    for name, table in (lists or {}).items():
        _write_list(folder / f"{name}.csv", table)
    write_file(folder / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    sums = {f"{name}.parquet": hashlib.sha256((folder / f"{name}.parquet").read_bytes()) for name in tables}
    sums["summary.json"] = hashlib.sha256(text.encode())
    lines = "".join(f"{each.hexdigest()}  {name}\n" for name, each in sums.items())
    write_file(folder / SUMS, lambda path: path.write_text(lines, encoding="utf-8"))
    write_file(folder / "summary.json", lambda path: path.write_text(text, encoding="utf-8"))
    return folder


def check_folder(folder: Path) -> None:
    """Check that results can be written into `folder`: before the work, rather than after it.

    Raises:
        InputError: they cannot.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise unwritable(folder, NotADirectoryError(errno.ENOTDIR, f"{there} is a file"))
    if not os.access(there, os.W_OK):
        raise unwritable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def write_table(folder: Path, name: str, table: pa.Table) -> None:
    """Write `NAME.parquet` in `folder`, which is made if it is not there.

    Raises:
        InputError: it cannot be written.
    """
    write_file(folder / f"{name}.parquet", lambda path: write_parquet(table, path))


def _write_list(file: Path, table: pa.Table) -> None:
    """A table as CSV; without rows the file is taken away, so that no list of an earlier result stays."""
    if not len(table):
        file.unlink(missing_ok=True)
        return

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(table.column_names)
            for row in table.to_pylist():
                writer.writerow(
                    [f"{value:.4f}" if isinstance(value, float) else safe_cell(value) for value in row.values()]
                )

    write_file(file, write)


def failures(described: dict[str, Embeddings]) -> pa.Table:
    """Table of the images that could not be read: corpus, id, error."""
    tables = []
    for name, each in described.items():
        failed = each.corpus.table.filter(pa.compute.is_valid(each.corpus.table["error"])).select(["id", "error"])
        tables.append(failed.add_column(0, "corpus", pa.array([name] * len(failed), pa.string())))
    return pa.concat_tables(tables).combine_chunks()


def accounts(corpora: Mapping[str, Corpus]) -> list[SetAccount]:
    """What became of all that lay in each of the sets that were opened."""
    return [{"set": name, **corpus.account.summary()} for name, corpus in corpora.items() if corpus.account.n]


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers were made with, for the recipe."""
    found = {"python": platform.python_version(), "copyscope": __version__}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def read_schema(folder: str | Path) -> str:
    """Schema of the result in `folder`.

    Raises:
        InputError: there is no finished result.
    """
    return str(_summary(folder).get("schema"))


def load_result(folder: str | Path, schema: str) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """(summary, tables) of the result in `folder`.

    Raises:
        InputError: it is not finished, or not of `schema`.
    """
    summary = _summary(folder)
    if summary.get("schema") != schema:
        raise InputError(
            f"{folder} holds {summary.get('schema')!r}, and this Copyscope reads {schema!r} there.\n"
            "Run the command that made it again"
        )
    sums = _sums(Path(folder))
    names = {path.name for path in Path(folder).glob("*.parquet")} | {name for name in sums if name != "summary.json"}
    for name in names & sums.keys():
        _compare(Path(folder) / name, sums[name])
    return summary, {name.removesuffix(".parquet"): read_table(Path(folder) / name) for name in sorted(names)}


def _summary(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / "summary.json"
    if not path.exists():
        raise InputError(f"No finished result in {folder}.\nMake one with: copyscope audit GENERATED TRAIN -o {folder}")
    summary = read_json(path)
    if digest := _sums(Path(folder)).get("summary.json"):
        _compare(Path(folder) / "summary.json", digest)
    return summary


def _sums(folder: Path) -> dict[str, str]:
    """The sha256 of each file by its name; none where there are no checksums."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found = [line.partition("  ") for line in lines]
    return {name: digest for digest, _, name in found if name and name == Path(name).name}


def _compare(path: Path, digest: str) -> None:
    """Raises InputError where a file is not what its checksum says."""
    try:
        same = hashlib.sha256(path.read_bytes()).hexdigest() == digest
        why = "it is not what its checksum says"
    except OSError as error:
        same, why = False, str(error.strerror)
    if not same:
        raise InputError(f"Cannot read {path}: {why}.\n{AGAIN}")
