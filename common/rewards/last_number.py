"""LAST_NUMBER: the last number of the answer part equals the gold."""

from __future__ import annotations

from common.rewards.answer_part import answer_part
from common.rewards.number import Number, find_last_number, parse_number
from common.rewards.rule import NO_ANSWER, GoldError, Row, Verdict, graded


def read_gold(answer: str) -> Number:
    """The gold as a number; `$` before and `%` after are dropped, as they are in completions."""
    number = parse_number(answer.strip().removeprefix("$").removesuffix("%"))
    if number is None:
        raise GoldError("is no number")
    return number


def judge(text: str, row: Row) -> Verdict:
    """A last number too long to be read, or a power as in 10², is wrong; no earlier one counts."""
    gold = read_gold(row["answer"])
    number = find_last_number(answer_part(text) or "")
    if number is None:
        return NO_ANSWER
    return graded(parse_number(number) == gold, number)
