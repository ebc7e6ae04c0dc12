"""Evaluations as polars tables: accuracy by policy, and two policies on the same questions."""

from __future__ import annotations

import polars as pl

from common.accuracy import GREEDY, JUDGED, paired_difference
from common.errors import UserError
from common.reporting.terminal import of_task
from common.runs.columns import polars_frame
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.shards import read_output

CHANGES = {
    (False, True): "gained",
    (True, False): "lost",
    (True, True): "kept",
    (False, False): "missed",
}
"""What became of a question, by whether it was right before and is right after."""


def evaluation_facts(run: Run) -> pl.DataFrame:
    """Return one row per policy and task: the figures that `evaluate` put into its manifest.

    Raises:
        UserError: no policy is evaluated.
    """
    rows = [
        {"policy": number, "task": task} | figures
        for number in run.evaluations()
        for task, figures in read_manifest(run.evaluation(number)).facts["tasks"].items()
    ]
    if not rows:
        raise UserError(f"{run.root}: no policy is evaluated yet; make evaluate N=0")
    return pl.DataFrame(rows, infer_schema_length=None)


def first_and_last(run: Run) -> tuple[int, int]:
    """Return the policies that were evaluated first and last.

    Raises:
        UserError: fewer than two were evaluated.
    """
    numbers = run.evaluations()
    if len(numbers) < 2:
        missing = next((n for n in (0, run.last_policy()) if n not in numbers), None)
        target = "iteration N=10" if missing is None else f"evaluate N={missing}"
        raise UserError(
            f"{run.root}: {len(numbers)} of its policies are evaluated, and a comparison needs "
            f"two; next: make {target} RUN={run.name}"
        )
    return numbers[0], numbers[-1]


def nothing_in_common(run: Run, first: int, last: int) -> UserError:
    """Return the error about two evaluations that have no judged question in common."""
    return UserError(
        f"{run.root}: policies {first} and {last} have no judged question in common; make them "
        f"anew with: make evaluate N={first} RUN={run.name}, and N={last}"
    )


def greedy_correct(run: Run, policy: int) -> pl.DataFrame:
    """Return `prompt_id`, `task` and whether a policy's greedy completion is `correct`.

    Completions whose rule failed (`infra_error`) are left out.
    """
    frame = polars_frame(
        read_output(run.evaluation(policy), ["prompt_id", "task", "sample_index", "verdict"])
    )
    return frame.filter(JUDGED, pl.col("sample_index") == GREEDY).select(
        "prompt_id", "task", (pl.col("verdict") == "correct").alias("correct")
    )


def greedy_difference(run: Run, first: int, last: int) -> pl.DataFrame:
    """Return the paired difference of greedy accuracy, with intervals.

    There is one row per task, and one for the mean over tasks.

    Raises:
        UserError: there is no question that both policies answered.
    """
    before = greedy_correct(run, first)
    after = greedy_correct(run, last)
    both = before.join(after, on=["prompt_id", "task"], suffix="_after", how="inner")
    if both.is_empty():
        raise nothing_in_common(run, first, last)
    by_task = {
        task: (group["correct"].to_numpy(), group["correct_after"].to_numpy())
        for (task,), group in both.group_by(["task"], maintain_order=True)
    }
    rows = [
        {"task": name, **paired_difference({name: pair})} for name, pair in sorted(by_task.items())
    ]
    rows.append({"task": "mean over tasks", **paired_difference(by_task)})
    return pl.DataFrame(rows)


def answers_table(run: Run, first: int, last: int, sample: int = GREEDY) -> pl.DataFrame:
    """Return one row per question: `task question gold change`, and the texts `before` and `after`.

    Questions are left out if their rule failed (`infra_error`) on either answer.

    Args:
        run: where the evaluations are.
        first: the policy before; it must be evaluated.
        last: the policy after.
        sample: which of the sampled completions; the greedy one by default.

    Raises:
        UserError: a policy has too few samples, or they have no question in common.
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
    """Return the rows of a task and of a change; an empty name stands for all.

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
