"""What two policies answered to the same held-out questions."""

from __future__ import annotations

import polars as pl

from common.errors import UserError
from common.reporting.accuracy import GREEDY, JUDGED
from common.reporting.rewards import of_task
from common.reporting.tables import nothing_in_common
from common.runs.columns import polars_frame
from common.runs.layout import Run
from common.runs.shards import read_output

CHANGES = {
    (False, True): "gained",
    (True, False): "lost",
    (True, True): "kept",
    (False, False): "missed",
}
"""What became of a question, by whether it was right before and is after."""


def answers_table(run: Run, first: int, last: int, sample: int = GREEDY) -> pl.DataFrame:
    """One row per question: `task`, `question`, `gold`, `change`, the texts `before` and `after`.

    Without questions whose rule failed (`infra_error`) on either answer.

    Args:
        first: a policy that is evaluated, the one before.
        last: the one after.
        sample: which of the sampled completions; the greedy one by default.

    Raises:
        UserError: a policy has not so many samples, or they have no question in common.
    """
    before, after = (_answers(run, policy, sample) for policy in (first, last))
    both = before.join(after, on="prompt_id", suffix="_after", how="inner", maintain_order="left")
    if both.is_empty():
        raise nothing_in_common(run, first, last)
    changes = [CHANGES[was, now] for was, now in both.select("right", "right_after").iter_rows()]
    return both.select(
        "task",
        "question",
        pl.col("answer").alias("gold"),
        pl.Series("change", changes),
        pl.col("completion_text").alias("before"),
        pl.col("completion_text_after").alias("after"),
    )


def selected(table: pl.DataFrame, task: str, change: str) -> pl.DataFrame:
    """The rows of a task and of a change; of all where they are empty.

    Raises:
        UserError: there is no such task or change.
    """
    if change and change not in CHANGES.values():
        raise UserError(f"--change {change!r}: one of {', '.join(CHANGES.values())}")
    chosen = table.filter(of_task(table, task))
    return chosen.filter(pl.col("change") == change) if change else chosen


def _answers(run: Run, policy: int, sample: int) -> pl.DataFrame:
    frame = polars_frame(read_output(run.evaluation(policy)))
    count = frame["sample_index"].n_unique() - 1  # besides the greedy one
    if sample >= count:
        raise UserError(
            f"--sample {sample}: policy {policy} was evaluated with {count} sampled completions a "
            "question (evaluate.samples), numbered from 0"
        )
    chosen = frame.filter(pl.col("sample_index") == sample, JUDGED)
    right = (pl.col("verdict") == "correct").alias("right")
    return chosen.select("prompt_id", "task", "question", "answer", "completion_text", right)
