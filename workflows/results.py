"""Results of a command as Parquet files in one folder, to be tracked and printed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from common.errors import UserError
from common.runs.manifest import write_atomically
from common.runs.shards import encode_parquet

OutputFolder = Annotated[
    Path | None, typer.Option("--output", help="Write the results into this folder, as Parquet.")
]
ReadFolder = Annotated[
    Path | None,
    typer.Option("--read", help="Run nothing: print what --output wrote into this folder."),
]


def check_folder(option: str, path: Path | None) -> None:
    """Refuse a folder that could not be written at the end.

    Raises:
        UserError: its parent folder does not exist, or there is a file of that name.
    """
    if path is not None and (not path.parent.is_dir() or (path.exists() and not path.is_dir())):
        raise UserError(f"{option} {path}: name a folder, new or not, in one that exists")


def write_results(folder: Path, results: Mapping[str, pl.DataFrame]) -> None:
    """Write each table as NAME.parquet."""
    folder.mkdir(exist_ok=True)
    for name, table in results.items():
        write_atomically(folder / f"{name}.parquet", encode_parquet(table.to_arrow()))


def read_results(folder: Path, columns: Mapping[str, Sequence[str]]) -> dict[str, pl.DataFrame]:
    """Read what `write_results` wrote.

    Args:
        columns: by name of the table, some columns that it must have.

    Raises:
        UserError: a table cannot be read, is empty or lacks one of the columns.
    """
    found = {}
    for name, needed in columns.items():
        path = folder / f"{name}.parquet"
        try:
            table = pl.read_parquet(path, glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            fault = str(error).splitlines()[0]
        else:
            missing = [column for column in needed if column not in table.columns]
            fault = "no rows" if table.is_empty() else ""
            if missing:
                fault = f"no column {missing[0]!r}"
        if fault:
            raise UserError(
                f"--read {folder}: {path.name}: {fault}; name a folder that --output of this "
                "command wrote"
            )
        found[name] = table
    return found
