"""Judging tables of completions: rows in, columns of `score` out, and what is said about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.config import RewardsConfig
from common.errors import UserError
from common.rewards.registry import check_gold, judge_all
from common.rewards.verdict import OUTCOMES
from common.tasks.records import Faults

MOST_INFRA_ERRORS = 0.01
"""Share of completions whose rules may fail; beyond it the rules are at fault and not the rows."""


def weights_of(rewards: RewardsConfig) -> dict[str, float]:
    """Weight of `answer` and of each extra that the recipe uses."""
    return {"answer": rewards.answer.weight} | rewards.extras()


def check_golds(tables: Mapping[str, pa.Table]) -> None:
    """Refuse gold answers that cannot be read: their rows would count as wrong for ever.

    Args:
        tables: by the name of their file, with `verify_type` and `answer`.

    Raises:
        UserError: the first faults with file and row, and the number of others.
    """
    seen: set[tuple[str, str]] = set()
    faults = Faults()
    for where, verify_type, answer in _golds(tables):
        if (verify_type, answer) in seen:
            continue
        seen.add((verify_type, answer))
        try:
            check_gold(verify_type, answer)
        except UserError as error:
            faults.add(where, str(error))
    faults.raise_any()


def _golds(tables: Mapping[str, pa.Table]) -> Iterator[tuple[str, str, str]]:
    for name, table in tables.items():
        golds = zip(table["verify_type"].to_pylist(), table["answer"].to_pylist(), strict=True)
        for row, (verify_type, answer) in enumerate(golds):
            yield f"{name} row {row}", verify_type, answer


def judge_table(
    completions: pa.Table,
    weights: Mapping[str, float],
    on_judged: Callable[[], None] = lambda: None,
) -> tuple[pa.Table, list[str]]:
    """Judge completions by their rows' verify types and by the extras in `weights`.

    Args:
        completions: with `completion_text`, `answer`, `verify_type` and, if a template opened the
            assistant's turn, `assistant_prefix`, which is judged as part of the text.
        weights: of `answer` and of each extra.
        on_judged: called after each row.

    Returns:
        The columns `reward`, `reward_answer`, `reward_<extra>`, `extracted_answer`, `verdict`, and
        the reasons of all infra errors.

    Raises:
        UserError: a gold cannot be read under its verify type.
    """
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    for row in completions.to_pylist():
        text = (row.get("assistant_prefix") or "") + row["completion_text"]
        judged = judge_all(text, row, weights)
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
        on_judged()
    return pa.Table.from_pylist(rows, schema=_schema(weights)), reasons


def _schema(weights: Mapping[str, float]) -> pa.Schema:
    rewards = ["reward", *(f"reward_{name}" for name in weights)]
    texts = ["extracted_answer", "verdict"]
    return pa.schema([(r, pa.float64()) for r in rewards] + [(t, pa.string()) for t in texts])


def refuse_infra_errors(scored: pa.Table, reasons: list[str]) -> None:
    """Raise `UserError` with the first three reasons if more than 1 % of the rows failed.

    Args:
        scored: with `verdict`.
        reasons: of the infra errors.
    """
    failed = scored["verdict"].to_pylist().count("infra_error")
    if failed > MOST_INFRA_ERRORS * scored.num_rows:
        first = "".join(f"\n  {reason}" for reason in list(dict.fromkeys(reasons))[:3])
        raise UserError(
            f"the reward rules failed on {failed} of {scored.num_rows} completions, more than "
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


def _facts(scored: pa.Table) -> dict[str, Any]:
    counts = Counter(scored["verdict"].to_pylist())
    judged = scored.num_rows - counts["infra_error"]
    return {
        "completions": scored.num_rows,
        "reward_mean": pc.mean(scored["reward"]).as_py(),
        "accuracy": counts["correct"] / judged if judged else None,
        "verdicts": {outcome: counts[outcome] for outcome in OUTCOMES},
    }
