r"""The rules for short answers: EXACT, ANSWER_TAG, LAST_NUMBER and BOXED_NUMERICAL.

Each compares one piece of the answer part with the gold answer, as text or as an exact decimal:

- EXACT: the whole answer part.
- ANSWER_TAG: the content of the only `<answer>…</answer>`.
- LAST_NUMBER: the last number.
- BOXED_NUMERICAL: the content of the last complete `\boxed{…}`.
"""

from __future__ import annotations

from common.rewards.answer_part import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    answer_part,
    last_box,
    several_answers,
    tagged_answer,
)
from common.rewards.number import Number, find_last_number, parse_number
from common.rewards.rule import NO_ANSWER, GoldError, Row, Verdict, graded


def read_exact_gold(answer: str) -> str:
    """Return the gold of EXACT: the answer without surrounding white space.

    Raises:
        GoldError: it is empty.
    """
    gold = answer.strip()
    if not gold:
        raise GoldError("is empty")
    return gold


def judge_exact(text: str, row: Row) -> Verdict:
    """Compare the answer part with the gold; case counts, and so does every inner space."""
    gold = read_exact_gold(row["answer"])
    part = (answer_part(text) or "").strip()
    return graded(part == gold, part) if part else NO_ANSWER


def read_tag_gold(answer: str) -> str:
    """Return the gold of ANSWER_TAG: a number or any other text that can stand within the tags.

    Raises:
        GoldError: it is empty, or has tags itself.
    """
    gold = read_exact_gold(answer)
    if ANSWER_OPEN in gold or ANSWER_CLOSE in gold:
        raise GoldError(f"contains {ANSWER_OPEN} or {ANSWER_CLOSE}; give what stands between them")
    return gold


def judge_tag(text: str, row: Row) -> Verdict:
    """Compare the tag's content as a number if both it and the gold are one, else as text.

    Text is compared without regard to case. Several tags are a wrong answer, whatever they hold.
    """
    gold = read_tag_gold(row["answer"])
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


def read_last_number_gold(answer: str) -> Number:
    """Return the gold of LAST_NUMBER; as in completions, `$` before and `%` after are dropped.

    Raises:
        GoldError: it is not a number.
    """
    return read_boxed_gold(answer.strip().removeprefix("$").removesuffix("%"))


def judge_last_number(text: str, row: Row) -> Verdict:
    """Compare the last number with the gold.

    If the last number is too long to be read, or a power such as 10², the answer is wrong: no
    earlier number stands in for it.
    """
    gold = read_last_number_gold(row["answer"])
    number = find_last_number(answer_part(text) or "")
    if number is None:
        return NO_ANSWER
    return graded(parse_number(number) == gold, number)


def read_boxed_gold(answer: str) -> Number:
    """Return the gold of BOXED_NUMERICAL: a number without unit or currency.

    Raises:
        GoldError: it is not a number.
    """
    number = parse_number(answer)
    if number is None:
        raise GoldError("is no number")
    return number


def judge_boxed(text: str, row: Row) -> Verdict:
    """Compare the content of the last box with the gold.

    A box that holds anything but one number is wrong: a list, a unit, a second answer.
    """
    gold = read_boxed_gold(row["answer"])
    content = last_box(answer_part(text) or "")
    if content is None or not content.strip():
        return NO_ANSWER
    return graded(parse_number(content) == gold, content.strip())
