"""ANSWER_TAG: the content of the single `<answer>…</answer>` equals the gold."""

from __future__ import annotations

from common.rewards.answer_part import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    answer_part,
    several_answers,
    tagged_answer,
)
from common.rewards.number import parse_number
from common.rewards.rule import NO_ANSWER, GoldError, Row, Verdict, graded


def read_gold(answer: str) -> str:
    """The gold without outer space; a number or any text that can stand within the tags."""
    gold = answer.strip()
    if not gold:
        raise GoldError("is empty")
    if ANSWER_OPEN in gold or ANSWER_CLOSE in gold:
        raise GoldError(f"contains {ANSWER_OPEN} or {ANSWER_CLOSE}; give what stands between them")
    return gold


def judge(text: str, row: Row) -> Verdict:
    """Equal as numbers when both are numbers, else as case-folded text."""
    gold = read_gold(row["answer"])
    part = answer_part(text) or ""
    if (several := several_answers(part)) is not None:
        return graded(False, several)
    content = tagged_answer(part)
    if content is None or not content.strip():
        return NO_ANSWER
    content = content.strip()
    gold_number = parse_number(gold)
    if gold_number is not None and (number := parse_number(content)) is not None:
        return graded(number == gold_number, content)
    return graded(content.casefold() == gold.casefold(), content)
