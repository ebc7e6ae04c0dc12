"""A run whose prompts are often always or never solved, for dynamic sampling and the ledger.

The assistant's turn begins with 7. The random policy writes five tokens and seldom a digit among
them, so its last number is mostly this 7. Prompts whose gold is 7 are mostly always solved, the
others never.
"""

from __future__ import annotations

import polars as pl

from common.runs.layout import Run
from common.runs.shards import read_output

RECIPE = """\
[model]
path = "{policy}"

[prompt]
assistant_prefix = "7 "

[data.sayings]
kind = "dataset"
path = "{data}"
eval = 1
verify_type = "LAST_NUMBER"

[rollout]
prompts_per_iteration = 5
group_size = 4
groups_per_shard = 2
max_completion_tokens = 5
max_concurrent = 8
dynamic_sampling = true

[train]
learning_rate = 1e-3
"""


def sayings(golds: list[int]) -> list[dict[str, str]]:
    """Return questions with these gold answers; one of them goes to the evaluation."""
    return [{"question": f"Say {n}", "answer": str(gold)} for n, gold in enumerate(golds)]


def shard_bytes(run: Run, iteration: int = 1) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.rollout(iteration).path.glob("*.parquet")}


def groups_of(run: Run, iteration: int = 1) -> pl.DataFrame:
    """Return one row per group: whether it is kept, whether its rewards differ, and its figures."""
    parts = [
        pl.DataFrame(read_output(output).to_pylist(), infer_schema_length=None)
        for output in (run.rollout(iteration), run.score(iteration))
    ]
    both = parts[0].join(parts[1], on="rollout_id", maintain_order="left")
    groups = both.group_by("group_id", maintain_order=True).agg(
        pl.col("prompt_id").first(),
        pl.col("kept").first(),
        (pl.col("kept").n_unique() == 1).alias("whole"),
        (pl.col("reward").n_unique() > 1).alias("varied"),
        (pl.col("advantage") != 0).any().alias("has_advantage"),
        (pl.col("verdict") == "correct").mean().alias("rate"),
        pl.col("completion_ids").list.len().sum().alias("tokens"),
    )
    assert groups["whole"].all(), "a group is kept or not"
    return groups
