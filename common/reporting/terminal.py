"""Tables and texts on the terminal; what a model wrote is shown as text, never as markup.

A table is as wide as the terminal, or as `COLUMNS` says, or 100 characters in a pipe. Texts are
wrapped to make room. If that is not enough, the last columns are left out, and a line says which.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from common.console import clean, print_json
from common.errors import UserError
from common.reporting.glossary import meaning, short

PIPE_WIDTH = 100
"""Width in characters where there is no terminal and no `COLUMNS`."""

ALL_COLUMNS = "all"
"""What `--columns` is given to see all of them, however wide."""

NAMES = ("variant", "result")
"""Columns that are not wrapped, besides those of ids."""

GAP = 2
"""Characters between two columns."""

LEAST_TEXT = 14
"""Characters that a text column keeps, if its texts are that long."""


class Table(NamedTuple):
    """A table with its key in JSON and its title on the terminal."""

    key: str
    title: str
    frame: pl.DataFrame


@dataclass(frozen=True)
class Shown:
    """How a command was asked to show its tables."""

    columns: tuple[str, ...] = ()
    """Names of the columns to show, or `ALL_COLUMNS`; those that fit if it is empty."""
    legend: bool = False
    """Whether to say below each table what its columns mean."""
    more: str = "a wider terminal or COLUMNS=200 shows them"
    """How to see columns that were left out."""

    @classmethod
    def of(cls, columns: str, legend: bool, command: str) -> Shown:
        """Return what the options `--columns` and `--legend` of a command say.

        Args:
            columns: names with commas between them.
            legend: whether `--legend` was given.
            command: the command line, to which `--columns all` is added in a message.
        """
        names = tuple(name.strip() for name in columns.split(",") if name.strip())
        return cls(names, legend, f"all: {command} --columns {ALL_COLUMNS}")


def print_table(
    frame: pl.DataFrame,
    *,
    title: str = "",
    key: str = "",
    wrap_names: bool = True,
    shown: Shown | None = None,
) -> None:
    """Print a table; numbers are short and to the right, ids never broken.

    Args:
        frame: what is printed.
        title: stands above it.
        key: key of the table, by which its columns are explained.
        wrap_names: whether column names are shortened, shown as words, and wrapped.
        shown: what the command's options say.
    """
    shown = shown or Shown()
    width = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns
    every = [_Column.of(frame[name], wrap_names) for name in frame.columns]
    columns = _fitted(every, width, cut=not shown.columns)
    console = Console(width=max(width, _total(columns)))
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(
            Text(column.header),
            justify="right" if column.numeric else "left",
            overflow="fold",
            width=column.width,
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, row))
    if title:
        # Not the table's own title, which is wrapped to the table's width.
        console.print(Text(clean(title), style="table.title"))
    console.print(table)
    if hidden := [clean(column.name) for column in every[len(columns) :]]:
        line = f"{len(hidden)} of {len(every)} columns hidden: {', '.join(hidden)}; {shown.more}"
        console.print(Text(line, style="dim"), soft_wrap=True)
    if shown.legend:
        _print_legend(console, key, columns)
    console.print()


def print_tables(found: Sequence[Table], *, as_json: bool, shown: Shown | None = None) -> None:
    """Print tables one below the other, or as one JSON object with a list of rows for each.

    An empty table is in the JSON only.

    Raises:
        UserError: the options name a column that no table has, or a legend is wanted in JSON.
    """
    shown = shown or Shown()
    found = chosen_columns(found, shown, as_json=as_json)
    if as_json:
        print_json({table.key: finite(table.frame).to_dicts() for table in found})
        return
    for table in found:
        if table.frame.is_empty():
            continue
        print_table(shortened(table.frame), title=table.title, key=table.key, shown=shown)


def chosen_columns(found: Sequence[Table], shown: Shown, *, as_json: bool) -> list[Table]:
    """Return the tables with the columns that `--columns` names; those without any are left out.

    A column goes by its name in JSON or by its name on the terminal.

    Raises:
        UserError: no table has such a column, or a legend is wanted in JSON.
    """
    if shown.legend and as_json:
        raise UserError("--legend explains the printed tables: leave it or --json out")
    if not shown.columns or ALL_COLUMNS in shown.columns:
        return list(found)
    known = dict.fromkeys(name for table in found for name in table.frame.columns)
    for wanted in shown.columns:
        if wanted not in known and wanted not in map(short, known):
            close = difflib.get_close_matches(wanted, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"--columns {wanted!r}: {hint}there are {', '.join(known)}")
    tables = []
    for table in found:
        by_name = {short(name): name for name in table.frame.columns}
        by_name |= {name: name for name in table.frame.columns}
        names = dict.fromkeys(by_name[name] for name in shown.columns if name in by_name)
        if names:
            tables.append(table._replace(frame=table.frame[list(names)]))
    return tables


@dataclass
class _Column:
    """A column on the terminal."""

    name: str
    header: str
    cells: list[str]
    numeric: bool
    width: int
    """Its characters; at first, what header and texts need on one line."""
    least: int
    """How narrow it may become: numbers, ids and words of the header are never broken."""

    @classmethod
    def of(cls, values: pl.Series, wrap_names: bool) -> _Column:
        name, numeric = values.name, values.dtype.is_numeric()
        # Spaces, so that a long name wraps between its words.
        header = clean(short(name).replace("_", " ") if wrap_names else name)
        cells = [_cell(value) for value in values.to_list()]
        word = max(map(cell_len, header.split() if wrap_names else [header]), default=0)
        text = max((cell_len(line) for cell in cells for line in cell.splitlines()), default=0)
        whole = numeric or name.endswith("_id") or name in NAMES
        least = max(word, text if whole else min(text, LEAST_TEXT))
        return cls(name, header, cells, numeric, max(cell_len(header), text), least)


def _total(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def _fitted(columns: Sequence[_Column], width: int, *, cut: bool) -> list[_Column]:
    """Return the first columns, as many as fit into `width`, with the longest texts narrowed.

    Args:
        columns: all columns, with the widths that they would like to have.
        width: characters of a line.
        cut: whether the last columns may be left out. If not, the result may be too wide.
    """
    kept = list(columns)
    while cut and len(kept) > 1 and sum(c.least for c in kept) + GAP * (len(kept) - 1) > width:
        kept.pop()
    while _total(kept) > width:
        widest = max(kept, key=lambda column: column.width - column.least)
        if widest.width == widest.least:
            break
        widest.width -= 1
    return kept


def _print_legend(console: Console, key: str, columns: Sequence[_Column]) -> None:
    table = RichTable.grid(padding=(0, GAP, 0, 0))
    for column in columns:
        table.add_row(Text(column.header, style="bold"), Text(meaning(column.name, key)))
    console.print(table)


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


def finite(frame: pl.DataFrame) -> pl.DataFrame:
    """Replace numbers that are not finite by null: JSON has none."""
    floats = pl.selectors.float()
    return frame.with_columns(pl.when(floats.is_finite()).then(floats))


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
