"""Columns of shards: joins by key, per-token lists as flat arrays, and polars frames."""

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
    """Return `left` with the new columns of `right`, which must have equal keys in equal order.

    Args:
        names: what to call `left` and `right` in messages.

    Raises:
        UserError: a key of `right` is missing, superfluous or in another place.
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
    """Return how many values each row of a list column has, int [rows]."""
    return pc.list_value_length(table[name]).to_numpy()


def flat_values(table: pa.Table, name: str) -> np.ndarray:
    """Return all values of a list column without nulls as one array, row after row."""
    return table[name].combine_chunks().flatten().to_numpy()


def list_column(flat: pa.Array, lengths: np.ndarray) -> pa.ListArray:
    """Return a list column whose rows have `lengths` values each; undoes `flat_values`."""
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), flat)


def without_rejected(table: pa.Table) -> pa.Table:
    """Return `table` with empty per-token lists in rows with `kept` = false; nulls stay null.

    Nothing trains on those tokens, so nothing is computed for them.
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
    """Check that a list column has one value for each completion token of `rollout`.

    Raises:
        UserError: a row has more or fewer; the message names the first by its key in `rollout`.
    """
    expected, found = list_lengths(rollout, "completion_ids"), list_lengths(table, name)
    if not np.array_equal(found, expected):
        row = int(np.flatnonzero(found != expected)[0])
        raise UserError(
            f"{rollout[KEY][row]}: {name} has {found[row]} numbers, "
            f"completion_ids {expected[row]} tokens; make rollout and logprobs again"
        )


def polars_frame(table: pa.Table) -> pl.DataFrame:
    """Return an Arrow table as a polars frame."""
    import polars as pl

    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
