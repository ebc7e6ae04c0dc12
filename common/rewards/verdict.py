"""What a rule says about one completion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from common.errors import UserError

Row = Mapping[str, Any]
"""Columns of the completion's row, by name; every rule may count on `answer` and `verify_type`."""

Outcome = Literal["correct", "wrong", "no_answer", "timeout", "infra_error"]

OUTCOMES: tuple[Outcome, ...] = ("correct", "wrong", "no_answer", "timeout", "infra_error")


@dataclass(frozen=True)
class Verdict:
    """Outcome of one rule.

    `reward` is None when `verdict` is `infra_error`: the fault was ours and not the model's, so the
    completion leaves its group's statistics instead of counting as wrong.
    """

    reward: float | None
    verdict: Outcome
    extracted: str | None
    """The text that the rule compared with the gold answer."""
    reason: str = ""
    """What went wrong, for `infra_error` and `timeout`."""


NO_ANSWER = Verdict(0.0, "no_answer", None)

ABSTAINED = Verdict(None, "no_answer", None)
"""Of an extra that has nothing to say about a row: it adds nothing to the sum."""


class GoldError(UserError):
    """A gold answer that cannot be read under its verify type: a fault of the data set."""


def graded(is_correct: bool, extracted: str) -> Verdict:
    """1 for a correct answer, 0 for a wrong one."""
    return Verdict(1.0, "correct", extracted) if is_correct else Verdict(0.0, "wrong", extracted)
