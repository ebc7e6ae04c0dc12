"""One scoring of completions as polars tables: what each rule gave, and where rules disagree.

Two scorings of the same completions are compared in `reward_changes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import polars as pl

from common.errors import UserError
from common.reporting.frames import Table, first_rows, require_task
from common.runs.schemas import KEY

VERDICTS = ("correct", "wrong", "no_answer", "timeout", "infra_error")
"""What a verify type says of a completion; a test holds them equal to the rules' own."""

NEEDED = ("reward", "verdict")
TEXTS = (
    *(KEY, "task", "question", "answer", "verify_type"),
    *("completion_text", "extracted_answer", "verdict"),
)
ALL = "all"
"""The task of rows that name none, and of all tasks together."""

ROUNDING = 1e-9


def read_scored(path: Path) -> pl.DataFrame:
    """Rows of a scored Parquet file, or of a folder of them, in the form of `scored_rows`.

    Raises:
        UserError: nothing readable is there, or it is not scored.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        what = "no .parquet file in this folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; name what `stages.score --output` wrote")
    try:
        frame = pl.concat([_read(file) for file in files], how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: its files are no one table: {_first_line(error)}") from None
    return scored_rows(frame, str(path))


def scored_rows(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """`frame` with the columns that the tables need: texts, rewards, the advantage and `id`.

    `id` is the `rollout_id`, else `row 17`, counted from 0. Rows without a task belong to `all`.

    Raises:
        UserError: it is not scored or empty, or a column does not hold what its name says.
    """
    if frame.is_empty():
        raise UserError(f"{name} is empty: no rows")
    missing = [column for column in NEEDED if column not in frame.columns]
    if missing:
        raise UserError(
            f"{name}: no column {', '.join(map(repr, missing))}, so it is not scored; "
            f"python -m stages.score --input {name} --output scored.parquet"
        )
    texts = [column for column in TEXTS if column in frame.columns]
    numbers = ["reward", *_extras(frame)]
    numbers += [column for column in ("reward_answer", "advantage") if column in frame.columns]
    try:
        rows = frame.select(
            *(pl.col(column).cast(pl.String) for column in texts),
            *(pl.col(column).cast(pl.Float64).fill_nan(None) for column in numbers),
        )
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{name}: not a table of scores: {_first_line(error)}") from None
    row_number = pl.concat_str(pl.lit("row "), pl.int_range(pl.len()).cast(pl.String))
    return rows.with_columns(
        (pl.col("task").fill_null(ALL) if "task" in texts else pl.lit(ALL)).alias("task"),
        (pl.col(KEY) if KEY in texts else row_number).alias("id"),
    )


def of_task(scored: pl.DataFrame, task: str) -> pl.Series:
    """Which rows belong to `task`, as a mask; all of them when it is empty.

    Raises:
        UserError: there is no such task; lists those there are.
    """
    require_task(scored["task"], task)
    return scored.select(pl.col("task") == task if task else pl.repeat(True, pl.len())).to_series()


def rules_of(scored: pl.DataFrame) -> dict[str, str]:
    """Name of every rule and its column: `answer` first, then the extras."""
    answer = {"answer": "reward_answer"} if "reward_answer" in scored.columns else {}
    return answer | {name.removeprefix("reward_"): name for name in _extras(scored)}


def reward_tables(scored: pl.DataFrame, *, examples: int | None = 5) -> list[Table]:
    """What `stages.show rewards` prints of one scoring.

    Args:
        scored: as `scored_rows` gives it.
        examples: rows shown of each kind of disagreement; None for all.
    """
    tables = [
        Table("rules", "rewards by rule", rule_table(scored)),
        Table("verdicts", "verdicts", verdict_table(scored)),
    ]
    agreement = agreement_table(scored)
    if not agreement.is_empty():
        disagreeing = Table("disagreements", "where rules disagree", disagreements(scored, None))
        shown = disagreements(scored, examples)
        tables += [
            Table("agreement", "agreement of rules (liked: above the rule's mean)", agreement),
            first_rows(disagreeing, shown.height)._replace(frame=shown),
        ]
    return tables


def rule_table(scored: pl.DataFrame) -> pl.DataFrame:
    """One row per task and rule: rows, share that has a value, mean, std (ddof 1), min, max.

    The answer's rule stands once for each verify type of the task. With several tasks the whole
    comes last, as `all`.
    """
    parts = [
        _rule_row(str(task), rule, rows[column])
        for task, rows_of_task in _by_task(scored)
        for rule, column, rows in _rules_with_rows(rows_of_task)
    ]
    return pl.DataFrame(parts, infer_schema_length=None)


def verdict_table(scored: pl.DataFrame) -> pl.DataFrame:
    """One row per task and verify type: rows, accuracy, and how many there are of each verdict.

    Accuracy is the share of `correct` among the rows that could be judged.
    """
    found = scored["verdict"].drop_nulls().unique(maintain_order=True).to_list()
    names = [*VERDICTS, *(name for name in found if name not in VERDICTS)]
    parts = []
    for task, rows in _by_task(scored):
        for verify_type, part in _by_verify_type(rows):
            counts = {name: (part["verdict"] == name).sum() for name in names}
            judged = part.height - counts["infra_error"]
            accuracy = counts["correct"] / judged if judged else None
            parts.append(
                {"task": task, "verify_type": verify_type, "rows": part.height}
                | {"accuracy": accuracy}
                | counts
            )
    return pl.DataFrame(parts, infer_schema_length=None)


def agreement_table(scored: pl.DataFrame) -> pl.DataFrame:
    """One row a pair of rules: how many completions both like, one only, or neither.

    A rule likes what it gives more than its mean; one that gives all rows the same likes nothing
    and stands in no pair. `correlation` is Pearson's, over the rows that both rules judged.
    """
    parts = []
    for (rule, column), (other, other_column) in _pairs(scored):
        rows = scored.drop_nulls([column, other_column])
        mine, theirs = _liked(rows, column), _liked(rows, other_column)
        parts.append(
            {
                "rule": rule,
                "other": other,
                "rows": rows.height,
                "both": (mine & theirs).sum(),
                "only_rule": (mine & ~theirs).sum(),
                "only_other": (~mine & theirs).sum(),
                "neither": (~mine & ~theirs).sum(),
                "correlation": rows.select(pl.corr(column, other_column).fill_nan(None)).item(),
            }
        )
    return pl.DataFrame(parts, infer_schema_length=None)


def disagreements(scored: pl.DataFrame, examples: int | None) -> pl.DataFrame:
    """Completions that one rule likes and another does not, `examples` of each pair and side."""
    shown = [name for name in ("task", "question", "extracted_answer", "answer") if name in scored]
    parts = []
    for first, second in _pairs(scored):
        rows = scored.drop_nulls([first[1], second[1]])
        for (rule, column), (other, other_column) in ((first, second), (second, first)):
            found = rows.filter(_liked(rows, column) & ~_liked(rows, other_column))
            parts.append(
                found.head(found.height if examples is None else examples).select(
                    pl.lit(rule).alias("liked_by"),
                    pl.col(column).alias("gives"),
                    pl.lit(other).alias("not_by"),
                    pl.col(other_column).alias("which_gives"),
                    "id",
                    *shown,
                )
            )
    return pl.concat(parts)


def _read(file: Path) -> pl.DataFrame:
    try:
        # Token ids and logprobs are most of a rollout, and no table needs them.
        names = pl.read_parquet_schema(file)
        wanted = {*TEXTS, "reward", "advantage"}
        return pl.read_parquet(
            file, columns=[n for n in names if n in wanted or n.startswith("reward_")]
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{file}: cannot be read: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _extras(frame: pl.DataFrame) -> list[str]:
    return [
        name
        for name, kind in frame.schema.items()
        if name.startswith("reward_")
        and name != "reward_answer"
        and (kind.is_numeric() or kind == pl.Null)
    ]


def _by_task(scored: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Rows of each task; then all of them, if there are several tasks."""
    for (task,), rows in scored.group_by(["task"], maintain_order=True):
        yield str(task), rows
    if scored["task"].n_unique() > 1:
        yield ALL, scored


