"""A data set's own columns, with the same values however its rows reach a reward function."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from common.tasks.records import Record


def plain(value: Any) -> Any:
    """Return `value` in types that JSON has; bytes and numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None if isinstance(value, (bytes, bytearray)) else str(value)


def in_one_type(records: Sequence[Record], without: Iterable[str] = ()) -> list[Record]:
    """Return records whose columns of lists, of objects and of mixed numbers have one type each.

    A file that is read as a table has its columns so: an object has the keys of all rows, None
    where its own row had none, and an integer beside fractions is a fraction. Columns that have no
    type in common stay as they are.

    Args:
        records: the rows.
        without: names of columns to leave as they are.
    """
    found = dict.fromkeys(name for record in records for name in record.values)
    names = [name for name in found if name not in set(without)]
    columns = {name: [record.values.get(name) for record in records] for name in names}
    changed = {name: _in_one_type(column) for name, column in columns.items() if _varies(column)}
    if not changed:
        return list(records)
    return [
        replace(
            record,
            values={
                name: changed[name][row] if name in changed else value
                for name, value in record.values.items()
            },
        )
        for row, record in enumerate(records)
    ]


def _varies(column: Sequence[Any]) -> bool:
    kinds = {type(value) for value in column}
    return bool(kinds & {list, dict}) or {int, float} <= kinds


def _in_one_type(column: list[Any]) -> list[Any]:
    try:
        found: list[Any] = pa.array(column).to_pylist()
    except (pa.ArrowException, UnicodeError, OverflowError, ValueError):
        return column
    return found
