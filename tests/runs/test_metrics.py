"""metrics.jsonl: every optimizer step of a run as JSON that any reader takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pyarrow as pa

from common.runs.layout import Run, shard_name
from common.runs.metrics import rebuild_metrics, training_steps
from common.runs.policies import commit_policy
from common.runs.schemas import TRAIN
from common.runs.shards import OutputWriter


def write_steps(run: Run, tiny_policy: Path, losses: list[float]) -> None:
    """Iteration 1 with these losses; those that are not finite were skipped."""
    run.policy(1).partial.mkdir(parents=True)
    for path in tiny_policy.iterdir():
        (run.policy(1).partial / path.name).write_bytes(path.read_bytes())
    commit_policy(run.policy(1), inputs={}, recipe={}, seed=0)
    rows = [
        dict.fromkeys(TRAIN.names, 1)
        | {"step": step, "loss": loss, "grad_norm": loss, "skipped": not math.isfinite(loss)}
        for step, loss in enumerate(losses)
    ]
    writer = OutputWriter(
        run.train(1), inputs={}, recipe={}, seed=0, names=[shard_name(0)], schema=TRAIN
    ).open()
    writer.write(shard_name(0), pa.Table.from_pylist(rows, schema=TRAIN))
    writer.commit()


def test_numbers_of_skipped_steps_are_null(runs: Path, tiny_policy: Path) -> None:
    run = Run.named("a", runs)
    write_steps(run, tiny_policy, [0.5, math.nan, math.inf, -math.inf, -0.25])
    rebuild_metrics(run)
    frame = pl.read_ndjson(run.metrics)
    assert frame.columns == TRAIN.names
    assert frame["loss"].to_list() == [0.5, None, None, None, -0.25]
    assert frame["skipped"].to_list() == [False, True, True, True, False]
    lines = run.metrics.read_text().splitlines()
    steps = training_steps(run).to_pylist()
    assert [json.loads(lines[row]) for row in (0, 4)] == [steps[row] for row in (0, 4)]
