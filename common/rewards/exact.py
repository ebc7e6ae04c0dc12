"""EXACT: the answer part equals the gold, character by character, outer space aside."""

from __future__ import annotations

from common.rewards.answer_part import answer_part
from common.rewards.rule import NO_ANSWER, GoldError, Row, Verdict, graded


def read_gold(answer: str) -> str:
    """The gold without outer space."""
    gold = answer.strip()
    if not gold:
        raise GoldError("is empty")
    return gold


def judge(text: str, row: Row) -> Verdict:
    """Case matters, and so does every inner space."""
    gold = read_gold(row["answer"])
    part = (answer_part(text) or "").strip()
    return graded(part == gold, part) if part else NO_ANSWER
