"""Columns of shards: joined by key, lists of one value per token as flat arrays, polars frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import UserError
from common.runs.schemas import KEY

if TYPE_CHECKING:
    import polars as pl


def join(left: pa.Table, right: pa.Table, *, key: str, names: tuple[str, str]) -> pa.Table:
    """`left` with the new columns of `right`, which must have the same keys in the same order.

    Raises:
        UserError: a key is missing, superfluous or in another place; `names` says whose.
    """
    mine, theirs = left.column(key).to_pylist(), right.column(key).to_pylist()
    if mine != theirs:
        missing, extra = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
        what = (
            f"{len(missing)} rows missing {missing[:3]}, {len(extra)} superfluous {extra[:3]}"
            if missing or extra
            else "the same rows in another order"
        )
        raise UserError(f"{names[1]} does not match {names[0]}: {what}; make {names[1]} again")
    for field in right.schema:
        if field.name not in left.schema.names:
            left = left.append_column(field, right.column(field.name))
    return left


def list_lengths(table: pa.Table, name: str) -> np.ndarray:
    """How many values each row of a list column has, int [rows]."""
    return pc.list_value_length(table[name]).to_numpy()


def flat_values(table: pa.Table, name: str) -> np.ndarray:
    """The values of all rows of a list column without nulls, one row after another."""
    return table[name].combine_chunks().flatten().to_numpy()


def list_column(flat: pa.Array, lengths: np.ndarray) -> pa.ListArray:
    """`flat_values`' inverse: rows of `lengths` values each."""
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), flat)


def without_rejected(table: pa.Table) -> pa.Table:
    """`table` with empty lists for what rows with `kept` = false have by token.

    Nobody trains on those tokens, so nothing is computed of them. Nulls stay null.
    """
    if pc.all(table["kept"]).as_py():
        return table
    for index, field in enumerate(table.schema):
        if pa.types.is_list(field.type) and field.name != "prompt_ids":
            stays = pc.or_(table["kept"], pc.is_null(table[index]))
            column = pc.if_else(stays, table[index], pa.scalar([], field.type))
            table = table.set_column(index, field, column)
    return table


def check_lengths(table: pa.Table, name: str, rollout: pa.Table) -> None:
    """Refuse a list column that has not one value for each completion token of `rollout`.

    Raises:
        UserError: names the first such row, whose key is that of `rollout`.
    """
    expected, found = list_lengths(rollout, "completion_ids"), list_lengths(table, name)
    if not np.array_equal(found, expected):
        row = int(np.flatnonzero(found != expected)[0])
        raise UserError(
            f"{rollout[KEY][row]}: {name} has {found[row]} numbers, "
            f"completion_ids {expected[row]} tokens; make rollout and logprobs again"
        )


def polars_frame(table: pa.Table) -> pl.DataFrame:
    """An Arrow table as a polars frame."""
    import polars as pl

    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
