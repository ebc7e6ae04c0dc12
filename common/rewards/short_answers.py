r"""The rules for short answers: EXACT, ANSWER_TAG, LAST_NUMBER and BOXED_NUMERICAL.

Each compares one piece of the answer part with the gold answer, as text or as an exact decimal:

- EXACT: the whole answer part.
- ANSWER_TAG: the content of the only `<answer>…</answer>`.
- LAST_NUMBER: the last number.
- BOXED_NUMERICAL: the content of the last complete `\boxed{…}`.

What stands beside a number and changes it is part of it: `neighbours.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from common.rewards.answer_part import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    answer_part,
    several_answers,
    tag_place,
)
from common.rewards.latex.reader import read_number
from common.rewards.latex.shape import Value
from common.rewards.latex.units import same_text
from common.rewards.neighbours import Stated, stated, stated_later, stated_number
from common.rewards.number import last_number_span, number_text, value_of
from common.rewards.places import Elements
from common.rewards.rule import NO_ANSWER, GoldError, Row, Verdict, graded

_ONE = Value(("1",), Fraction(1))
_MARKS = ' \t\n*`"“”'


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

    Text is compared without regard to case and to marks such as `**` around it. Several tags are a
    wrong answer, whatever they hold, and so is a tag beside which something changes its content.
    """
    gold = read_tag_gold(row["answer"])
    part = answer_part(text) or ""
    if (several := several_answers(part)) is not None:
        return graded(False, several)
    place = tag_place(part)
    content = "" if place is None else place.content(part).strip()
    if place is None or not content:
        return NO_ANSWER
    elements = Elements(part)
    answer = stated(elements, place, boxed=False)
    gold_number = read_number(gold)
    if gold_number is not None and read_number(content) is not None:
        answers = [answer, *stated_later(elements, place.end)]
        return graded(_are_number(gold_number, gold, answers), answer.text)
    same = content.strip(_MARKS).casefold() == gold.strip(_MARKS).casefold()
    return graded(same and answer == Stated(content), answer.text)


def _are_number(gold: Value, written: str, answers: Iterable[Stated]) -> bool:
    """Return whether all answers are the gold's number.

    A known unit may be missing on one side; other words may be missing beside the gold, not beside
    the answer. An approximation is right only for a decimal gold, which may be rounded itself.
    """
    for answer in answers:
        if answer.parts:
            parts = [Stated(part, answer.approximate) for part in answer.parts]
            if not _are_number(gold, written, parts):
                return False
            continue
        number = read_number(answer.text)
        if number is None or number.exact != gold.exact or not same_text(gold, number):
            return False
        if (gold.note and not number.note) or (answer.approximate and "." not in written):
            return False
    return True


def read_last_number_gold(answer: str) -> Fraction:
    """Return the gold of LAST_NUMBER; as in completions, `$` before and `%` after are dropped.

    Raises:
        GoldError: it is not a number.
    """
    number = value_of(answer.strip().removeprefix("$").removesuffix("%"))
    if number is None:
        raise GoldError("is no number")
    return number


def judge_last_number(text: str, row: Row) -> Verdict:
    r"""Compare the last number with the gold.

    If the last number cannot be read, as `\sqrt{2}`, or words beside it change it, the answer is
    wrong: no earlier number stands in for it.
    """
    gold = read_last_number_gold(row["answer"])
    part = answer_part(text) or ""
    span = last_number_span(part)
    if span is None:
        return NO_ANSWER
    found = number_text(part[span[0] : span[1]])
    if value_of(found) != gold:
        return graded(False, found)
    # The number itself has been compared: what stands beside it is read beside a 1 in its place.
    is_last_of_several = found[0] != part[span[0]]
    start = span[1] - len(found) if is_last_of_several else span[0]
    beside = stated_number(part, start, span[1], "1")
    approximate = beside.approximate and "." not in row["answer"]
    value = read_number(beside.text.replace(r"\%", "", 1))
    is_same = value is not None and value.exact == 1 and same_text(_ONE, value)
    return graded(is_same and not approximate, beside.text.replace("1", found, 1))


def read_boxed_gold(answer: str) -> Value:
    """Return the gold of BOXED_NUMERICAL: a number, with or without a unit or a currency.

    Raises:
        GoldError: it is not a number.
    """
    number = read_number(answer)
    if number is None:
        raise GoldError("is no number")
    return number


def judge_boxed(text: str, row: Row) -> Verdict:
    """Compare the content of the last box with the gold.

    A box that holds anything but one number and its unit is wrong, and so is one beside which
    something changes the number or gives another: `neighbours.py`.
    """
    gold = read_boxed_gold(row["answer"])
    elements = Elements(answer_part(text) or "")
    if not elements.boxes:
        return NO_ANSWER
    place = elements.boxes[-1]
    content = place.content(elements.text).strip()
    if not content:
        return NO_ANSWER
    # What stands beside the box needs no look if the box itself is wrong.
    if not _are_number(gold, row["answer"], [Stated(content)]):
        return graded(False, content)
    answers = [stated(elements, place, boxed=True), *stated_later(elements, place.end)]
    return graded(_are_number(gold, row["answer"], answers), answers[0].text)
