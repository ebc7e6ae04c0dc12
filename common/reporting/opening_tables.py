"""How completions begin: how often each opening comes, how often it is right, and what it gains.

The first word often tells apart a model's ways of answering ("Guess." and "Carefully:", or "Sure"
and "Let"). Reinforcement can make one of them more frequent, or make the policy better at it.

Accuracy is the sum over openings of share times accuracy. Its change is the change of shares at the
mean accuracy (`choice`) plus the change of accuracies at the mean share (`within`): Kitagawa,
"Components of a difference between two rates", 1955. An opening that only one of two policies takes
has its accuracy there for both, so that it counts as choice.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.accuracy import GREEDY, JUDGED, paired_difference
from common.errors import UserError
from common.reporting.evaluation_tables import nothing_in_common
from common.reporting.terminal import Table, require_task
from common.runs.columns import polars_frame
from common.runs.layout import Run
from common.runs.manifest import has_manifest
from common.runs.shards import read_output

SAMPLED = "sampled (greedy if a policy has no samples)"
RIGHT = " right"
"""Ending of the names of columns that hold an opening's accuracy."""

SELDOM = 0.02
"""Share of completions below which an opening is too rare for a row of its own."""

MOST_OPENINGS = 4
"""How many openings have columns of their own; rarer ones are taken together."""

OTHERS = "(all others)"
"""Name of all rarer openings; like `NONE` it has a space, and so is not a word."""
NONE = "(no word)"

_COLUMNS = ("opening", "share", "share_after", "right", "right_after", "choice", "within")

Matrix = NDArray[np.float64]

_FIRST_WORD = r"^\s*(?:<[^<>\s]*>\s*)*([^\s<>]{1,24})"


def rollouts(run: Run) -> pl.DataFrame:
    """Return every judged completion of every iteration: `iteration task opening correct …`.

    Raises:
        UserError: no iteration is scored.
    """
    scored = [n for n in run.iterations() if has_manifest(run.score(n))]
    if not scored:
        raise UserError(f"{run.root}: no iteration is scored yet; make iteration N=1")
    return pl.concat(_rollout(run, number) for number in scored)


def most_common(completions: pl.DataFrame) -> list[str]:
    """Return the openings that have columns of their own, and `OTHERS` if there are any."""
    counts = completions["opening"].value_counts()
    ranked = counts.sort(["count", "opening"], descending=[True, False])["opening"].to_list()
    rest = [OTHERS] if len(ranked) > MOST_OPENINGS else []
    return ranked[:MOST_OPENINGS] + rest


def by_iteration(completions: pl.DataFrame, common: list[str]) -> pl.DataFrame:
    """Return one row per iteration: each opening's share, and how often it is right (`… right`).

    Args:
        completions: as `rollouts` gives them.
        common: the openings, as `most_common` gives them for these completions or for more.
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
    """Return an opening as the name of a column, in quotes: no other column has such a name."""
    return f"'{opening}'"


def evaluated(run: Run, policy: int, *, sampled: bool) -> pl.DataFrame:
    """Return an evaluation's completions, sampled or greedy: `task prompt_id opening correct …`."""
    columns = ["task", "prompt_id", "sample_index", "completion_text", "completion_ids", "verdict"]
    frame = polars_frame(read_output(run.evaluation(policy), columns))
    return _judged(frame.filter((pl.col("sample_index") != GREEDY) == sampled))


def were_sampled(run: Run) -> bool:
    """Return whether all evaluated policies have sampled completions; else greedy ones count."""
    indices = (
        polars_frame(read_output(run.evaluation(policy), ["sample_index"]))["sample_index"]
        for policy in run.evaluations()
    )
    return all((index != GREEDY).any() for index in indices)


def answered_table(run: Run) -> pl.DataFrame:
    """Return one row per evaluated policy and task: accuracy, overall and of well-formed answers.

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
    """Return the first word of texts, after tags such as <think>; of a long word the beginning."""
    return pl.col(column).str.extract(_FIRST_WORD).fill_null(NONE)


def _judged(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the completions that were judged: `opening correct answered tokens` and their keys."""
    verdict = pl.col("verdict")
    return frame.filter(JUDGED).select(
        pl.selectors.by_name("task", "prompt_id", require_all=False),
        first_word("completion_text").alias("opening"),
        (verdict == "correct").alias("correct"),
        verdict.is_in(["correct", "wrong"]).alias("answered"),
        pl.col("completion_ids").list.len().alias("tokens"),
    )


# How much of a gain is choosing other ways to answer, and how much is accuracy within them


