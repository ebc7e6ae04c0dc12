"""Completions from any file, for scoring outside a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.tasks.files import files_of, read_files
from common.tasks.records import Faults

NEEDED = ("completion_text", "answer", "verify_type")


def read_completions(path: Path) -> pa.Table:
    """All rows and columns of a Parquet, JSON Lines, JSON or CSV file, or of a folder of one kind.

    `completion_text`, `answer` and `verify_type` must be there; `group_id` and `assistant_prefix`
    may be.

    Raises:
        UserError: nothing readable is there, or a column is missing or holds anything but text.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    files = files_of(path, "train")
    try:
        if all(file.suffix == ".parquet" for file in files):
            table = pa.concat_tables(pq.read_table(file) for file in files)
        else:
            faults = Faults()
            records = read_files(files, faults)
            faults.raise_any()
            table = pa.Table.from_pylist([record.values for record in records])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as one table: {error}") from None
    return _checked(path, table)


def _checked(path: Path, table: pa.Table) -> pa.Table:
    """`table` with its text columns as text."""
    faults = Faults()
    missing = [name for name in NEEDED if name not in table.column_names]
    for name in missing:
        faults.add(str(path), f"no column {name!r} among {', '.join(table.column_names)}")
    for name in (*NEEDED, "assistant_prefix", "group_id"):
        if name not in table.column_names:
            continue
        column = table[name]
        if column.null_count and name != "assistant_prefix":
            row = column.is_null().to_pylist().index(True)
            faults.add(f"{path} row {row}", f"no value in column {name!r}")
        if name != "group_id":
            try:
                text = column.cast(pa.string())
            except (pa.ArrowException, UnicodeDecodeError) as error:
                faults.add(str(path), f"column {name!r} is not text: {error}")
                continue
            table = table.set_column(table.column_names.index(name), name, text)
    if not table.num_rows:
        faults.add(str(path), "is empty: no rows")
    faults.raise_any()
    return table


def group_numbers(column: pa.ChunkedArray) -> list[Any]:
    """Groups as numbers from 0, whatever names the file gave them."""
    numbers: list[Any] = column.combine_chunks().dictionary_encode().indices.to_pylist()
    return numbers
