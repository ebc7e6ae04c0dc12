"""Tables and texts on the terminal; what a model wrote is shown as text, never as markup."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import polars as pl
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from common.console import clean
from common.reporting import frames

SVG_WIDTH = 140
PIPE_WIDTH = 200
NAMES = ("variant", "result")
"""Columns that are not wrapped, as those of ids are not."""


def print_table(
    frame: pl.DataFrame,
    *,
    title: str = "",
    svg: Path | None = None,
    wrap_names: bool = True,
) -> None:
    """Print a table; numbers short and to the right, ids never broken.

    Args:
        wrap_names: show column names as words; otherwise as they are.
        svg: also draw the terminal into this file.
    """
    console = Console(record=svg is not None, width=_width(svg is not None))
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
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


def print_tables(found: list[frames.Table], *, as_json: bool) -> None:
    """Print tables one below the other, or as one JSON object with a list of rows each.

    An empty table is in the JSON only.
    """
    if as_json:
        print(json.dumps({table.key: _finite(table.frame).to_dicts() for table in found}))
        return
    for table in found:
        if table.frame.is_empty():
            continue
        print_table(frames.shortened(table.frame), title=table.title)


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
    """1536 as `1.5 KiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _finite(frame: pl.DataFrame) -> pl.DataFrame:
    """Null for numbers that are not finite: JSON has none."""
    floats = pl.selectors.float()
    return frame.with_columns(pl.when(floats.is_finite()).then(floats))


def _width(drawn: bool) -> int | None:
    """The terminal's own width (None); a fixed one for pictures and where there is none."""
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
