"""Every reward rule by name, and the one place that turns a rule's fault into a null reward."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.rewards import answer_tag, boxed_numerical, exact, format, last_number
from common.rewards.verdict import GoldError, Row, Verdict


@dataclass(frozen=True)
class Verifier:
    """A verify type: compares a completion with the row's gold answer."""

    judge: Callable[[str, Row], Verdict]
    """(assistant prefix + completion, row) → verdict."""
    read_gold: Callable[[str], Any]
    """Reads a gold answer; raises `GoldError` if the type cannot."""


Extra = Callable[[str, Row], float | None]
"""(assistant prefix + completion, row) → reward, None when it cannot be told."""

VERIFY: dict[str, Verifier] = {
    "LAST_NUMBER": Verifier(last_number.judge, last_number.read_gold),
    "BOXED_NUMERICAL": Verifier(boxed_numerical.judge, boxed_numerical.read_gold),
    "ANSWER_TAG": Verifier(answer_tag.judge, answer_tag.read_gold),
    "EXACT": Verifier(exact.judge, exact.read_gold),
}

EXTRAS: dict[str, Extra] = {
    "format": format.reward,
}


@dataclass(frozen=True)
class Judgement:
    """All that is said about one completion."""

    reward: float | None
    """Weighted sum of the parts; None when one of them is."""
    answer: float | None
    """By the row's verify type, unweighted."""
    extras: dict[str, float | None]
    """By the recipe's extra rewards, unweighted."""
    verdict: Verdict
    """On the answer; `infra_error` also when only an extra failed."""


def get_verifier(verify_type: str) -> Verifier:
    """The verify type of that name; raises `UserError` that lists the known ones."""
    if verify_type not in VERIFY:
        near = difflib.get_close_matches(verify_type.upper(), VERIFY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(VERIFY)
        raise UserError(f"unknown verify_type {verify_type!r}; there are {known}{hint}")
    return VERIFY[verify_type]


def check_gold(verify_type: str, answer: str) -> None:
    """Raise `UserError` if the type is unknown or cannot read `answer` as a gold answer."""
    verifier = get_verifier(verify_type)
    try:
        verifier.read_gold(answer)
    except GoldError as error:
        shown = answer if len(answer) <= 80 else answer[:77] + "..."
        raise GoldError(f"answer {shown!r} cannot be read as {verify_type}: it {error}") from None


def judge(text: str, row: Row) -> Verdict:
    """Judge `text` (assistant prefix + completion) by the row's verify type.

    A fault of the rule itself is an `infra_error` with its reason, never a reward of 0.

    Raises:
        UserError: the verify type is unknown, or the gold cannot be read under it.
    """
    verifier = get_verifier(row["verify_type"])
    try:
        return verifier.judge(text, row)
    except GoldError:
        check_gold(row["verify_type"], row["answer"])
        raise
    except Exception as error:
        return Verdict(None, "infra_error", None, _reason(row["verify_type"], error))


def judge_all(text: str, row: Row, weights: Mapping[str, float]) -> Judgement:
    """Judge by the row's verify type and by the extras that `weights` names, and add them up.

    `weights` has a weight for `answer` and for every extra in use. The sum is rounded once
    (`math.fsum`), so equal parts give equal sums whatever their order.

    Raises:
        UserError: the verify type is unknown, or the gold cannot be read under it.
    """
    verdict = judge(text, row)
    parts: dict[str, float | None] = {"answer": verdict.reward}
    failed = ""
    for name in weights:
        if name != "answer":
            parts[name], reason = _judge_extra(name, text, row)
            failed = failed or reason
    if failed and verdict.reward is not None:
        verdict = Verdict(None, "infra_error", verdict.extracted, failed)
    terms = [weights[name] * part for name, part in parts.items() if part is not None]
    reward = math.fsum(terms) if len(terms) == len(parts) else None
    return Judgement(reward, parts.pop("answer"), parts, verdict)


def _judge_extra(name: str, text: str, row: Row) -> tuple[float | None, str]:
    """An extra's reward, or None and the reason."""
    try:
        reward = EXTRAS[name](text, row)
    except Exception as error:
        return None, _reason(name, error)
    if reward is None or not math.isfinite(reward):
        return None, f"{name}: gave {reward}"
    return float(reward), ""


def _reason(name: str, error: Exception) -> str:
    return f"{name}: {type(error).__name__}: {error}"
