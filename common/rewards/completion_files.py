"""Completions from any file, for scoring outside a run: `stages.score --input`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.runs.schemas import KEY, score_schema
from common.tasks.files import files_of, read_files
from common.tasks.golds import gold_text
from common.tasks.records import Faults, Record

NEEDED = ("completion_text", "answer", "verify_type")
TEXTS = (*NEEDED, "assistant_prefix", "question", "task")
"""Columns that rules and tables read as text."""

Where = Callable[[int], str]
"""A function from a row's number to its file and row, for messages."""

_REFUSALS = (pa.ArrowException, UnicodeError, OverflowError)


def read_completions(path: Path) -> pa.Table:
    """Read all rows and columns of a Parquet, JSON Lines, JSON or CSV file, or a folder of those.

    A folder must hold files of one kind. `completion_text`, `answer` and `verify_type` must be
    there; `group_id` and `assistant_prefix` may be.

    Raises:
        UserError: nothing readable is there, or a column is missing or holds anything but text;
            with file, column and row.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    files = files_of(path, "train")
    faults = Faults()
    if all(file.suffix.lower() == ".parquet" for file in files):
        tables = [_checked_parquet(file, faults) for file in files]
    else:
        records = [_with_gold_text(record, faults) for record in read_files(files, faults)]
        faults.raise_any()
        table = _table(records, faults)
        tables = [_checked(table, str(path), lambda row: records[row].where, faults)]
    faults.raise_any()
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise UserError(f"{path}: cannot be read as one table: {error}") from None


def former_scores(columns: list[str]) -> list[str]:
    """Return the names of those columns that an earlier score has left in a file."""
    ours = set(score_schema(()).names) - {KEY}
    scored = {"reward_answer", "verdict"} <= set(columns)
    return [name for name in columns if name in ours or (scored and name.startswith("reward_"))]


def group_numbers(completions: pa.Table) -> list[int]:
    """Return the group of each row as a number from 0; an empty list if the file has no groups."""
    if "group_id" not in completions.column_names:
        return []
    column = completions["group_id"].combine_chunks()
    numbers: list[int] = column.dictionary_encode().indices.to_pylist()
    return numbers


def kept_rows(completions: pa.Table, groups: list[int], where: str) -> list[bool]:
    """Return which rows are in the batch, as their column `kept` says; all of them without it.

    Args:
        completions: the rows.
        groups: as `group_numbers` gives them.
        where: what to call the file in an error.

    Raises:
        UserError: `kept` is not true or false in every row, or not the same for a whole group.
    """
    if "kept" not in completions.column_names or not groups:
        return [True] * completions.num_rows
    column = completions["kept"]
    if not pa.types.is_boolean(column.type) or column.null_count:
        held = "nulls" if column.null_count else str(column.type)
        raise UserError(
            f"{where}: column 'kept' holds {held}; it says of every row whether its group is in "
            "the batch (true or false): mend it, or leave the column out"
        )
    kept: list[bool] = column.to_pylist()
    of_group: dict[int, bool] = {}
    for row, (group, flag) in enumerate(zip(groups, kept, strict=True)):
        if of_group.setdefault(group, flag) != flag:
            raise UserError(
                f"{where} row {row}: kept is {flag}, but not so in other rows of its group; a "
                "group is in the batch or not"
            )
    return kept


def _checked_parquet(file: Path, faults: Faults) -> pa.Table:
    """Read a Parquet file with its own column types, which its rows as Python values would lose."""
    try:
        table = pq.read_table(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        # Arrow says that something is not UTF-8, the reader of records which row and byte.
        read_files([file], faults)
        faults.raise_any()
        raise UserError(f"{file}: damaged: {error}") from None

    def where(row: int) -> str:
        return f"{file} row {row}"

    return _checked(_with_gold_texts(table, where, faults), str(file), where, faults)


def _with_gold_text(record: Record, faults: Faults) -> Record:
    """Return a record whose `answer`, if it is a list, an object or an integer, is text.

    So a file may have a number in one row and a list of golds in another.
    """
    value = record.values.get("answer")
    if not isinstance(value, (list, dict, int)) or isinstance(value, bool):
        return record
    try:
        text = gold_text(value, str(record.values.get("verify_type")))
    except UserError as error:
        faults.add(record.where, f"column 'answer' {error}")
        return record
    return Record(record.values | {"answer": text}, record.where)


def _with_gold_texts(table: pa.Table, where: Where, faults: Faults) -> pa.Table:
    """Return a table whose column `answer`, if it holds lists or objects, is one of text."""
    if not {"answer", "verify_type"} <= set(table.column_names):
        return table
    if not pa.types.is_nested(table["answer"].type):
        return table
    rows = table.select(["answer", "verify_type"]).to_pylist()
    records = [
        _with_gold_text(Record(values, where(row)), faults) for row, values in enumerate(rows)
    ]
    faults.raise_any()
    texts = pa.array([record.values["answer"] for record in records], pa.string())
    return table.set_column(table.column_names.index("answer"), "answer", texts)


def _table(records: list[Record], faults: Faults) -> pa.Table:
    """Return the records as columns, of all names that occur.

    Raises:
        UserError: values of a column have no type in common, or cannot be written as UTF-8.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    for name in dict.fromkeys(name for record in records for name in record.values):
        columns[name] = _converted(
            [record.values.get(name) for record in records],
            partial(_named_column, name),
            lambda row: records[row].where,
            f"column {name!r} cannot be stored",
            faults,
        )
    faults.raise_any()
    return pa.table(columns)


def _named_column(name: str, values: list[Any]) -> pa.ChunkedArray:
    # As a table, since the name too must have bytes in UTF-8.
    return pa.table({name: values})[name]


def _checked(table: pa.Table, file: str, where: Where, faults: Faults) -> pa.Table:
    """Return `table` with its text columns as text; what is wrong with it goes to `faults`."""
    if not table.num_rows:
        faults.add(file, "is empty: no rows")
        return table
    for name in NEEDED:
        if name not in table.column_names:
            faults.add(file, f"no column {name!r} among {', '.join(table.column_names)}")
    for name in (*NEEDED, "group_id"):
        if name in table.column_names and table[name].null_count:
            row = table[name].is_null().to_pylist().index(True)
            faults.add(where(row), f"no value in column {name!r}")
    for name in TEXTS:
        if name not in table.column_names:
            continue
        what = f"column {name!r} is not text"
        text = _converted(table[name], lambda part: part.cast(pa.string()), where, what, faults)
        if text is not None:
            table = table.set_column(table.column_names.index(name), name, text)
    if "group_id" in table.column_names and pa.types.is_nested(table["group_id"].type):
        kind = table["group_id"].type
        faults.add(where(0), f"column 'group_id' holds {kind}; text or numbers name a group")
    return table


def _converted(
    values: Any, convert: Callable[[Any], Any], where: Where, what: str, faults: Faults
) -> Any:
    """Return `convert(values)`, or None after adding the first row that it refuses to `faults`."""

    def refusal(count: int) -> Exception | None:
        try:
            convert(values[:count])
        except _REFUSALS as error:
            return error
        return None

    try:
        return convert(values)
    except _REFUSALS:
        # Bisection for the shortest beginning that is refused: its last row is at fault.
        row = bisect_left(range(1, len(values)), True, key=lambda n: refusal(n) is not None)
        faults.add(where(row), f"{what}: {refusal(row + 1)}")
        return None
