"""Two scorings of the same completions: which of them changed, and what becomes of the advantages.

Both come as `common.reporting.rewards.scored_rows` gives them, and `after` in the order of
`before`, as `aligned` puts it.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from common.errors import UserError
from common.reporting.frames import Table, first_rows
from common.reporting.rewards import VERDICTS, rules_of
from common.runs.schemas import KEY

SAME = 1e-6
"""Rewards that differ by no more are the same: embeddings are computed in float32."""

SIGNS = {-1: "negative", 0: "zero", 1: "positive"}


def aligned(before: pl.DataFrame, after: pl.DataFrame, names: tuple[str, str]) -> pl.DataFrame:
    """The rows of `after` in the order of `before`.

    Rows belong together by `rollout_id` where both scorings have it, else by their order.

    Args:
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
    """What `stages.show rewards --against` prints.

    Args:
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
    """One row per rule: how many rewards changed, rose, fell, were lost to null or came from it.

    A rule that only one of the scorings has stands there with its mean alone.
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
    """The completions of which the reward, a rule of both scorings, or the verdict changed.

    Columns: `id`, `task`, `question`, then reward, verdict and extracted answer before and after,
    then the gold `answer`; what the scorings do not have is left out.
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
    """How many completions went from each verdict to each; rows are before, columns after."""
    found = set(before["verdict"].drop_nulls()) | set(after["verdict"].drop_nulls())
    names = [name for name in VERDICTS if name in found] + sorted(found.difference(VERDICTS))
    return _moves(before["verdict"], after["verdict"], {name: name for name in names})


def sign_moves(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """How many advantages changed their sign or became zero; rows are before, columns after."""
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
