"""Data sets in files: JSON Lines, JSON, Parquet and CSV, one file or a folder of them.

Faults in a file are reported with their place: line and column, or row, or byte.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.tasks.records import Faults, Record

NOT_ROWS = ("manifest.json", "dataset_info.json", "dataset_infos.json")
"""JSON files in a folder that describe its data and hold no rows."""

_BOM = b"\xef\xbb\xbf"


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


def _read_json_lines(path: Path, data: bytes, faults: Faults) -> Iterator[Record]:
    for number, line in enumerate(data.removeprefix(_BOM).split(b"\n"), start=1):
        if line.strip():
            found = _parse_json(path, line, faults, first_line=number)
            yield from _record(found, f"{path}:{number}", faults)


def _read_json(path: Path, data: bytes, faults: Faults) -> Iterator[Record]:
    """Yield the objects of a JSON list, or those of JSON Lines in a file called `.json`."""
    data = data.removeprefix(_BOM)
    if not data.lstrip().startswith(b"["):
        yield from _read_json_lines(path, data, faults)
        return
    for position, item in enumerate(_parse_json(path, data, faults) or []):
        yield from _record(item, f"{path}[{position}]", faults)


def _parse_json(path: Path, data: bytes, faults: Faults, first_line: int = 1) -> Any:
    """Return the JSON value, or add a fault and return None if it is not JSON."""
    text = _decode(path, data, faults, first_line)
    if text is None:
        return None
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        faults.add(f"{path}:{line}:{error.colno}", f"not JSON: {error.msg}")
    except (ValueError, RecursionError) as error:
        faults.add(f"{path}:{first_line}", f"not readable JSON: {error}")
    return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _record(value: Any, where: str, faults: Faults) -> Iterator[Record]:
    if isinstance(value, dict):
        yield Record(value, where)
    elif value is not None:
        kind = type(value).__name__
        faults.add(where, f'expected an object such as {{"question": "..."}}, found a {kind}')


def _read_csv(path: Path, data: bytes, faults: Faults) -> Iterator[Record]:
    text = _decode(path, data.removeprefix(_BOM), faults)
    if text is None:
        return
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(rows, [])
        for name in sorted({name for name in header if header.count(name) > 1}):
            faults.add(f"{path}:1", f"two columns are called {name!r}")
        line = rows.line_num + 1
        for row in rows:
            where, line = f"{path}:{line}", rows.line_num + 1
            if len(row) == len(header):
                yield Record(dict(zip(header, row, strict=True)), where)
            elif row:
                faults.add(where, f"{len(row)} values, but the header names {len(header)} columns")
    except csv.Error as error:
        faults.add(f"{path}:{rows.line_num}", f"not CSV: {error}")


def _read_parquet(path: Path, data: bytes, faults: Faults) -> Iterator[Record]:
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        faults.add(str(path), f"not a readable Parquet file: {error}")
        return
    columns = {name: _values(path, name, table.column(name), faults) for name in table.column_names}
    for row in range(table.num_rows):
        values = {name: column[row] for name, column in columns.items()}
        yield Record(values, f"{path} row {row}")


def _values(path: Path, name: str, column: pa.ChunkedArray, faults: Faults) -> list[Any]:
    """Return a column's Python values; text that is not UTF-8 becomes None and a fault."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            faults.add(str(path), f"column {name!r} is not UTF-8")
            return [None] * len(column)
    values: list[str | None] = []
    for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            values.append(None if value is None else value.decode())
        except UnicodeDecodeError as error:
            faults.add(f"{path} row {row}", f"column {name!r} is not UTF-8 at byte {error.start}")
            values.append(None)
    return values


def _decode(path: Path, data: bytes, faults: Faults, first_line: int = 1) -> str | None:
    """Return `data` as text, or add a fault and return None if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        byte = error.start - (data.rfind(b"\n", 0, error.start) + 1)
        shown = data[error.start : error.start + 1].hex()
        faults.add(f"{path}:{line}", f"not UTF-8 at byte {byte} of the line (0x{shown})")
        return None


READERS: dict[str, Callable[[Path, bytes, Faults], Iterator[Record]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
