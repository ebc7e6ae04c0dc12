"""How completions begin: shares of the openings, and how often each is right.

Models have ways of answering that the first word often tells apart ("Guess." and "Carefully:", or
"Sure" and "Let"). Reinforcement can make a way more frequent, or make the policy better at it.
"""

from __future__ import annotations

import polars as pl

from common.errors import UserError
from common.reporting.accuracy import GREEDY, JUDGED
from common.runs.columns import polars_frame
from common.runs.layout import Run
from common.runs.manifest import has_manifest
from common.runs.shards import read_output

SAMPLED = "sampled (greedy if a policy has no samples)"
RIGHT = " right"
"""Ends the names of columns with the accuracy of an opening."""

SELDOM = 0.02
"""Share of completions below which an opening is not told by itself: it stands for a few."""

MOST_OPENINGS = 4
"""Openings with columns of their own; the rarer ones are taken together."""

OTHERS = "(all others)"
"""With a space, as `NONE`: neither is a word."""
NONE = "(no word)"

_FIRST_WORD = r"^\s*(?:<[^<>\s]*>\s*)*([^\s<>]{1,24})"


def rollouts(run: Run) -> pl.DataFrame:
    """Every judged completion of every iteration: `iteration`, `task`, `opening`, `correct`, …

    Raises:
        UserError: no iteration is scored.
    """
    scored = [n for n in run.iterations() if has_manifest(run.score(n))]
    if not scored:
        raise UserError(f"{run.root}: no iteration is scored yet; make iteration N=1")
    return pl.concat(_rollout(run, number) for number in scored)


def most_common(completions: pl.DataFrame) -> list[str]:
    """The openings that have columns of their own; behind them `OTHERS`, if there are any."""
    counts = completions["opening"].value_counts()
    ranked = counts.sort(["count", "opening"], descending=[True, False])["opening"].to_list()
    rest = [OTHERS] if len(ranked) > MOST_OPENINGS else []
    return ranked[:MOST_OPENINGS] + rest


def by_iteration(completions: pl.DataFrame, common: list[str]) -> pl.DataFrame:
    """One row per iteration: of each opening its share, and how often it is right (`… right`).

    Args:
        completions: as `rollouts`.
        common: as `most_common`, of these completions or of more.
    """
    known = pl.col("opening").is_in(common)
    named = completions.with_columns(
        pl.when(known).then("opening").otherwise(pl.lit(OTHERS)).alias("opening")
    )
    columns = []
    for opening in common:
        begins_so = pl.col("opening") == opening
        columns += [
            begins_so.mean().alias(quoted(opening)),
            pl.col("correct").filter(begins_so).mean().alias(quoted(opening) + RIGHT),
        ]
    return named.group_by("iteration", maintain_order=True).agg(columns)


def quoted(opening: str) -> str:
    """An opening as the name of a column: no word of a model can be that of another column."""
    return f"'{opening}'"


def evaluated(run: Run, policy: int, *, sampled: bool) -> pl.DataFrame:
    """Completions of an evaluation, sampled or greedy, with `opening`, `correct` and `answered`."""
    columns = ["task", "prompt_id", "sample_index", "completion_text", "completion_ids", "verdict"]
    frame = polars_frame(read_output(run.evaluation(policy), columns))
    return _judged(frame.filter((pl.col("sample_index") != GREEDY) == sampled))


def were_sampled(run: Run) -> bool:
    """Whether all evaluated policies have sampled completions; else greedy ones are compared."""
    indices = (
        polars_frame(read_output(run.evaluation(policy), ["sample_index"]))["sample_index"]
        for policy in run.evaluations()
    )
    return all((index != GREEDY).any() for index in indices)


def answered_table(run: Run) -> pl.DataFrame:
    """One row an evaluated policy and task: accuracy, and accuracy among well-formed answers.

    An answer is well-formed if its rule read one in time, right or wrong.
    """
    sampled = were_sampled(run)
    return pl.concat(
        evaluated(run, policy, sampled=sampled)
        .group_by("task", maintain_order=True)
        .agg(
            pl.col("correct").mean().alias("accuracy"),
            pl.col("answered").mean().alias("well_formed"),
            pl.col("correct").filter(pl.col("answered")).mean().alias("accuracy_of_well_formed"),
            pl.col("tokens").mean(),
        )
        .select(pl.lit(policy).alias("policy"), pl.all())
        for policy in run.evaluations()
    )


def _rollout(run: Run, iteration: int) -> pl.DataFrame:
    columns = ["rollout_id", "task", "completion_text", "completion_ids"]
    rollout = polars_frame(read_output(run.rollout(iteration), columns))
    verdicts = polars_frame(read_output(run.score(iteration), ["rollout_id", "verdict"]))
    joined = rollout.join(verdicts, on="rollout_id", how="inner", maintain_order="left")
    return _judged(joined).with_columns(pl.lit(iteration).alias("iteration"))


def first_word(column: str) -> pl.Expr:
    """The first word of texts, behind tags such as <think>; of a long word the beginning."""
    return pl.col(column).str.extract(_FIRST_WORD).fill_null(NONE)


def _judged(frame: pl.DataFrame) -> pl.DataFrame:
    """Completions that were judged, with `opening`, `correct`, `answered` and `tokens`."""
    verdict = pl.col("verdict")
    return frame.filter(JUDGED).select(
        pl.selectors.by_name("task", "prompt_id", require_all=False),
        first_word("completion_text").alias("opening"),
        (verdict == "correct").alias("correct"),
        verdict.is_in(["correct", "wrong"]).alias("answered"),
        pl.col("completion_ids").list.len().alias("tokens"),
    )
