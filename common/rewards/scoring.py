"""Judging tables of completions: rows in, columns of `score` out, and what is said about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.config import RewardsConfig
from common.errors import UserError
from common.rewards.judging import Judging, needed_columns
from common.rewards.verdict import OUTCOMES
from common.runs.schemas import KEY
from common.tasks.records import Faults

JUDGED = (
    *(KEY, "group_id", "prompt_id", "task", "question", "answer", "verify_type"),
    *("assistant_prefix", "completion_text", "completion_ids", "finish_reason"),
)
"""Columns of a rollout that rules look at, and those that place a row."""

MOST_INFRA_ERRORS = 0.01
"""Share of completions whose rules may fail; beyond it the rules are at fault and not the rows."""


def check_golds(tables: Mapping[str, pa.Table], judging: Judging) -> None:
    """Refuse gold answers that cannot be read: their rows would count as wrong for ever.

    Args:
        tables: by the name of their file, with `verify_type` and `answer`.
        judging: reads golds where their types do.

    Raises:
        UserError: the first faults with file and row, and the number of others.
    """
    places: dict[tuple[str, str], str] = {}
    for name, table in tables.items():
        golds = zip(table["verify_type"].to_pylist(), table["answer"].to_pylist(), strict=True)
        for row, gold in enumerate(golds):
            places.setdefault(gold, f"{name} row {row}")
    faults = Faults()
    for gold, fault in zip(places, judging.unreadable_golds(list(places)), strict=True):
        if fault is not None:
            faults.add(places[gold], fault)
    faults.raise_any()


def types_in(tables: Iterable[pa.Table]) -> set[str]:
    """The verify types of the rows."""
    return {kind for table in tables for kind in pc.unique(table["verify_type"]).to_pylist()}


def judge_table(
    completions: pa.Table,
    judging: Judging,
    extras: Iterable[str],
    on_judged: Callable[[], None] = lambda: None,
) -> tuple[pa.Table, list[str]]:
    """Judge completions by their rows' verify types and by the recipe's extras.

    Args:
        completions: with `completion_text`, `answer`, `verify_type` and, if a template opened the
            assistant's turn, `assistant_prefix`, which is judged as part of the text.
        judging: of the recipe that has `extras`.
        extras: names of the extras in use.
        on_judged: called after each row.

    Returns:
        The columns `reward`, `reward_answer`, `reward_<extra>`, `extracted_answer`, `verdict`, and
        the reasons of all infra errors.

    Raises:
        UserError: a gold cannot be read under its verify type.
    """
    texts = [
        ((row.get("assistant_prefix") or "") + row["completion_text"], row)
        for row in rows_for_rules(completions).to_pylist()
    ]
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    for judged in judging.judge(texts, on_judged):
        rows.append(
            {"reward": judged.reward, "reward_answer": judged.answer}
            | {f"reward_{name}": reward for name, reward in judged.extras.items()}
            | {
                "extracted_answer": judged.verdict.extracted,
                "verdict": judged.verdict.verdict,
            }
        )
        if judged.reward is None:
            reasons.append(judged.verdict.reason)
    return pa.Table.from_pylist(rows, schema=_schema(extras)), reasons


SEEN = ("prompt_id", "task", "question", "answer", "verify_type", "finish_reason")
"""What a rule sees of a row of an evaluation."""


def judge_rows(rows: Sequence[dict[str, Any]], judging: Judging) -> list[str]:
    """Set in rows of an evaluation what their verify types say; gives reasons of infra errors."""
    texts = [
        (row["assistant_prefix"] + row["completion_text"], {name: row[name] for name in SEEN})
        for row in rows
    ]
    verdicts = judging.answers(texts)
    for row, verdict in zip(rows, verdicts, strict=True):
        row["reward_answer"] = verdict.reward
        row["extracted_answer"] = verdict.extracted
        row["verdict"] = verdict.verdict
    return [verdict.reason for verdict in verdicts if verdict.reward is None]


def rows_for_rules(completions: pa.Table) -> pa.Table:
    """What rules see of a row: its columns of text and numbers, and `completion_tokens`.

    Lists are left out, since unpacking ids and logprobs of tokens takes longer than judging; of the
    ids their number stays.
    """
    plain = [field.name for field in completions.schema if _is_plain(field.type)]
    rows = completions.select(plain)
    if "completion_ids" in completions.column_names and _is_list(completions["completion_ids"]):
        tokens = pc.list_value_length(completions["completion_ids"])
        rows = rows.drop_columns([n for n in plain if n == "completion_tokens"])
        rows = rows.append_column("completion_tokens", tokens)
    return rows


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(test(kind) for test in (*texts, *numbers))


def _is_list(column: pa.ChunkedArray) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(column.type) for test in lists)


def check_columns(completions: pa.Table, rewards: RewardsConfig, where: str) -> None:
    """Raise `UserError` if an extra of the recipe needs a column that is not there."""
    rows = rows_for_rules(completions)
    for column, name in needed_columns(rewards).items():
        source = {"completion_tokens": "completion_ids"}.get(column, column)
        if column not in rows.column_names or not pa.types.is_integer(rows[column].type):
            raise UserError(f"{where}: the reward {name!r} needs a column {source!r} of lists")
        if rows[column].null_count:
            row = rows[column].is_null().to_pylist().index(True)
            raise UserError(
                f"{where} row {row}: no value in column {source!r}, which the reward {name!r} needs"
            )


def _schema(extras: Iterable[str]) -> pa.Schema:
    rewards = ["reward", "reward_answer", *(f"reward_{name}" for name in extras)]
    texts = ["extracted_answer", "verdict"]
    return pa.schema([(r, pa.float64()) for r in rewards] + [(t, pa.string()) for t in texts])


def with_columns(table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """`table` with columns set or, if it has them, replaced."""
    for name, column in columns.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    return table


def refuse_infra_errors(scored: pa.Table, reasons: list[str]) -> None:
    """Raise `UserError` with the first three reasons if more than 1 % of the rows failed.

    Args:
        scored: with `verdict`.
        reasons: of the infra errors.
    """
    failed = scored["verdict"].to_pylist().count("infra_error")
    refuse_failures(failed, scored.num_rows, reasons)


def refuse_failures(failed: int, completions: int, reasons: list[str]) -> None:
    """As `refuse_infra_errors`, of rows that were counted before."""
    if failed > MOST_INFRA_ERRORS * completions:
        first = "".join(f"\n  {reason}" for reason in list(dict.fromkeys(reasons))[:3])
        raise UserError(
            f"the reward rules failed on {failed} of {completions} completions, more than "
            f"{MOST_INFRA_ERRORS:.0%}; mend them and run the same command again, which judges "
            f"these anew. First reasons:{first}"
        )


def reward_facts(scored: pa.Table) -> dict[str, Any]:
    """Mean reward, accuracy and verdicts of scored rows, of all and by `task` if there is one.

    Accuracy is the share of `correct` among the rows that could be judged.
    """
    facts = _facts(scored)
    if "task" in scored.column_names:
        facts["tasks"] = {
            task: _facts(scored.filter(pc.equal(scored["task"], task)))
            for task in pc.unique(scored["task"].drop_null()).to_pylist()
        }
    return facts


def summary(name: str, facts: dict[str, Any]) -> str:
    """One line about what was scored.

    Args:
        facts: of `reward_facts` and, if there are groups, how many have no variance.
    """
    counts = [f"{n} {outcome}" for outcome, n in facts["verdicts"].items() if n]
    mean, accuracy = facts["reward_mean"], facts["accuracy"]
    figures = "no rewards" if mean is None else f"mean reward {mean:.3f}, accuracy {accuracy:.3f}"
    groups = ""
    if "groups" in facts:
        groups = f"; {facts['zero_variance_groups']} of {facts['groups']} groups without variance"
    if rejected := facts.get("rejected_groups"):
        groups += f", and {facts['rejected_zero_variance_groups']} of {rejected} rejected ones"
    return f"{name}: {facts['completions']} completions, {figures} ({', '.join(counts)}){groups}"


def _facts(scored: pa.Table) -> dict[str, Any]:
    counts = Counter(scored["verdict"].to_pylist())
    judged = scored.num_rows - counts["infra_error"]
    return {
        "completions": scored.num_rows,
        "reward_mean": pc.mean(scored["reward"]).as_py(),
        "accuracy": counts["correct"] / judged if judged else None,
        "verdicts": {outcome: counts[outcome] for outcome in OUTCOMES},
    }
