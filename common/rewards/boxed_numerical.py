r"""BOXED_NUMERICAL: the last complete `\boxed{…}` of the answer part is the gold number."""

from __future__ import annotations

from common.rewards.answer_part import answer_part, last_box
from common.rewards.number import Number, parse_number
from common.rewards.rule import NO_ANSWER, GoldError, Row, Verdict, graded


def read_gold(answer: str) -> Number:
    """The gold as a number, without units or signs of currency."""
    number = parse_number(answer)
    if number is None:
        raise GoldError("is no number")
    return number


def judge(text: str, row: Row) -> Verdict:
    """A box that holds anything but one number is wrong: a list, a unit, a second answer."""
    gold = read_gold(row["answer"])
    content = last_box(answer_part(text) or "")
    if content is None or not content.strip():
        return NO_ANSWER
    return graded(parse_number(content) == gold, content.strip())
