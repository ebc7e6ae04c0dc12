"""Shards of several stages side by side, matched by their key."""

from __future__ import annotations

import pyarrow as pa

from common.errors import UserError


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
