"""What earlier iterations tell of the prompts: how often each was solved.

Built from the rollouts and scores on disk, groups that dynamic sampling rejected included: they
are evidence like any other. A pass rate is the share of completions whose verdict is `correct`
among those that could be judged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import polars as pl

from common.errors import UserError
from common.runs.columns import join, polars_frame
from common.runs.freshness import status_of
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.schemas import KEY
from common.runs.shards import read_output

ATTEMPTS = pl.Schema(
    {
        "prompt_id": pl.String,
        "iteration": pl.Int64,
        "groups": pl.Int64,
        "samples": pl.Int64,
        "correct": pl.Int64,
        "pass_rate": pl.Float64,
    }
)


def attempts(run: Run, iteration: int) -> pl.DataFrame:
    """One row per prompt of a scored iteration, in the order drawn: `ATTEMPTS`.

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
    judged = (pl.col("verdict") != "infra_error").sum()
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
        .cast(ATTEMPTS)
    )


@dataclass(frozen=True)
class LastPassRates:
    """What a rollout may know of the prompts."""

    pass_rates: dict[str, float]
    """By id of the prompt, of all its completions in the last iteration that drew it."""
    scores: list[str]
    """Names of the outputs that were read for it, which the rollout depends on."""


def last_pass_rates(run: Run, prompt_ids: Collection[str], iteration: int) -> LastPassRates:
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
        rows = attempts(run, earlier).filter(pl.col("pass_rate").is_not_null())
        for prompt_id, rate in rows.select("prompt_id", "pass_rate").iter_rows():
            if prompt_id in unknown:
                found[prompt_id] = rate
                unknown.remove(prompt_id)
    return LastPassRates(found, scores[::-1])


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