def opening_tables(run: Run, task: str = "") -> list[Table]:
    """Return what `stages.show openings` prints, of one task if it is named.

    Raises:
        UserError: no iteration is scored, there is no such task, or the first and the last policy
            have no judged question in common.
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


def gain_table(run: Run, first: int, last: int) -> pl.DataFrame:
    """Return one row per task: sampled accuracy of two policies, and the parts of its change.

    Only questions that both policies answered count; tasks without any have no row. `difference`,
    `choice` and `within` have 95 % bootstrap intervals over the questions.

    Raises:
        UserError: there is no question that both answered.
    """
    rows = []
    for task, before, after in _answers(run, first, last):
        difference = paired_difference({task: _by_question(before, after)})
        bounds = {f"difference_{end}": difference.pop(end) for end in ("low", "high")}
        row = {"task": task, **difference, **bounds}
        ways = ways_of(before, after)
        for part, (low, high) in bootstrap_intervals(before, after).items():
            row |= {part: ways[part].sum(), f"{part}_low": low, f"{part}_high": high}
        rows.append(row)
    return pl.DataFrame(rows)


def ways_table(run: Run, first: int, last: int) -> pl.DataFrame:
    """Return one row per task and opening, as `ways_of` does; openings that are rare go together.

    Raises:
        UserError: there is no question that both answered.
    """
    return pl.concat(
        seldom_together(ways_of(before, after)).select(pl.lit(task).alias("task"), pl.all())
        for task, before, after in _answers(run, first, last)
    )


def ways_of(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Return one row per opening: its share and accuracy, before and after, and part in the gain.

    `choice` and `within` add up, over all openings, to the change of accuracy. The accuracy of an
    opening that is not taken is null.

    Args:
        before: `opening`, `correct` and `weight` of each completion, at least one.
        after: the same.
    """
    both = _shares(before).join(
        _shares(after), on="opening", how="full", coalesce=True, suffix="_after"
    )
    right = pl.coalesce("right", "right_after")
    right_after = pl.coalesce("right_after", "right")
    share, share_after = pl.col("share"), pl.col("share_after")
    return (
        both.with_columns(pl.col("share", "share_after").fill_null(0.0))
        .with_columns(
            ((share_after - share) * (right + right_after) / 2).alias("choice"),
            ((right_after - right) * (share + share_after) / 2).alias("within"),
        )
        .select(_COLUMNS)
        .sort("opening")  # sums of floats depend on the order
    )


def seldom_together(ways: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of `ways_of`, the most frequent first; rare openings have one row together.

    An opening is rare if its share is below `SELDOM` before and after.
    """
    most = pl.max_horizontal("share", "share_after")
    name = pl.when(most >= SELDOM).then("opening").otherwise(pl.lit(OTHERS)).alias("opening")
    accuracies = (
        (pl.col(f"right{when}") * pl.col(f"share{when}")).sum() / pl.col(f"share{when}").sum()
        for when in ("", "_after")
    )
    parts = pl.col("share", "share_after", "choice", "within").sum()
    together = ways.group_by(name).agg(parts, *accuracies)
    with_null = together.with_columns(pl.col("right", "right_after").fill_nan(None))
    return with_null.select(_COLUMNS).sort(most, "opening", descending=[True, False])


def bootstrap_intervals(
    before: pl.DataFrame, after: pl.DataFrame, *, resamples: int = 2_000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return 95 % percentile bootstrap intervals of `choice` and `within`; questions are resampled.

    Args:
        before: `prompt_id`, `opening`, `correct` and `weight` of each completion.
        after: the same, for the same questions.
        resamples: how many.
        seed: of the resampling.
    """
    both = pl.concat([before, after])
    questions, openings = both["prompt_id"].unique().sort(), both["opening"].unique().sort()
    count = len(questions)
    generator = np.random.default_rng(seed)
    times = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    taken, solved, taken_after, solved_after = (
        times @ weights
        for frame in (before, after)
        for weights in _weights(frame, questions, openings)
    )
    share, share_after = (n / n.sum(axis=1, keepdims=True) for n in (taken, taken_after))
    with np.errstate(invalid="ignore"):
        right, right_after = solved / taken, solved_after / taken_after
    right, right_after = (
        np.where(taken > 0, right, right_after),
        np.where(taken_after > 0, right_after, right),
    )
    # An opening that a resample lacks on both sides is 0 / 0 there, and has no part in it.
    choice = np.nansum((share_after - share) * (right + right_after), axis=1) / 2
    within = np.nansum((right_after - right) * (share + share_after), axis=1) / 2
    return {
        name: tuple(np.quantile(values, [0.025, 0.975]).tolist())
        for name, values in (("choice", choice), ("within", within))
    }


def _answers(run: Run, first: int, last: int) -> list[tuple[str, pl.DataFrame, pl.DataFrame]]:
    """Return each task with both policies' completions of the questions that both answered.

    The `weight` of a completion is 1 divided by how many its question has from that policy, so that
    questions weigh the same.
    """
    sampled = were_sampled(run)
    before, after = (evaluated(run, policy, sampled=sampled) for policy in (first, last))
    before, after = (
        own.join(other, on="prompt_id", how="semi", maintain_order="left").with_columns(
            (1 / pl.len().over("prompt_id")).alias("weight")
        )
        for own, other in ((before, after), (after, before))
    )
    if before.is_empty():
        raise nothing_in_common(run, first, last)
    return [
        (task, before.filter(pl.col("task") == task), after.filter(pl.col("task") == task))
        for task in before["task"].unique(maintain_order=True)
    ]


def _shares(frame: pl.DataFrame) -> pl.DataFrame:
    weight, correct = pl.col("weight"), pl.col("correct")
    return frame.group_by("opening").agg(
        (weight.sum() / frame["weight"].sum()).alias("share"),
        ((weight * correct).sum() / weight.sum()).alias("right"),
    )


def _by_question(before: pl.DataFrame, after: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Return the accuracy of each question, before and after."""
    means = [frame.group_by("prompt_id").agg(pl.col("correct").mean()) for frame in (before, after)]
    both = means[0].join(means[1], on="prompt_id", suffix="_after").sort("prompt_id")
    return both["correct"], both["correct_after"]


def _weights(
    frame: pl.DataFrame, questions: pl.Series, openings: pl.Series
) -> tuple[Matrix, Matrix]:
    """Return the weights of all completions and of the right ones, each [questions, openings]."""
    taken = np.zeros((len(questions), len(openings)))
    solved = np.zeros_like(taken)
    cell = (
        questions.search_sorted(frame["prompt_id"]).to_numpy(),
        openings.search_sorted(frame["opening"]).to_numpy(),
    )
    np.add.at(taken, cell, frame["weight"].to_numpy())
    np.add.at(solved, cell, (frame["weight"] * frame["correct"]).to_numpy())
    return taken, solved
