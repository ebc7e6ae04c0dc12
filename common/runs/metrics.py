"""`metrics.jsonl`: every optimizer step of a run as a line, for plotting with any tool.

It is rebuilt from the files of the iterations, which are the truth. A skipped step may have NaN or
infinite values; JSON has neither, so both are written as null.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa

from common.runs.layout import Run
from common.runs.manifest import has_manifest, write_atomically
from common.runs.schemas import TRAIN
from common.runs.shards import read_output

StepRow = dict[str, Any]
"""One optimizer step as a row of `schemas.TRAIN`, with `computed`: was any token in the loss?"""


def training_steps(run: Run) -> pa.Table:
    """Return the metrics of all optimizer steps of all complete iterations (schema `TRAIN`)."""
    outputs = [run.train(number) for number in range(1, run.last_policy() + 1)]
    tables = [read_output(output) for output in outputs if has_manifest(output)]
    return pa.concat_tables(tables).select(TRAIN.names) if tables else TRAIN.empty_table()


def rebuild_metrics(run: Run) -> None:
    """Write `metrics.jsonl` anew."""
    lines = [
        json.dumps(finite_row(row), allow_nan=False) for row in training_steps(run).to_pylist()
    ]
    write_atomically(run.metrics, "".join(f"{line}\n" for line in lines).encode())


def finite_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` with None for numbers that are not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
