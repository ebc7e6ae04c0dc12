"""The prompt ledger: how often each prompt was solved, iteration by iteration.

Built from the rollouts and scores on disk, groups that dynamic sampling rejected included: they
are evidence like any other. A pass rate is the share of completions whose verdict is `correct`
among those that could be judged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import polars as pl

from common.errors import UserError
from common.reporting.accuracy import JUDGED
from common.reporting.frames import Table, first_rows, polars_frame, require_task
from common.runs.freshness import status_of
from common.runs.join import join
from common.runs.layout import Run
from common.runs.manifest import has_manifest, read_manifest
from common.runs.prompts import read_split
from common.runs.schemas import KEY
from common.runs.shards import read_output

NEVER, IN_PART, ALWAYS, NOT_DRAWN = "never", "in_part", "always", "not_drawn"
STATES = (NEVER, IN_PART, ALWAYS, NOT_DRAWN)
"""Of a prompt: `never` solved; `always`: by every completion of its last drawing; `in_part`:
anything between; `not_drawn` yet, or never judged."""

DRAWINGS = pl.Schema(
    {
        "prompt_id": pl.String,
        "iteration": pl.Int64,
        "groups": pl.Int64,
        "samples": pl.Int64,
        "correct": pl.Int64,
        "pass_rate": pl.Float64,
    }
)


def drawings(run: Run, iteration: int) -> pl.DataFrame:
    """One row a prompt of a scored iteration, in the order drawn: `DRAWINGS`.

    `groups` drawn of it, `samples` that could be judged, and how many of them are `correct`;
    `pass_rate` is null where there are none.
    """
    rollout, score = run.rollout(iteration), run.score(iteration)
    rows = join(
        read_output(rollout, [KEY, "prompt_id", "group_id"]),
        read_output(score, [KEY, "verdict"]),
        key=KEY,
        names=(rollout.name, score.name),
    )
    judged = JUDGED.sum()
    correct = (pl.col("verdict") == "correct").sum()
    return (
        polars_frame(rows)
        .group_by("prompt_id", maintain_order=True)
        .agg(
            pl.lit(iteration).alias("iteration"),
            pl.col("group_id").n_unique().alias("groups"),
            judged.alias("samples"),
            correct.alias("correct"),
            pl.when(judged > 0).then(correct / judged).alias("pass_rate"),
        )
        .cast(DRAWINGS)
    )


@dataclass(frozen=True)
class LastDrawings:
    """What a rollout may know of the prompts."""

    pass_rates: dict[str, float]
    """By id of the prompt, of all its completions in the last iteration that drew it."""
    scores: list[str]
    """Names of the outputs that were read for it, which the rollout depends on."""


def last_drawings(run: Run, prompt_ids: Collection[str], iteration: int) -> LastDrawings:
    """Pass rates at the last drawing before `iteration`, read back from the newest iteration.

    Stops once all are known, or after so many turns that every prompt which may be drawn has had
    its own: what is still unknown then is never drawn (`rollout.on_long` drops it), and however
    long the run is, no more is read. What could not be judged in all these turns counts as new.

    Args:
        prompt_ids: all training prompts.

    Raises:
        UserError: the score of an iteration that is needed is missing or stale.
    """
    unknown = set(prompt_ids)
    found: dict[str, float] = {}
    scores: list[str] = []
    for earlier in _within_reach(run, len(unknown), iteration):
        if not unknown:
            break
        score = run.score(earlier)
        status = status_of(run, score)
        if status.state != "fresh":
            raise UserError(
                f"{score.path} is {status.state} ({status.reason}), and rollout.sampling = "
                f'"ledger" reads it; make it first: {score.command}'
            )
        scores.append(score.name)
        rows = drawings(run, earlier).filter(pl.col("pass_rate").is_not_null())
        for prompt_id, rate in rows.select("prompt_id", "pass_rate").iter_rows():
            if prompt_id in unknown:
                found[prompt_id] = rate
                unknown.remove(prompt_id)
    return LastDrawings(found, scores[::-1])


def _within_reach(run: Run, prompts: int, iteration: int) -> Iterator[int]:
    """Earlier iterations, the newest first, until every prompt has had a turn since.

    Always solved prompts rest in all but one of `ledger_recheck_epochs` epochs. So many epochs and
    one more hold a whole turn of every prompt, wherever they begin (`draw_by_ledger`).
    """
    turns = recheck_epochs = 0
    for earlier in range(iteration - 1, 0, -1):
        if earlier < iteration - 1:
            later = read_manifest(run.rollout(earlier + 1))
            turns += later.facts["cursor_end"] - later.facts["cursor_start"]
            recheck_epochs = max(recheck_epochs, later.recipe["rollout"]["ledger_recheck_epochs"])
            if turns >= (recheck_epochs + 1) * prompts:
                return
        yield earlier


@dataclass(frozen=True)
class Ledger:
    """All that was drawn in a run, as tables."""

    iterations: list[int]
    """Whose scores were read."""
    drawings: pl.DataFrame
    """One row a prompt and iteration: `DRAWINGS` and `task`."""
    prompts: pl.DataFrame
    """One row a training prompt: `prompt_id task question times_drawn samples correct
    last_pass_rate state`."""

    def tables(self, limit: int | None = None, *, drawings: bool = False) -> list[Table]:
        """What `stages.show ledger` prints: prompts by task and state, and those never solved.

        Args:
            limit: prompts to list; None for all.
            drawings: add the table of every drawing.
        """
        never = Table("never_solved", "prompts never solved", self.never_solved())
        found = [
            Table("tasks", f"prompts; iterations scored: {len(self.iterations)}", self.tasks()),
            first_rows(never, limit),
        ]
        return [*found, Table("drawings", "", self.drawings)] if drawings else found

    def tasks(self) -> pl.DataFrame:
        """One row a task: its prompts, and how many are in each state."""
        counts = [(pl.col("state") == state).sum().alias(state) for state in STATES]
        return self.prompts.group_by("task", maintain_order=True).agg(
            pl.len().alias("prompts"), *counts
        )

    def never_solved(self) -> pl.DataFrame:
        """Prompts that no completion has solved, those drawn most often first."""
        never = self.prompts.filter(pl.col("state") == NEVER)
        columns = ("prompt_id", "task", "question", "times_drawn", "samples")
        return never.select(columns).sort(
            "times_drawn", "samples", descending=True, maintain_order=True
        )


def read_ledger(run: Run, task: str = "") -> Ledger:
    """The ledger of a run over all iterations with a fresh score, of one task if it is named.

    Raises:
        UserError: the run has no prompts, or no such task.
    """
    prompts = polars_frame(read_split(run, "train").select(["prompt_id", "task", "question"]))
    require_task(prompts["task"], task)
    if task:
        prompts = prompts.filter(pl.col("task") == task)
    iterations = _scored(run)
    every = pl.concat([DRAWINGS.to_frame(), *(drawings(run, number) for number in iterations)])
    every = every.join(
        prompts.select("prompt_id", "task"), on="prompt_id", how="inner", maintain_order="left"
    )
    return Ledger(iterations, every, _with_states(prompts, every))


def _with_states(prompts: pl.DataFrame, every: pl.DataFrame) -> pl.DataFrame:
    totals = every.group_by("prompt_id").agg(
        pl.col("groups").sum().alias("times_drawn"),
        pl.col("samples").sum(),
        pl.col("correct").sum(),
        pl.col("pass_rate").drop_nulls().last().alias("last_pass_rate"),
    )
    counts = ("times_drawn", "samples", "correct")
    state = (
        pl.when(pl.col("samples") == 0)
        .then(pl.lit(NOT_DRAWN))
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
    """Iterations whose scores are complete and of the rollout that stands beside them."""
    return [
        number
        for number in run.iterations()
        if has_manifest(run.score(number)) and status_of(run, run.score(number)).state == "fresh"
    ]
