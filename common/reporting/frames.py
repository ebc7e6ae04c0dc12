"""Tables on their way to the terminal or to JSON."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import polars as pl

from common.errors import UserError


class Table(NamedTuple):
    """A table with its key in JSON and its title on the terminal."""

    key: str
    title: str
    frame: pl.DataFrame


def require_task(known: pl.Series, task: str) -> None:
    """Refuse a task that is none of those in a column.

    Raises:
        UserError: lists those there are.
    """
    names = known.unique(maintain_order=True).to_list()
    if task and task not in names:
        raise UserError(f"--task {task!r}: there is {', '.join(map(repr, names))}")


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


def shortened(frame: pl.DataFrame, width: int = 60, keep_end: Collection[str] = ()) -> pl.DataFrame:
    """`frame` for a terminal: texts on one line, of at most `width` characters.

    Args:
        keep_end: columns whose long texts lose their beginning, such as questions that only their
            ends tell apart; the others lose their end.
    """
    texts = [name for name, kind in frame.schema.items() if kind == pl.String]
    frame = frame.with_columns(pl.col(texts).str.replace_all(r"\s+", " "))
    return frame.with_columns(_cut(pl.col(name), width, name in keep_end) for name in texts)


def _cut(text: pl.Expr, width: int, keep_end: bool) -> pl.Expr:
    rest = width - 1
    cut = pl.lit("…") + text.str.tail(rest) if keep_end else text.str.head(rest) + pl.lit("…")
    return pl.when(text.str.len_chars() <= width).then(text).otherwise(cut)
