"""Openings of a run in tables: iteration by iteration, and of what is held out."""

from __future__ import annotations

import polars as pl

from common.reporting.frames import Table, require_task
from common.reporting.gain import gain_table, ways_table
from common.reporting.openings import (
    SAMPLED,
    answered_table,
    by_iteration,
    most_common,
    rollouts,
)
from common.runs.layout import Run


def opening_tables(run: Run, task: str = "") -> list[Table]:
    """What `stages.show openings` prints, of one task if it is named.

    Raises:
        UserError: no iteration is scored, there is no such task, or the first and the last policy
            judged no question both.
    """
    drawn, numbers = rollouts(run), run.evaluations()
    answered = answered_table(run) if numbers else pl.DataFrame(schema={"task": pl.String})
    require_task(pl.concat([drawn["task"], answered["task"]]), task)
    only = pl.col("task") == task if task else pl.lit(True)
    drawn = drawn.filter(only)
    share = "share of completions by first word, and how often they are right"
    found = [
        Table("iterations", share, by_iteration(drawn, most_common(drawn))),
        Table("well_formed", f"held-out questions, {SAMPLED}", answered.filter(only)),
    ]
    if len(numbers) > 1:
        first, last = numbers[0], numbers[-1]
        title = f"accuracy {SAMPLED}, policy {last} minus {first}: choosing openings, and within"
        found += [
            Table("gain", title, gain_table(run, first, last).filter(only)),
            Table("ways", "opening by opening", ways_table(run, first, last).filter(only)),
        ]
    return found
