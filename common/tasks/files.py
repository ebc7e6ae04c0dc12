"""Data sets in files: JSON Lines, JSON, Parquet and CSV, one file or a folder of them.

Faults in a file are reported with their place: line and column, or row, or byte.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.tasks.arrow_values import distinct_names, python_values, repeated_names
from common.tasks.json_files import read_json
from common.tasks.records import Faults, Record

NOT_ROWS = ("manifest.json", "dataset_info.json", "dataset_infos.json")
"""JSON files in a folder that describe its data and hold no rows."""

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What may stand between the columns of a CSV file."""


def files_of(path: Path, split: str) -> list[Path]:
    """Return the file at `path`, or the files in that folder that belong to `split`.

    In a folder, a split is the files whose names begin with the split's name. If no name begins
    with `train`, all files are the `train` split.

    Raises:
        UserError: the folder has no files with data, or none of this split.
    """
    if not path.is_dir():
        return [path]
    files = sorted(
        p
        for p in path.iterdir()
        if p.suffix.lower() in READERS and p.is_file() and p.name not in NOT_ROWS
    )
    of_split = [p for p in files if p.name.startswith(split)]
    if not files:
        raise UserError(f"{path}: no data in this folder; read are {', '.join(READERS)}")
    if not of_split and split != "train":
        names = ", ".join(p.name for p in files)
        raise UserError(f"{path}: no file name begins with {split!r}, the split; there are {names}")
    return of_split or files


def read_files(files: Iterable[Path], faults: Faults) -> list[Record]:
    """Return all rows of the files; faulty rows are left out and added to `faults`.

    Raises:
        UserError: a file has an unknown suffix or cannot be read.
    """
    records: list[Record] = []
    for file in files:
        known = len(records), len(faults.lines)
        records += read_file(file, faults)
        if known == (len(records), len(faults.lines)):
            faults.add(str(file), "is empty: no rows")
    return records


def read_file(path: Path, faults: Faults) -> Iterator[Record]:
    """Return an iterator over the rows of one file, which is read as its suffix says.

    Raises:
        UserError: the suffix is unknown, or the file cannot be read.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path}: files of this kind are not read; known are {', '.join(READERS)}: unpack it "
            "or convert it first"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return reader(path, data, faults)


def _of_text(
    read: Callable[[Path, str, Faults], Iterator[Record]], path: Path, data: bytes, faults: Faults
) -> Iterator[Record]:
    """Yield the rows that `read` finds in the text of a file; UTF-16 and UTF-32 are told."""
    encoding = json.detect_encoding(data)  # by the zero bytes of the first characters
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        byte = error.start - (data.rfind(b"\n", 0, error.start) + 1)
        shown = data[error.start : error.start + 1].hex()
        named, new = (
            shlex.quote(str(path)),
            shlex.quote(f"{path.with_suffix('')}-utf8{path.suffix}"),
        )
        kind = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        remedy = f"if it is Windows' or Latin-1: iconv -f WINDOWS-1252 -t UTF-8 {named} > {new}"
        what = f"not {kind} at byte {byte} of the line (0x{shown}); "
        faults.add(f"{path}:{line}", what + (remedy if kind == "UTF-8" else "save it as UTF-8"))
        return
    if not encoding.startswith("utf-8"):
        faults.notices.append(f"{path}: is {encoding.upper()} and is read as such")
    yield from read(path, text.removeprefix("\ufeff"), faults)


def _read_csv(path: Path, text: str, faults: Faults) -> Iterator[Record]:
    # The limit of the csv module is for streams; this text is in memory already.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    separator = _separator(text)
    if separator != ("\t" if path.suffix.lower() == ".tsv" else ","):
        faults.notices.append(f"{path}: its columns are separated by {SEPARATORS[separator]}")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    line = 1
    try:
        names = _csv_names(path, next(rows, []), faults)
        line = rows.line_num + 1
        for row in rows:
            where, line = f"{path}:{line}", rows.line_num + 1
            if len(row) == len(names):
                values = zip(names, row, strict=True)
                yield Record({name: value for name, value in values if name}, where)
            elif row:
                faults.add(
                    where,
                    f"{len(row)} values, but the header names {len(names)} columns; put double "
                    f"quotes around values that contain {SEPARATORS[separator]}",
                )
    except csv.Error as error:
        faults.add(
            f"{path}:{line}",
            f"not CSV: {error}, in the row that begins here; a double quote inside a quoted value "
            "is written twice",
        )


def _separator(text: str) -> str:
    """Return what separates the columns: that by which the header has most of them."""
    header = re.match(r"[^\r\n]*", text)[0]  # type: ignore[index]
    return max(SEPARATORS, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def _csv_names(path: Path, header: list[str], faults: Faults) -> list[str]:
    """Return distinct names of the columns; those without a name stay so, and nobody can use them.

    pandas writes its index as such a column, and spreadsheets write empty ones.
    """
    named = [name for name in header if name]
    if twice := repeated_names(named):
        faults.notices.append(f"{path}: {twice}")
    distinct = iter(distinct_names(named))
    return [name and next(distinct) for name in header]


def read_parquet(path: Path, source: Any, faults: Faults) -> pa.Table | None:
    """Return the table in a Parquet file, or add a fault and return None if it cannot be read.

    Args:
        path: what to call the file in messages.
        source: the file, as a path or a buffer.
        faults: also gets a notice if several columns have one name; they are numbered.
    """
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        faults.add(
            str(path),
            f"not a readable Parquet file: {str(error).strip()}; write it or copy it anew",
        )
        return None
    if twice := repeated_names(table.column_names):
        faults.notices.append(f"{path}: {twice}")
    return table.rename_columns(distinct_names(table.column_names))


def _read_parquet(path: Path, data: bytes, faults: Faults) -> Iterator[Record]:
    table = read_parquet(path, pa.BufferReader(data), faults)
    if table is not None:
        yield from records_of(table, str(path))


def records_of(table: pa.Table, where: str) -> Iterator[Record]:
    """Yield the rows of a table, in Python's types; `where` is what to call it in messages."""
    names = table.column_names
    columns = (python_values(column) for column in table.columns)
    for number, row in enumerate(zip(*columns, strict=True)):
        yield Record(dict(zip(names, row, strict=True)), f"{where} row {number}")


READERS: dict[str, Callable[[Path, bytes, Faults], Iterator[Record]]] = {
    ".jsonl": partial(_of_text, read_json),
    ".ndjson": partial(_of_text, read_json),
    ".json": partial(_of_text, read_json),
    ".parquet": _read_parquet,
    ".csv": partial(_of_text, _read_csv),
    ".tsv": partial(_of_text, _read_csv),
}
