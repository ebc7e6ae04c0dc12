"""Tables and texts on the terminal; what a model wrote is shown as text, never as markup."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import polars as pl
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from common.console import clean
from common.errors import UserError

SVG_WIDTH = 140
PIPE_WIDTH = 200
NAMES = ("variant", "result")
"""Columns that are not wrapped, besides those of ids."""


class Table(NamedTuple):
    """A table with its key in JSON and its title on the terminal."""

    key: str
    title: str
    frame: pl.DataFrame


def print_table(
    frame: pl.DataFrame,
    *,
    title: str = "",
    svg: Path | None = None,
    wrap_names: bool = True,
) -> None:
    """Print a table; numbers are short and to the right, ids never broken.

    Args:
        frame: what is printed.
        title: stands above it.
        svg: if given, the terminal is also drawn into this file.
        wrap_names: whether column names are shown as words, and wrapped.
    """
    console = Console(record=svg is not None, width=_width(svg is not None))
    table = RichTable(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    cells = {name: [_cell(value) for value in frame[name].to_list()] for name in frame.columns}
    for name, kind in frame.schema.items():
        # Spaces, so that a long name wraps between its words; numbers never wrap.
        words = clean(name).split("_") if wrap_names else [clean(name)]
        numeric = kind.is_numeric()
        table.add_column(
            Text(" ".join(words)),
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=name.endswith("_id") or name in NAMES,
            min_width=max(map(len, words + cells[name])) if numeric else None,
        )
    for row in zip(*cells.values(), strict=True):
        table.add_row(*map(Text, row))
    if title:
        # Not the table's own title, which is wrapped to the table's width.
        console.print(Text(clean(title), style="table.title"))
    console.print(table)
    if svg is not None:
        drawn = console.export_svg(title="staged-grpo")
        # Without rich's web fonts: a picture must not load anything from elsewhere.
        drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)
        svg.write_text(drawn, encoding="utf-8")


def print_tables(found: list[Table], *, as_json: bool) -> None:
    """Print tables one below the other, or as one JSON object with a list of rows for each.

    An empty table is in the JSON only.
    """
    if as_json:
        print(json.dumps({table.key: _finite(table.frame).to_dicts() for table in found}))
        return
    for table in found:
        if table.frame.is_empty():
            continue
        print_table(shortened(table.frame), title=table.title)


def print_completion(row: dict[str, object]) -> None:
    """Print one scored completion with its question."""
    body = Text()
    body.append(clean(f"{row['question']}\n"), style="bold")
    body.append(clean(str(row["assistant_prefix"])), style="dim")
    body.append(clean(f"{row['completion_text']}\n"))
    judged = f"{row['verdict']}: read {row['extracted_answer']!r}, gold {row['answer']!r}"
    body.append(clean(judged), style="green" if row["verdict"] == "correct" else "red")
    title = (
        f"{row['rollout_id']}  reward {_cell(row['reward'])}  advantage {_cell(row['advantage'])}"
    )
    Console().print(Panel(body, title=Text(title), title_align="left"))


def bytes_text(count: int) -> str:
    """Return 1536 as `1.5 KiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def require_task(known: pl.Series, task: str) -> None:
    """Check that a column has this task, the value of `--task`; an empty one stands for all.

    Raises:
        UserError: it has not; the message lists those that it has.
    """
    names = known.unique(maintain_order=True).to_list()
    if task and task not in names:
        raise UserError(f"--task {task!r}: there is {', '.join(map(repr, names))}")


def of_task(scored: pl.DataFrame, task: str) -> pl.Series:
    """Return which rows of a table belong to `task`, as a mask; all of them when it is empty.

    Raises:
        UserError: there is no such task; the message lists those that exist.
    """
    require_task(scored["task"], task)
    return scored.select(pl.col("task") == task if task else pl.repeat(True, pl.len())).to_series()


def first_rows(table: Table, limit: int | None, count: int | None = None) -> Table:
    """Return at most `limit` rows; where some are left out, the title says how many there are.

    Args:
        table: the rows, all of them or the first.
        limit: None for all rows.
        count: how many there are, if `table` has not all of them.
    """
    count = table.frame.height if count is None else count
    if limit is None or count <= limit:
        return table
    title = f"{table.title}: {limit} of {count} (--limit 0 shows all)"
    return table._replace(title=title, frame=table.frame.head(limit))


def shortened(frame: pl.DataFrame, width: int = 60, keep_end: Collection[str] = ()) -> pl.DataFrame:
    """Return `frame` for a terminal: texts on one line, of at most `width` characters.

    Args:
        frame: what is to be printed.
        width: characters of a text.
        keep_end: columns whose long texts lose their beginning, such as questions that only their
            ends tell apart; the others lose their end.
    """
    texts = [name for name, kind in frame.schema.items() if kind == pl.String]
    frame = frame.with_columns(pl.col(texts).str.replace_all(r"\s+", " "))
    return frame.with_columns(_cut(pl.col(name), width, name in keep_end) for name in texts)


def _finite(frame: pl.DataFrame) -> pl.DataFrame:
    """Replace numbers that are not finite by null: JSON has none."""
    floats = pl.selectors.float()
    return frame.with_columns(pl.when(floats.is_finite()).then(floats))


def _width(drawn: bool) -> int | None:
    """Return the terminal's own width (None), or a fixed one for pictures and pipes."""
    if drawn:
        return SVG_WIDTH
    return None if sys.stdout.isatty() else PIPE_WIDTH


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"
    return clean(str(value))


def _cut(text: pl.Expr, width: int, keep_end: bool) -> pl.Expr:
    rest = width - 1
    cut = pl.lit("…") + text.str.tail(rest) if keep_end else text.str.head(rest) + pl.lit("…")
    return pl.when(text.str.len_chars() <= width).then(text).otherwise(cut)
