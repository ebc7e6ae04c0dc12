"""Figures of an evaluation: one table of judged completions in, numbers by task out."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from common.reporting.passk import (
    bootstrap_interval,
    maj_at_k,
    mean_over_tasks,
    pass_at_k,
    powers_up_to,
)

GREEDY = -1
"""`sample_index` of the greedy completion."""

JUDGED = pl.col("verdict") != "infra_error"
"""Of rows with a verdict: whose rule did not fail. The others count neither as right nor wrong."""

Figures = dict[str, float | int | None]


def figures_by_task(judged: pl.DataFrame) -> dict[str, Figures]:
    """Accuracy of each task.

    `greedy` is the greedy completions' pass@1 with its 95 % bootstrap interval, `pass@k` the
    unbiased estimate from the sampled ones, `maj@k` the majority over all k of them. Completions
    whose rule failed (`infra_error`) count neither as right nor as wrong.

    Args:
        judged: columns of `schemas.EVALUATION`.
    """
    valid = judged.filter(JUDGED).with_columns(
        correct=pl.col("verdict") == "correct", tokens=pl.col("completion_ids").list.len()
    )
    return {
        str(task): _figures(rows) for (task,), rows in valid.group_by(["task"], maintain_order=True)
    }


def greedy_mean_over_tasks(judged: pl.DataFrame) -> Figures:
    """Greedy accuracy as the mean over the tasks, with its interval."""
    greedy = judged.filter(JUDGED, pl.col("sample_index") == GREEDY).with_columns(
        correct=pl.col("verdict") == "correct"
    )
    by_task = {
        str(task): rows["correct"].to_numpy()
        for (task,), rows in greedy.group_by(["task"], maintain_order=True)
    }
    low, high = bootstrap_interval(by_task)
    mean = mean_over_tasks(by_task)
    return {"questions": greedy.height, "greedy": mean, "greedy_low": low, "greedy_high": high}


def _figures(rows: pl.DataFrame) -> Figures:
    greedy = pl.col("sample_index") == GREEDY
    return {
        **greedy_mean_over_tasks(rows),
        **_sampled(rows.filter(~greedy)),
        "tokens": _mean(rows["tokens"]),
        "truncated": _mean(rows["finish_reason"] == "length"),
    }


def _sampled(rows: pl.DataFrame) -> Figures:
    """pass@k for k = 1, 2, 4, … and maj@k, over the questions that have all their samples."""
    questions = rows.group_by("prompt_id", maintain_order=True).agg("correct", "extracted_answer")
    correct: list[list[bool]] = questions["correct"].to_list()
    answers: list[list[str | None]] = questions["extracted_answer"].to_list()
    samples = max(map(len, correct), default=0)
    if not samples:
        return {}
    whole = [pair for pair in zip(answers, correct, strict=True) if len(pair[1]) == samples]
    figures: Figures = {
        f"pass@{k}": _mean(pass_at_k(sum(right), samples, k) for _, right in whole)
        for k in powers_up_to(samples)
    }
    return figures | {f"maj@{samples}": _mean(maj_at_k(*pair) for pair in whole)}


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
