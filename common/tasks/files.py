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
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.tasks.arrow_values import distinct_names, python_values, repeated_names
from common.tasks.records import Faults, Record

NOT_ROWS = ("manifest.json", "dataset_info.json", "dataset_infos.json")
"""JSON files in a folder that describe its data and hold no rows."""

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What may stand between the columns of a CSV file."""

MOST_DIGITS = 4300
"""Digits of the longest number that Python converts between text and integer."""


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
        raise UserError(f"{path}: files of this kind are not read; known are {', '.join(READERS)}")
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


def _read_json(path: Path, text: str, faults: Faults) -> Iterator[Record]:
    """Yield the objects of a file, whichever way they are written.

    That is one object in a line, or objects over several lines one after another, or lists of them.
    """
    if _is_spread(text):
        rows = _read_json_values(path, text, faults)
    else:
        rows = _read_json_lines(path, text, faults)
    only = next(rows, None)
    if only is None:
        return
    yield only
    second = next(rows, None)
    if second is None:
        faults.notices += _rows_inside(path, only.values)
    else:
        yield second
        yield from rows


def _read_json_lines(path: Path, text: str, faults: Faults) -> Iterator[Record]:
    """Yield the objects of a file that has one in each line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                value, end = _json_value(line, _after_blanks(line, 0))
                if (rest := _after_blanks(line, end)) < len(line):
                    raise json.JSONDecodeError("Extra data", line, rest)
            except ValueError as error:
                faults.add(*_json_fault(path, error, number))
            else:
                yield from _record(value, f"{path}:{number}", faults)


def _is_spread(text: str) -> bool:
    """Return whether a file is anything but an object in each line, as its first line shows."""
    start = _after_blanks(text, 0)
    end = text.find("\n", start)
    first = text[start : end if end >= 0 else None].rstrip()
    try:
        _, end = _json_value(first, 0)
    except json.JSONDecodeError as error:
        return error.pos >= len(first) or first.startswith("[")
    except ValueError:
        return False
    return end < len(first) or first.startswith("[")


def _read_json_values(path: Path, text: str, faults: Faults) -> Iterator[Record]:
    """Yield the objects of values that follow each other, and those in lists among them."""
    position, number = _after_blanks(text, 0), 0
    while position < len(text):
        try:
            value, end = _json_value(text, position)
        except ValueError as error:
            faults.add(*_json_fault(path, error, 1))
            return
        for item in value if isinstance(value, list) else [value]:
            yield from _record(item, f"{path}[{number}]", faults)
            number += 1
        position = _after_blanks(text, end)


def _rows_inside(path: Path, only: dict[str, Any]) -> list[str]:
    """Return how to get at the rows that may be inside the only object of a file, if there are any.

    That is a list of objects under one of its keys, or lists or objects that are its columns.
    """
    file = json.dumps(str(path))
    lists = {name for name, value in only.items() if isinstance(value, list) and len(value) > 1}
    objects = {name for name, value in only.items() if isinstance(value, dict)}
    of_objects = [n for n in sorted(lists) if all(isinstance(item, dict) for item in only[n])]
    if len(only) > 1 and only.keys() in (lists, objects):
        code = (
            f"import pandas; pandas.read_json({file}, dtype=False)"
            '.to_json("rows.jsonl", orient="records", lines=True)'
        )
    elif of_objects:
        code = (
            f"import json; rows = json.load(open({file}))[{json.dumps(of_objects[0])}]; "
            'open("rows.jsonl", "w").writelines(json.dumps(row) + "\\n" for row in rows)'
        )
    else:
        return []
    return [
        f"{path}: holds a single object. If the rows are inside it, write them to a file of their "
        f"own: python -c {shlex.quote(code)}"
    ]


def _after_blanks(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _json_value(text: str, start: int) -> tuple[Any, int]:
    """Return the JSON value that begins at `start`, and where it ends.

    Raises:
        ValueError: there is none, or its lists and objects are nested too deep to be read.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("it is nested too deep; leave the part out that is") from None


def _json_fault(path: Path, error: ValueError, first_line: int) -> tuple[str, str]:
    """Return where a fault is and what it is, in a text that begins at `first_line`."""
    if not isinstance(error, json.JSONDecodeError):
        return f"{path}:{first_line}", f"not readable JSON: {error}"
    line = first_line + error.lineno - 1
    return f"{path}:{line}:{error.colno}", f"not JSON: {error.msg}"


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= MOST_DIGITS else digits


def _real(digits: str) -> float | str:
    """Return a number as a float if that is the same number, else its text."""
    value = float(digits)
    if len(digits) <= 16 and "e" not in digits.lower():  # so short, each has a float of its own
        return value
    try:
        return value if Decimal(repr(value)) == Decimal(digits) else digits
    except InvalidOperation:  # an exponent of more than 18 digits
        return digits


_DECODER = json.JSONDecoder(
    parse_int=_integer,
    parse_float=_real,
    parse_constant=lambda name: None,  # NaN and Infinity, which some libraries write for no value
)


def _record(value: Any, where: str, faults: Faults) -> Iterator[Record]:
    if isinstance(value, dict):
        yield Record(value, where)
    else:
        kind = "null" if value is None else f"a {type(value).__name__}"
        faults.add(where, f'expected an object such as {{"question": "..."}}, found {kind}')


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
    ".jsonl": partial(_of_text, _read_json),
    ".ndjson": partial(_of_text, _read_json),
    ".json": partial(_of_text, _read_json),
    ".parquet": _read_parquet,
    ".csv": partial(_of_text, _read_csv),
    ".tsv": partial(_of_text, _read_csv),
}
