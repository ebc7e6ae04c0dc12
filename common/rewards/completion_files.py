"""Completions from any file, for scoring outside a run: `stages.score --input`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.console import say
from common.errors import UserError
from common.runs.schemas import KEY, score_schema
from common.tasks.arrow_values import python_values
from common.tasks.files import files_of, read_files, read_parquet
from common.tasks.golds import gold_text
from common.tasks.records import Faults, Record, as_text, listed, shown

NEEDED = ("completion_text", "answer", "verify_type")
TEXTS = (*NEEDED, "assistant_prefix", "question", "task")
"""Columns that rules and tables read as text."""

Where = Callable[[int], str]
"""A function from a row's number to its file and row, for messages."""

_REFUSALS = (pa.ArrowException, UnicodeError, OverflowError, RecursionError)


def read_completions(path: Path) -> pa.Table:
    """Read all rows and columns of a Parquet, JSON Lines, JSON or CSV file, or a folder of those.

    `completion_text`, `answer` and `verify_type` must be there; `group_id` and `assistant_prefix`
    may be. What was not read as it might seem is told.

    Raises:
        UserError: nothing readable is there, or a column is missing or cannot be read as text; with
            file, column and row.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    files = files_of(path, "train")
    faults = Faults()
    if all(file.suffix.lower() == ".parquet" for file in files):
        found = [_checked_parquet(file, faults) for file in files]
        tables = [table for table in found if table is not None]
    else:
        records = [_with_gold_text(record, faults) for record in read_files(files, faults)]
        faults.raise_any()
        table = _table(records, faults)
        tables = [_checked(table, str(path), lambda row: records[row].where, faults)]
    grouped = ["group_id" in table.column_names for table in tables]
    if any(grouped) and not all(grouped):
        faults.add(str(files[grouped.index(False)]), "no column 'group_id', which other files have")
    faults.raise_any()
    for notice in faults.notices:
        say(notice)
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(
            f"{path}: a column has types in different files that do not fit together: "
            f"{str(error).strip().splitlines()[0]}; score the files one by one"
        ) from None


def former_scores(columns: list[str]) -> list[str]:
    """Return the names of those columns that an earlier score has left in a file."""
    ours = set(score_schema(()).names) - {KEY}
    scored = {"reward_answer", "verdict"} <= set(columns)
    return [name for name in columns if name in ours or (scored and name.startswith("reward_"))]


def group_numbers(completions: pa.Table) -> list[int]:
    """Return the group of each row as a number from 0; an empty list if the file has no groups."""
    if "group_id" not in completions.column_names:
        return []
    groups = python_values(completions["group_id"])
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return [numbers[group] for group in groups]


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


def _checked_parquet(file: Path, faults: Faults) -> pa.Table | None:
    """Read a Parquet file with its own column types, which its rows as Python values would lose."""
    table = read_parquet(file, file, faults)
    if table is None:
        return None

    def where(row: int) -> str:
        return f"{file} row {row}"

    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        # Arrow says that some text is not UTF-8, this which column, row and byte.
        for name, column in zip(table.column_names, table.columns, strict=True):
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                _texts(name, python_values(column), where, faults)
        faults.raise_any()
        raise UserError(f"{file}: damaged: {error}; write it or copy it anew") from None
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
    columns = (python_values(table[name]) for name in ("answer", "verify_type"))
    records = [
        _with_gold_text(Record({"answer": answer, "verify_type": kind}, where(row)), faults)
        for row, (answer, kind) in enumerate(zip(*columns, strict=True))
    ]
    faults.raise_any()
    texts = pa.array([record.values["answer"] for record in records], pa.string())
    return table.set_column(table.column_names.index("answer"), "answer", texts)


def _table(records: list[Record], faults: Faults) -> pa.Table:
    """Return the records as columns, of all names that occur."""
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for record in records for name in record.values):
        values = [record.values.get(name) for record in records]
        if name in TEXTS:
            columns[name] = _texts(name, values, lambda row: records[row].where, faults)
        else:
            columns[name] = _column(name, values, faults)
    faults.raise_any()
    try:
        return pa.table(columns)
    except UnicodeEncodeError:
        name = next(name for name in columns if not name.isascii())
        raise UserError(
            f"{records[0].where}: the name of column {name!r} has half a character; rename it"
        ) from None


def _column(name: str, values: list[Any], faults: Faults) -> pa.Array:
    """Return values as a column of the type that fits them all, else of their JSON, which is told.

    No type fits text beside numbers, integers of more than 64 bits, objects without keys, or what
    is nested deeper than Parquet's readers go.
    """
    try:
        column = pa.array(values)
        if _is_storable(column.type):
            return column
    except _REFUSALS:
        pass
    faults.notices.append(f"column {name!r}: no single type fits its values; it is kept as JSON")
    texts = [None if value is None else json.dumps(value, default=str) for value in values]
    return pa.array(texts, pa.string())


def _is_storable(kind: pa.DataType, levels: int = 10) -> bool:
    """Return whether Parquet holds a type: no object without keys, and so many levels at most."""
    if pa.types.is_struct(kind):
        inner = [field.type for field in kind]
    elif pa.types.is_list(kind):
        inner = [kind.value_type]
    else:
        return True
    return bool(inner) and levels > 0 and all(_is_storable(item, levels - 1) for item in inner)


def _texts(name: str, values: Sequence[Any], where: Where, faults: Faults) -> pa.Array | None:
    """Return values as a column of text, or None after adding the first that is none to `faults`.

    They are the text that a run would have for them.
    """
    texts = []
    for row, value in enumerate(values):
        try:
            texts.append(None if value is None else as_text(value))
        except UserError as error:
            faults.add(where(row), f"column {name!r} {error}")
            return None
    return pa.array(texts, pa.string())


def _checked(table: pa.Table, file: str, where: Where, faults: Faults) -> pa.Table:
    """Return `table` with its text columns as text; what is wrong with it goes to `faults`."""
    if not table.num_rows:
        faults.add(file, "is empty: no rows")
        return table
    for name in NEEDED:
        if name not in table.column_names:
            faults.add(
                file,
                f"no column {name!r} among {listed(table.column_names)}; rename the column that "
                "holds it, or add one",
            )
    for name in (*NEEDED, "group_id"):
        if name in table.column_names and table[name].null_count:
            row = table[name].is_null().to_pylist().index(True)
            faults.add(
                where(row), f"no value in column {name!r}; give it one, or leave the row out"
            )
    for name in TEXTS:
        if name not in table.column_names:
            continue
        column = table[name]
        if pa.types.is_string(column.type):
            continue
        text = _texts(name, python_values(column), where, faults)
        if text is not None:
            table = table.set_column(table.column_names.index(name), name, text)
    if "group_id" in table.column_names:
        for row, group in enumerate(python_values(table["group_id"])):
            if isinstance(group, (list, dict)):
                what = f"column 'group_id' holds {shown(group)}; name a group by text or a number"
                faults.add(where(row), what)
                break
    return table
