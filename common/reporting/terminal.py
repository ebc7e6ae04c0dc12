"""Tables and texts on the terminal; what a model wrote is shown as text, never as markup."""

from __future__ import annotations

import polars as pl
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from common.reporting.progress import clean


def print_table(frame: pl.DataFrame, *, title: str = "", limit: int | None = None) -> None:
    """Print a table; numbers short and to the right, at most `limit` rows."""
    console = Console()
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for name, kind in frame.schema.items():
        table.add_column(name, justify="right" if kind.is_numeric() else "left", overflow="fold")
    shown = frame if limit is None else frame.head(limit)
    for row in shown.iter_rows():
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)
    if frame.height > shown.height:
        console.print(f"… {frame.height - shown.height} more rows (--limit 0 shows all)")


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


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"
    return clean(str(value))
