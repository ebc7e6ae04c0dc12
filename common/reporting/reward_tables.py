"""Scored completions as polars tables: what each rule gave, and where rules disagree.

Two scorings of the same completions are compared too: which rewards changed, and what becomes of
the advantages. Both come as `scored_rows` gives them, and the second in the order of the first, as
`aligned` puts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl

from common.console import python
from common.errors import UserError
from common.reporting.terminal import Table, first_rows
from common.rewards.rule import VERDICTS
from common.runs.schemas import KEY

NEEDED = ("reward", "verdict")
TEXTS = (
    *(KEY, "task", "question", "answer", "verify_type"),
    *("completion_text", "extracted_answer", "verdict"),
)
ALL = "all"
"""Task of rows that name none, and of all tasks together."""

ROUNDING = 1e-9

SAME = 1e-6
"""Rewards that differ by no more are the same: embeddings are computed in float32."""

SIGNS = {-1: "negative", 0: "zero", 1: "positive"}


def read_scored(path: Path) -> pl.DataFrame:
    """Read a scored Parquet file, or a folder of them, in the form of `scored_rows`.

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
    """Return `frame` with the columns that the tables need: texts, rewards, the advantage and `id`.

    `id` is the `rollout_id`, or without one `row 17`, counted from 0. Rows without a task belong to
    `all`.

    Args:
        frame: scored completions.
        name: what to call them in an error.

    Raises:
        UserError: it is not scored or empty, or a column does not hold what its name says.
    """
    if frame.is_empty():
        raise UserError(f"{name} is empty: no rows")
    missing = [column for column in NEEDED if column not in frame.columns]
    if missing:
        raise UserError(
            f"{name}: no column {', '.join(map(repr, missing))}, so it is not scored; "
            f"{python()} -m stages.score --input {name} --output scored.parquet"
        )
    texts = [column for column in TEXTS if column in frame.columns]
    numbers = ["reward", *_aux_columns(frame)]
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


def rules_of(scored: pl.DataFrame) -> dict[str, str]:
    """Return the name of every rule and its column: `answer`, then the auxiliary rewards."""
    answer = {"answer": "reward_answer"} if "reward_answer" in scored.columns else {}
    return answer | {name.removeprefix("reward_"): name for name in _aux_columns(scored)}


def reward_tables(scored: pl.DataFrame, *, examples: int | None = 5) -> list[Table]:
    """Return what `stages.show rewards` prints of one scoring.

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
    """Return one row per task and rule: rows, share with a value, mean, std (ddof 1), min, max.

    The answer's rule has one row for each verify type of the task. With several tasks, `all` comes
    last.
    """
    parts = [
        _rule_row(str(task), rule, rows[column])
        for task, rows_of_task in _by_task(scored)
        for rule, column, rows in _rules_with_rows(rows_of_task)
    ]
    return pl.DataFrame(parts, infer_schema_length=None)


def verdict_table(scored: pl.DataFrame) -> pl.DataFrame:
    """Return one row per task and verify type: rows, accuracy, and how many have each verdict.

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
    """Return one row per pair of rules: how many completions both like, only one likes, or neither.

    A rule likes a completion to which it gives more than its mean. A rule that gives all rows the
    same likes nothing and is in no pair. `correlation` is Pearson's, over the rows that both rules
    judged.
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
    """Return completions that one rule likes and another does not.

    Args:
        scored: as `scored_rows` gives it.
        examples: how many of each pair of rules and side; None for all.
    """
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


def _aux_columns(frame: pl.DataFrame) -> list[str]:
    return [
        name
        for name, kind in frame.schema.items()
        if name.startswith("reward_")
        and name != "reward_answer"
        and (kind.is_numeric() or kind == pl.Null)
    ]


def _by_task(scored: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield the rows of each task; then all of them, if there are several tasks."""
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
    """Yield (name, column, rows) of the weighted sum and of each rule.

    The answer's rule comes once for each verify type.
    """
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
    """Return every two rules that tell completions apart, each as (name, column)."""
    rules = [
        (rule, column)
        for rule, column in rules_of(scored).items()
        if scored[column].drop_nulls().n_unique() > 1
    ]
    return combinations(rules, 2)


def _liked(rows: pl.DataFrame, column: str) -> pl.Series:
    # The mean of equal numbers may come out a rounding error below them.
    return (rows[column] - rows[column].mean()) > ROUNDING


# Two scorings of the same completions


def aligned(before: pl.DataFrame, after: pl.DataFrame, names: tuple[str, str]) -> pl.DataFrame:
    """Return the rows of `after` in the order of `before`.

    Rows belong together by `rollout_id` where both scorings have it, else by their order.

    Args:
        before: one scoring.
        after: the other.
        names: what to call the two in an error.

    Raises:
        UserError: they are not scorings of the same completions.
    """
    if KEY in before.columns and KEY in after.columns:
        _check_keys(before[KEY], after[KEY], names)
        after = before.select(KEY).join(after, on=KEY, maintain_order="left")
    elif before.height != after.height:
        raise UserError(
            f"{names[0]} has {before.height} rows and {names[1]} {after.height}; without {KEY} in "
            "both, rows are matched by their order and must be as many"
        )
    elif "completion_text" not in before.columns or "completion_text" not in after.columns:
        raise UserError(
            f"{names[0]} and {names[1]} cannot be matched: both must have {KEY}, or both "
            "completion_text in the same order"
        )
    _check_texts(before, after, names)
    return after


