"""Tables on their way to the terminal or to JSON."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl
import pyarrow as pa


class Table(NamedTuple):
    """A table with its key in JSON and its title on the terminal."""

    key: str
    title: str
    frame: pl.DataFrame


def polars_frame(table: pa.Table) -> pl.DataFrame:
    """An Arrow table as a polars frame."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def first_rows(table: Table, limit: int | None, count: int | None = None) -> Table:
    """At most `limit` rows; where some are left out, the title says how many there are.

    Args:
        limit: None for all rows.
        count: how many there are, if `table` has not all of them.
    """
    count = table.frame.height if count is None else count
    if limit is None or count <= limit:
        return table
    title = f"{table.title}: {limit} of {count} (--limit 0 shows all)"
    return table._replace(title=title, frame=table.frame.head(limit))


def shortened(frame: pl.DataFrame, width: int = 60) -> pl.DataFrame:
    """`frame` for a terminal: texts on one line, of at most `width` characters."""
    text = pl.col(pl.String).str.replace_all(r"\s+", " ")
    return frame.with_columns(
        pl.when(text.str.len_chars() > width).then(text.str.head(width - 1) + "…").otherwise(text)
    )
