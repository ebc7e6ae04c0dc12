"""How completions begin, and what of a gain is choosing another way to begin.

Models have ways of answering that the first word often tells apart ("Guess." and "Carefully:", or
"Sure" and "Let"). Reinforcement can make a way more frequent, or make the policy better at it.
"""

from __future__ import annotations

import polars as pl

from common.errors import UserError
from common.reporting.accuracy import GREEDY, JUDGED
from common.reporting.frames import Table, polars_frame
from common.reporting.passk import paired_difference
from common.reporting.rewards import of_task
from common.runs.layout import Run
from common.runs.manifest import has_manifest
from common.runs.shards import read_output

SAMPLED = "sampled (greedy if a policy has no samples)"
RIGHT = " right"
"""Ends the names of columns with the accuracy of an opening."""

MOST_OPENINGS = 4
"""Openings with columns of their own; the rarer ones are taken together."""

OTHERS = "(others)"
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
    """One row an iteration: of each opening its share, and how often it is right (`… right`).

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


def gain_table(run: Run, first: int, last: int) -> pl.DataFrame:
    """One row a task: sampled accuracy of two policies, and the two `components` of its change.

    Of the questions that both answered; tasks without any have no row.
    """
    sampled = were_sampled(run)
    before, after = (evaluated(run, policy, sampled=sampled) for policy in (first, last))
    before = before.join(after, on="prompt_id", how="semi", maintain_order="left")
    after = after.join(before, on="prompt_id", how="semi", maintain_order="left")
    rows = []
    for task in before["task"].unique(maintain_order=True):
        old, new = (frame.filter(pl.col("task") == task) for frame in (before, after))
        choice, within = components(old, new)
        difference = paired_difference({task: _by_question(old, new)})
        rows.append({"task": task, **difference, "choice": choice, "within": within})
    return pl.DataFrame(rows)


def components(before: pl.DataFrame, after: pl.DataFrame) -> tuple[float, float]:
    """What of a change of accuracy is choosing other openings, and what accuracy within them.

    Accuracy is the sum over openings of share times accuracy; its change is that of shares at the
    mean accuracy plus that of accuracies at the mean share (Kitagawa, "Components of a difference
    between two rates", 1955). An opening that only one of the two takes has its accuracy there, so
    that it counts as choice.

    Args:
        before: `opening` and `correct` of each completion, at least one.
        after: the same.
    """
    both = _ways(before).join(_ways(after), on="opening", how="full", coalesce=True, suffix="_new")
    both = both.sort("opening")  # sums of floats depend on the order
    share, share_new = both["share"].fill_null(0.0), both["share_new"].fill_null(0.0)
    right = both["correct"].fill_null(both["correct_new"])
    right_new = both["correct_new"].fill_null(both["correct"])
    choice = ((share_new - share) * (right + right_new)).sum() / 2
    within = ((right_new - right) * (share + share_new)).sum() / 2
    return float(choice), float(within)


def opening_tables(run: Run, task: str = "") -> list[Table]:
    """What `stages.show openings` prints."""
    drawn = rollouts(run)
    drawn = drawn.filter(of_task(drawn, task))
    title = "share of completions by first word, and how often they are right"
    found = [Table("iterations", title, by_iteration(drawn, most_common(drawn)))]
    numbers = run.evaluations()
    if numbers:
        answered = answered_table(run)
        title = f"held-out questions, {SAMPLED}"
        found.append(Table("well_formed", title, answered.filter(of_task(answered, task))))
    if len(numbers) > 1:
        first, last = numbers[0], numbers[-1]
        gain = gain_table(run, first, last)
        title = f"accuracy {SAMPLED}, policy {last} minus {first}: choosing openings, and within"
        found.append(Table("gain", title, gain.filter(of_task(gain, task))))
    return found


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


def _ways(frame: pl.DataFrame) -> pl.DataFrame:
    """`opening`, `share` and `correct`, every opening by itself."""
    return frame.group_by("opening").agg(
        (pl.len() / frame.height).alias("share"), pl.col("correct").mean()
    )


def _by_question(old: pl.DataFrame, new: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Accuracy of each question, before and after."""
    means = [frame.group_by("prompt_id").agg(pl.col("correct").mean()) for frame in (old, new)]
    both = means[0].join(means[1], on="prompt_id", suffix="_new").sort("prompt_id")
    return both["correct"], both["correct_new"]
