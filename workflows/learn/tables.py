"""What runs have learned, as polars tables: one row a run and task, or a run and iteration."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from common.reporting import openings
from common.reporting.frames import Table
from common.reporting.tables import (
    evaluation_facts,
    first_and_last,
    greedy_difference,
    run_table,
)
from common.runs.layout import Run

CURVES = ("entropy", "kl", "zero_variance_groups", "grad_norm")
"""Columns of `run_table` that are kept."""


def all_tables(runs: list[Run]) -> list[Table]:
    """What the command prints."""
    policies = sorted({first_and_last(run) for run in runs})
    which = ", ".join(f"policies {first} and {last}" for first, last in policies)
    sampled = openings.SAMPLED
    gains = f"accuracy {sampled}: choosing other openings, and accuracy within them"
    return [
        Table("greedy", f"held-out questions, greedy: {which}", _by_run(runs, _greedy)),
        Table("sampled", f"the same, {sampled}", _by_run(runs, _sampled)),
        Table("gain", gains, _by_run(runs, _gain)),
    ]


def evaluations(runs: list[Run]) -> pl.DataFrame:
    """Every evaluated policy of every run, task by task."""
    return _by_run(runs, evaluation_facts)


def curves(runs: list[Run]) -> pl.DataFrame:
    """One row a run and iteration: what was drawn and what training said of it.

    `correct` and `tokens` are means over all completions drawn, also of groups that dynamic
    sampling left out of the batch; then each opening's share and accuracy. A ledger passes over
    prompts that are solved, so with one `correct` is lower than it would be.
    """
    drawn = {run.name: openings.rollouts(run) for run in runs}
    common = openings.most_common(pl.concat(drawn.values()))

    def table(run: Run) -> pl.DataFrame:
        answers = drawn[run.name].group_by("iteration", maintain_order=True)
        means = answers.agg(pl.col("correct", "tokens").mean())
        ways = openings.by_iteration(drawn[run.name], common)
        for other in (run_table(run).select("iteration", *CURVES), ways):
            means = means.join(other, on="iteration", how="inner", maintain_order="left")
        return means

    return _by_run(runs, table)


def _by_run(runs: list[Run], table: Callable[[Run], pl.DataFrame]) -> pl.DataFrame:
    named = [table(run).select(pl.lit(run.name).alias("run"), pl.all()) for run in runs]
    return pl.concat(named, how="diagonal_relaxed")


def _greedy(run: Run) -> pl.DataFrame:
    """Accuracy after with its interval, and the difference, question by question, with its own."""
    first, last = first_and_last(run)
    after = evaluation_facts(run).filter(pl.col("policy") == last)
    of_after = after.select(
        "task", pl.col("greedy_low").alias("after_low"), pl.col("greedy_high").alias("after_high")
    )
    difference = greedy_difference(run, first, last)
    return difference.join(of_after, on="task", how="left", maintain_order="left").select(
        *("task", "questions", "before", "after", "after_low", "after_high"),
        *("difference", pl.col("low", "high").name.prefix("difference_")),
    )


def _sampled(run: Run) -> pl.DataFrame:
    """Accuracy, accuracy among well-formed answers, pass@k of the most samples, and length."""
    before, after = (
        facts.drop("tokens").join(answers.drop("accuracy"), on="task", maintain_order="left")
        for facts, answers in zip(
            _before_and_after(run, evaluation_facts(run)),
            _before_and_after(run, openings.answered_table(run)),
            strict=True,
        )
    )
    best = [name for name in before.columns if name.startswith("pass@")]
    shown = [*dict.fromkeys([*best[:1], "accuracy_of_well_formed", *best[-1:]]), "tokens"]
    both = before.join(after, on="task", suffix=" after", maintain_order="left")
    return both.select("task", *(name for s in shown for name in (s, f"{s} after")))


def _gain(run: Run) -> pl.DataFrame:
    return openings.gain_table(run, *first_and_last(run))


def _before_and_after(run: Run, table: pl.DataFrame) -> list[pl.DataFrame]:
    ends = first_and_last(run)
    return [table.filter(pl.col("policy") == number).drop("policy") for number in ends]
