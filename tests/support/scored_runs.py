"""A run with one rollout of 24 completions, ready to be scored."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa

from common.runs.layout import Run, shard_name
from common.runs.schemas import KEY, ROLLOUT
from common.runs.shards import OutputWriter, read_output

RECIPE = """\
[model]
path = "x"
[data.sums]
kind = "dataset"
path = "y"
[rewards.format]
weight = 0.25
"""
ANSWERS = [
    " 7 + 7</think><answer>14</answer>",
    " 7 + 7</think><answer>13</answer>",
    " 7 + 7</think> 14",
    " 7 + 7",
]


def completion(group: int, sample: int, **changes: Any) -> dict[str, Any]:
    """Return a row of a rollout; all of group 1 is right and all of group 2 is wrong."""
    text = ANSWERS[{1: 0, 2: 1}.get(group, (group + sample) % 4)]
    values = {
        KEY: f"0001-{group:05d}-{sample:04d}",
        "prompt_id": f"p{group}",
        "task": "sums" if group % 2 else "others",
        "group_id": group,
        "sample_index": sample,
        "prompt_ids": [1, 2],
        "completion_ids": [3, 4],
        "assistant_prefix": "<think>",
        "completion_text": text,
        "finish_reason": "stop",
        "question": "What is 7 + 7?",
        "answer": "14",
        "verify_type": "ANSWER_TAG",
        "sampler_logprobs": [-1.0, -1.0],
        "policy_version": 0,
        "seed": 1,
        "kept": True,
    }
    return values | changes


def write_rollout(
    run: Run, rows: list[dict[str, Any]], shards: int = 3, inputs: dict[str, str] | None = None
) -> None:
    writer = OutputWriter(
        run.rollout(1),
        inputs=inputs or {},
        recipe={"rollout": {"max_completion_tokens": 20}},
        seed=0,
        names=[shard_name(i) for i in range(shards)],
        schema=ROLLOUT,
    ).open()
    size = len(rows) // shards
    for index, name in enumerate(writer.names):
        end = None if index == shards - 1 else (index + 1) * size
        writer.write(name, pa.Table.from_pylist(rows[index * size : end], schema=ROLLOUT))
    writer.commit()


ROWS = [completion(group, sample) for group in range(6) for sample in range(4)]


def start_scored_run(recipe: str = RECIPE, **changes: Any) -> Run:
    """Make the run `a` with its recipe and its rollout in three shards, each row with `changes`."""
    place = Run.named("a")
    place.root.mkdir()
    place.recipe.write_text(recipe)
    write_rollout(place, [row | changes for row in ROWS])
    return place


def scores(run: Run) -> pl.DataFrame:
    """Return the scores of the run's iteration 1."""
    frame = pl.from_arrow(read_output(run.score(1)))
    assert isinstance(frame, pl.DataFrame)
    return frame