def change_tables(
    before: pl.DataFrame, after: pl.DataFrame, *, limit: int | None = 20
) -> list[Table]:
    """Return what `stages.show rewards --against` prints.

    Args:
        before: one scoring.
        after: the other, aligned.
        limit: changed completions to list; None for all.
    """
    moves = "rows before, columns after"
    tables = [
        Table("rules", "rewards before and after", rule_changes(before, after)),
        Table("verdicts", f"verdicts: {moves}", verdict_moves(before, after)),
    ]
    if "advantage" in before.columns and "advantage" in after.columns:
        tables.append(
            Table("advantages", f"advantages: {moves}", sign_moves(before, after)),
        )
    changed = changed_rows(before, after)
    title = f"{changed.height} of {before.height} completions changed"
    return [*tables, first_rows(Table("changed", title, changed), limit)]


def rule_changes(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Return one row per rule: how many rewards changed, rose, fell, became null or were null.

    For a rule that only one of the scorings has, the row has its mean alone.
    """
    old_rules, new_rules = _columns_by_rule(before), _columns_by_rule(after)
    parts: list[dict[str, Any]] = []
    for rule, column in (old_rules | new_rules).items():
        row: dict[str, Any] = {"rule": rule}
        old = before[column] if rule in old_rules else None
        new = after[column] if rule in new_rules else None
        if old is not None and new is not None:
            row |= _counts(old, new)
        row["mean_before"] = None if old is None else old.mean()
        row["mean_after"] = None if new is None else new.mean()
        parts.append(row)
    return pl.DataFrame(parts, infer_schema_length=None)


def changed_rows(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Return the completions whose verdict, reward, or value of a common rule changed.

    The columns are `id`, `task`, `question`, then reward, verdict and extracted answer before and
    after, then the gold `answer`; columns that the scorings do not have are left out.
    """
    differs = before["verdict"].ne_missing(after["verdict"])
    new_rules = _columns_by_rule(after)
    for rule, column in _columns_by_rule(before).items():
        if rule in new_rules:
            differs = differs | _differs(before[column], after[column])
    columns = [before[name] for name in ("id", "task", "question") if name in before.columns]
    for name in ("reward", "verdict", "extracted_answer"):
        if name in before.columns:
            columns.append(before[name])
        if name in after.columns:
            columns.append(after[name].alias(f"{name}_after"))
    if "answer" in before.columns:
        columns.append(before["answer"])
    return pl.DataFrame(columns).filter(differs)


def verdict_moves(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Return how many completions went from each verdict (rows) to each (columns)."""
    found = set(before["verdict"].drop_nulls()) | set(after["verdict"].drop_nulls())
    names = [name for name in VERDICTS if name in found] + sorted(found.difference(VERDICTS))
    return _moves(before["verdict"], after["verdict"], {name: name for name in names})


def sign_moves(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Return how many advantages went from each sign (rows) to each (columns)."""
    return _moves(before["advantage"].sign(), after["advantage"].sign(), SIGNS)


def _moves(old: pl.Series, new: pl.Series, names: dict[Any, str]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"before": name}
            | {other: ((old == value) & (new == to)).sum() for to, other in names.items()}
            for value, name in names.items()
        ]
    )


def _counts(old: pl.Series, new: pl.Series) -> dict[str, int]:
    difference = new - old
    counts = {
        "rose": int((difference > SAME).sum()),
        "fell": int((difference < -SAME).sum()),
        "became_null": int((old.is_not_null() & new.is_null()).sum()),
        "were_null": int((old.is_null() & new.is_not_null()).sum()),
    }
    return {"changed": sum(counts.values())} | counts


def _columns_by_rule(scored: pl.DataFrame) -> dict[str, str]:
    return {"reward": "reward"} | rules_of(scored)


def _differs(old: pl.Series, new: pl.Series) -> pl.Series:
    one_is_null = old.is_null() != new.is_null()
    return one_is_null | ((new - old).abs() > SAME).fill_null(False)


def _check_keys(before: pl.Series, after: pl.Series, names: tuple[str, str]) -> None:
    for keys, name in zip((before, after), names, strict=True):
        if keys.null_count() or keys.n_unique() < len(keys):
            raise UserError(f"{name}: a {KEY} is missing or occurs twice")
    missing, extra = set(before) - set(after), set(after) - set(before)
    if missing or extra:
        raise UserError(
            f"{names[1]} does not match {names[0]}: {len(missing)} rows missing "
            f"{sorted(missing)[:3]}, {len(extra)} superfluous {sorted(extra)[:3]}"
        )


def _check_texts(before: pl.DataFrame, after: pl.DataFrame, names: tuple[str, str]) -> None:
    if "completion_text" not in before.columns or "completion_text" not in after.columns:
        return
    other = before["completion_text"].ne_missing(after["completion_text"])
    if other.any():
        raise UserError(
            f"{names[0]} and {names[1]} hold different completions: {other.sum()} of "
            f"{before.height} texts differ, the first is that of {before['id'].filter(other)[0]}"
        )
