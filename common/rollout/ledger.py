"""The prompt ledger: how often each prompt was solved in earlier iterations.

It is built from the rollouts and scores on disk. Groups that dynamic sampling rejected count: they
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
    """Return one row per prompt of a scored iteration, in the order drawn: `ATTEMPTS`.

    `groups` counts the prompt's groups, `samples` its completions that could be judged, `correct`
    those of them that are right. `pass_rate` is null if no completion could be judged.
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
    """Pass rates of the prompts before a rollout, and the scores that they come from."""

    pass_rates: dict[str, float]
    """Pass rate by prompt id, over all completions of the last iteration that drew the prompt."""
    scores: list[str]
    """Names of the score outputs that were read; the rollout depends on them."""


def last_pass_rates(run: Run, prompt_ids: Collection[str], iteration: int) -> LastPassRates:
    """Return each prompt's pass rate in the last iteration that drew it, before `iteration`.

    Iterations are read from the newest backwards, until all prompts are known or every prompt that
    may be drawn has had a turn. A prompt still unknown then is never drawn (`rollout.on_long` drops
    it), so a long run costs no more reading than a short one. A prompt whose completions could not
    be judged in any of these turns counts as new.

    Args:
        run: the run.
        prompt_ids: those of all training prompts.
        iteration: the iteration that is about to be sampled.

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
    """Yield earlier iterations, newest first, until every prompt has had a turn since.

    A prompt that is always solved is skipped in all but one of `ledger_recheck_epochs` epochs. Any
    stretch of one epoch more than that holds a turn of every prompt (`select_by_ledger`).
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
