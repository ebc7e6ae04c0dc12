"""The prompt ledger as tables: how often each prompt was solved, iteration by iteration.

It is built from the rollouts and scores on disk. Groups that dynamic sampling rejected count: they
are evidence like any other. A pass rate is the share of completions whose verdict is `correct`
among those that could be judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from common.reporting.terminal import Table, first_rows, require_task
from common.rollout.ledger import ATTEMPTS, attempts
from common.runs.columns import polars_frame
from common.runs.freshness import status_of
from common.runs.layout import Run
from common.runs.manifest import has_manifest
from common.runs.shards import read_split

NEVER, IN_PART, ALWAYS, NOT_ATTEMPTED = "never", "in_part", "always", "not_attempted"
STATES = (NEVER, IN_PART, ALWAYS, NOT_ATTEMPTED)
"""States of a prompt. `never`: no completion has solved it; `always`: all completions of its last
drawing did; `in_part`: anything between; `not_attempted`: it was not drawn yet, or never judged."""


@dataclass(frozen=True)
class Ledger:
    """All that was drawn in a run, as tables."""

    iterations: list[int]
    """Iterations whose scores were read."""
    attempts: pl.DataFrame
    """One row per prompt and iteration: the columns of `ATTEMPTS`, and `task`."""
    prompts: pl.DataFrame
    """One row per training prompt: `prompt_id task question times_attempted samples correct
    last_pass_rate state`."""

    def tables(self, limit: int | None = None, *, attempts: bool = False) -> list[Table]:
        """Return what `stages.show ledger` prints: prompts by task and state, those never solved.

        Args:
            limit: prompts to list; None for all.
            attempts: whether to add the table of every drawing.
        """
        never = Table("never_solved", "prompts never solved", self.never_solved())
        found = [
            Table("tasks", f"prompts; iterations scored: {len(self.iterations)}", self.tasks()),
            first_rows(never, limit),
        ]
        return [*found, Table("attempts", "", self.attempts)] if attempts else found

    def tasks(self) -> pl.DataFrame:
        """Return one row per task: its prompts, and how many are in each state."""
        counts = [(pl.col("state") == state).sum().alias(state) for state in STATES]
        return self.prompts.group_by("task", maintain_order=True).agg(
            pl.len().alias("prompts"), *counts
        )

    def never_solved(self) -> pl.DataFrame:
        """Return the prompts that no completion has solved, those drawn most often first."""
        never = self.prompts.filter(pl.col("state") == NEVER)
        columns = ("prompt_id", "task", "question", "times_attempted", "samples")
        return never.select(columns).sort(
            "times_attempted", "samples", descending=True, maintain_order=True
        )


def read_ledger(run: Run, task: str = "") -> Ledger:
    """Read the ledger of a run over all iterations with a fresh score, of one task if it is named.

    Raises:
        UserError: the run has no prompts, or no such task.
    """
    prompts = polars_frame(read_split(run, "train").select(["prompt_id", "task", "question"]))
    require_task(prompts["task"], task)
    if task:
        prompts = prompts.filter(pl.col("task") == task)
    iterations = _scored(run)
    every = pl.concat([ATTEMPTS.to_frame(), *(attempts(run, number) for number in iterations)])
    every = every.join(
        prompts.select("prompt_id", "task"), on="prompt_id", how="inner", maintain_order="left"
    )
    return Ledger(iterations, every, _with_states(prompts, every))


def _with_states(prompts: pl.DataFrame, every: pl.DataFrame) -> pl.DataFrame:
    totals = every.group_by("prompt_id").agg(
        pl.col("groups").sum().alias("times_attempted"),
        pl.col("samples").sum(),
        pl.col("correct").sum(),
        pl.col("pass_rate").drop_nulls().last().alias("last_pass_rate"),
    )
    counts = ("times_attempted", "samples", "correct")
    state = (
        pl.when(pl.col("samples") == 0)
        .then(pl.lit(NOT_ATTEMPTED))
        .when(pl.col("correct") == 0)
        .then(pl.lit(NEVER))
        .when(pl.col("last_pass_rate") == 1)
        .then(pl.lit(ALWAYS))
        .otherwise(pl.lit(IN_PART))
    )
    return (
        prompts.join(totals, on="prompt_id", how="left", maintain_order="left")
        .with_columns(pl.col(counts).fill_null(0))
        .with_columns(state.alias("state"))
        .select("prompt_id", "task", "question", *counts, "last_pass_rate", "state")
    )


def _scored(run: Run) -> list[int]:
    """Return the iterations whose scores are complete and fresh."""
    return [
        number
        for number in run.iterations()
        if has_manifest(run.score(number)) and status_of(run, run.score(number)).state == "fresh"
    ]
