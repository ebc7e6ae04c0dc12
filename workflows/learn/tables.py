"""What runs have learned, as polars tables: one row per run and task, or per run and iteration."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from common.reporting.evaluation_tables import evaluation_facts, first_and_last, greedy_difference
from common.reporting.opening_tables import (
    SAMPLED,
    answered_table,
    by_iteration,
    gain_table,
    most_common,
    rollouts,
    ways_table,
)
from common.reporting.run_tables import run_table
from common.reporting.terminal import Table
from common.runs.layout import Run

CURVES = ("entropy", "kl", "zero_variance_groups", "grad_norm")
"""Columns of `run_table` that are kept."""

COLUMNS = {
    "curves": ["run", "iteration", "correct", "tokens", "entropy"],
    "evaluations": ["run", "policy", "task", "greedy"],
    "greedy": ["run", "task", "difference"],
    "sampled": ["run", "task", "well_formed"],
    "gain": ["run", "task", "choice", "within"],
    "ways": ["run", "task", "opening", "choice", "within"],
}
"""The tables of a folder that `--output` wrote, with columns that tell each from the others."""


def results(runs: list[Run], with_curves: bool) -> dict[str, pl.DataFrame]:
    """Return the tables that the evaluations give, and on demand `curves` over the iterations.

    For the curves, every completion that was drawn has to be read.
    """
    found = {
        "evaluations": _by_run(runs, evaluation_facts),
        "greedy": _by_run(runs, _greedy),
        "sampled": _by_run(runs, _sampled),
        "gain": _by_run(runs, lambda run: gain_table(run, *first_and_last(run))),
        "ways": _by_run(runs, lambda run: ways_table(run, *first_and_last(run))),
    }
    return found | ({"curves": _curves(runs)} if with_curves else {})


def printed(found: dict[str, pl.DataFrame], *, as_json: bool) -> list[Table]:
    """Return what the command prints of `results`; only JSON has `ways`, long with several runs."""
    ends = pl.col("policy").min().alias("first"), pl.col("policy").max().alias("last")
    of_runs = found["evaluations"].group_by("run").agg(ends)
    pairs = of_runs.select("first", "last").unique().sort("first", "last").rows()
    which = ", ".join(f"policies {first} and {last}" for first, last in pairs)
    gain = f"accuracy {SAMPLED}: choosing other openings, and accuracy within them"
    ways = [Table("ways", "opening by opening", found["ways"])] if as_json else []
    return [
        Table("greedy", f"held-out questions, greedy: {which}", found["greedy"]),
        Table("sampled", f"the same, {SAMPLED}", found["sampled"]),
        Table("gain", gain, found["gain"]),
        *ways,
    ]


def _curves(runs: list[Run]) -> pl.DataFrame:
    """Return one row per run and iteration: what was drawn, and what training said of it.

    `correct` and `tokens` are means over all completions drawn, including groups that dynamic
    sampling left out of the batch. The last columns are each opening's share and accuracy. With a
    ledger, `correct` is lower than without, because solved prompts are passed over.
    """
    drawn = {run.name: rollouts(run) for run in runs}
    common = most_common(pl.concat(drawn.values()))

    def table(run: Run) -> pl.DataFrame:
        answers = drawn[run.name].group_by("iteration", maintain_order=True)
        means = answers.agg(pl.col("correct", "tokens").mean())
        ways = by_iteration(drawn[run.name], common)
        for other in (run_table(run).select("iteration", *CURVES), ways):
            means = means.join(other, on="iteration", how="inner", maintain_order="left")
        return means

    return _by_run(runs, table)


def _by_run(runs: list[Run], table: Callable[[Run], pl.DataFrame]) -> pl.DataFrame:
    named = [table(run).select(pl.lit(run.name).alias("run"), pl.all()) for run in runs]
    return pl.concat(named, how="diagonal_relaxed")


def _greedy(run: Run) -> pl.DataFrame:
    """Return greedy accuracy before and after by task, and the difference paired by question.

    Accuracy after and the difference come with their intervals.
    """
    first, last = first_and_last(run)
    after = evaluation_facts(run).filter(pl.col("policy") == last)
    of_after = after.select(
        "task", pl.col("greedy_low").alias("after_low"), pl.col("greedy_high").alias("after_high")
    )
    order = after["task"].to_list()
    difference = greedy_difference(run, first, last).sort(
        pl.col("task").replace_strict(order, range(len(order)), default=len(order))
    )
    return difference.join(of_after, on="task", how="left", maintain_order="left").select(
        *("task", "questions", "before", "after", "after_low", "after_high"),
        *("difference", pl.col("low", "high").name.prefix("difference_")),
    )


def _sampled(run: Run) -> pl.DataFrame:
    """Return figures of sampled answers by task, before and after.

    They are accuracy, how many answers are well-formed and how many of these right, pass@k, length.
    """
    before, after = (
        facts.drop("tokens").join(answers.drop("accuracy"), on="task", maintain_order="left")
        for facts, answers in zip(
            _before_and_after(run, evaluation_facts(run)),
            _before_and_after(run, answered_table(run)),
            strict=True,
        )
    )
    pass_at = [name for name in before.columns if name.startswith("pass@")]
    of_form = ("well_formed", "accuracy_of_well_formed")
    figures = [*dict.fromkeys([*pass_at[:1], *of_form, *pass_at[-1:]]), "tokens"]
    both = before.join(after, on="task", suffix=" after", maintain_order="left")
    return both.select("task", *(name for f in figures for name in (f, f"{f} after")))


def _before_and_after(run: Run, table: pl.DataFrame) -> list[pl.DataFrame]:
    ends = first_and_last(run)
    return [table.filter(pl.col("policy") == number).drop("policy") for number in ends]