def _by_verify_type(rows: pl.DataFrame) -> Iterator[tuple[str | None, pl.DataFrame]]:
    if "verify_type" not in rows.columns:
        yield None, rows
        return
    for (verify_type,), part in rows.group_by(["verify_type"], maintain_order=True):
        yield None if verify_type is None else str(verify_type), part


def _rules_with_rows(rows: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """(name, column, rows) of the weighted sum, of each verify type's rule and of each extra."""
    yield "reward", "reward", rows
    for rule, column in rules_of(rows).items():
        if rule != "answer":
            yield rule, column, rows
            continue
        for verify_type, part in _by_verify_type(rows):
            yield f"answer: {verify_type}" if verify_type else "answer", column, part


def _rule_row(task: str, rule: str, values: pl.Series) -> dict[str, object]:
    return {
        "task": task,
        "rule": rule,
        "rows": len(values),
        "judged": values.count() / len(values),
        "mean": values.mean(),
        "std": values.std(),
        "min": values.min(),
        "max": values.max(),
    }


def _pairs(
    scored: pl.DataFrame,
) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Every two rules that tell completions apart, as (name, column)."""
    rules = [
        (rule, column)
        for rule, column in rules_of(scored).items()
        if scored[column].drop_nulls().n_unique() > 1
    ]
    return combinations(rules, 2)


def _liked(rows: pl.DataFrame, column: str) -> pl.Series:
    # The mean of equal numbers may come out a rounding error below them.
    return (rows[column] - rows[column].mean()) > ROUNDING
