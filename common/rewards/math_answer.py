r"""MATH: the answer is mathematically the gold, in LaTeX or in plain notation.

`places.py` says where the answer stands, `neighbours.py` what stands beside it and belongs to it,
and `latex/` reads and compares it.
"""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache

from common.config import RewardsConfig
from common.errors import MissingToolError
from common.rewards import math_verify_judge
from common.rewards.answer_part import (
    answer_part,
    several_answers,
    tag_place,
    tagged_answer,
)
from common.rewards.latex.equality import Formula, read_formula, same, same_formula, same_notation
from common.rewards.latex.reader import read
from common.rewards.latex.shape import Shape, Text, Value
from common.rewards.latex.tokens import UnreadableError
from common.rewards.neighbours import Stated, stated, stated_later
from common.rewards.places import Elements, announced_text, last_line
from common.rewards.rule import NO_ANSWER, GoldError, Judge, Row, Verdict, graded

_WORDY = re.compile(r"[^0-9\\]*")
_APPROXIMATE = re.compile(r"\A\s*\$?\s*(?:\\approx(?![A-Za-z])|≈)")
_LETTER_UNIT = re.compile(
    r"(.*[0-9})])(?:\s+((?:k|c|m|d)?[msghLlNJW](?:/(?:s|h|min|m))?)(?:\^\{?([-−]?[123])\}?|([²³]))?"
    r"|\s*(m)([²³]))"
)


def require(rewards: RewardsConfig) -> None:
    """Check that math-verify is installed.

    Raises:
        MissingToolError: it is not.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise MissingToolError(
            "verify_type MATH needs the package math-verify: pip install math-verify"
        )


def open_rule(rewards: RewardsConfig) -> Judge:
    """Return the recipe's judge, once it has judged an example, which loads what it needs."""
    chosen = judge if rewards.math.judge == "strict" else math_verify_judge.judge
    chosen(r"\boxed{(x+1)^2}", {"answer": "x^2+2x+1"})
    return chosen


def read_gold(answer: str) -> Shape | Formula:
    r"""Return the gold as it was read, with or without dollars or `\boxed`; words alone are text.

    Several boxes are a list if words or commas join them, as they are in an answer.

    Raises:
        GoldError: it is empty, not mathematics that this rule reads, or has several boxes that
            differ and are not joined.
    """
    return _read_gold(answer)


@lru_cache(maxsize=4096)
def _read_gold(answer: str) -> Shape | Formula:
    elements = Elements(answer)
    gold = _APPROXIMATE.sub("", answer)
    if elements.boxes:
        whole = stated(elements, elements.boxes[-1], boxed=True)
        gold = whole.parts[-1] if _says_one(whole.parts) else whole.text
        contents = {box.content(answer).strip() for box in elements.boxes}
        if len(contents) > 1 and len(contents) > gold.count(",") + 1:
            raise GoldError("has several boxes that differ; join them by commas or leave one")
    try:
        return read(gold)
    except UnreadableError as error:
        formula = read_formula(gold)
        if formula is None:
            raise GoldError(str(error)) from None
        return formula
    except RecursionError:
        raise GoldError("is nested too deeply") from None


def _says_one(parts: tuple[str, ...]) -> bool:
    """Return whether answers that are joined are one, said in several ways: "1/5, or 20 %"."""
    try:
        first, *others = map(read, parts or ("",))
        return bool(others) and all(same(first, other) for other in others)
    except UnreadableError:
        return False


def judge(text: str, row: Row) -> Verdict:
    """Compare the answer with the gold.

    Two answers where one is asked for are wrong, and so is an answer that cannot be read. One that
    exhausts the stack or the memory is a `timeout`, as one that takes too long is.
    """
    gold = read_gold(row["answer"])
    part = answer_part(text) or ""
    answers = find_answers(part, is_wordy=_is_wordy(gold, row["answer"]))
    if isinstance(answers, str):
        return graded(False, answers)
    if not answers or not answers[0].text.strip():
        return NO_ANSWER
    found = answers[0].text
    try:
        return graded(all(_is_said(gold, row["answer"], answer) for answer in answers), found)
    except UnreadableError:
        return graded(False, found)
    except (RecursionError, MemoryError) as error:
        return Verdict(0.0, "timeout", found, f"MATH: {type(error).__name__}")


def _is_wordy(gold: Shape | Formula, written: str) -> bool:
    """Return whether the gold is words or letters, which stand in sentences like any others."""
    return isinstance(gold, Text) or _WORDY.fullmatch(written) is not None


def _is_said(gold: Shape | Formula, written: str, answer: Stated) -> bool:
    """Return whether an answer is the gold, or says it in several ways: "1/2, or 50%".

    An approximation is the gold only if that is a decimal, which may be rounded itself.
    """
    if answer.approximate and "." not in written:
        return False
    if isinstance(gold, Formula):
        return same_formula(gold, answer.text)
    if same_notation(answer.text, written):
        return True
    try:
        if _is_gold(gold, answer.text):
            return True
    except UnreadableError:
        if not answer.parts:
            raise
    return bool(answer.parts) and all(_is_gold(gold, part) for part in answer.parts)


def _is_gold(gold: Shape, answer: str) -> bool:
    failed: UnreadableError | None = None
    for way in _ways_to_read(gold, answer):
        try:
            if same(gold, read(way)):
                return True
        except UnreadableError as error:
            failed = error
    if failed is not None:
        raise failed
    return False


def _ways_to_read(gold: Shape, answer: str) -> list[str]:
    """Return the answer, and with a unit of one letter if the gold is a number: `5 m²`."""
    ways = [answer]
    if isinstance(gold, Value) and gold.exact is not None:
        unit = _LETTER_UNIT.fullmatch(answer.strip())
        if unit is not None:
            power = unit[3] or {"²": "2", "³": "3"}.get(unit[4] or unit[6] or "", "")
            ways.append(rf"{unit[1]}\text{{ {unit[2] or unit[5]}{'^' + power if power else ''}}}")
    return ways


def find_answers(part: str, *, is_wordy: bool = False) -> list[Stated] | str:
    """Return the answer that decides, and those stated after it, which must agree with it.

    The result is a text if it is two answers in two tags, and empty if there is no answer. Linear
    in the text.
    """
    elements = Elements(part)
    if elements.boxes:
        place = elements.boxes[-1]
        return [stated(elements, place, boxed=True), *stated_later(elements, place.end)]
    if (several := several_answers(part)) is not None:
        return several
    tagged = tagged_answer(part)
    if tagged is not None:
        found = _found(Elements(tagged), is_wordy=is_wordy)
        tag = tag_place(part)
        if not found or tag is None:
            return []
        whole = stated(elements, tag, boxed=False, content=found[0].text)
        approximate = whole.approximate or found[0].approximate
        return [Stated(whole.text, approximate), *found[1:], *stated_later(elements, tag.end)]
    return _found(elements, is_wordy=is_wordy)


def _found(elements: Elements, *, is_wordy: bool) -> list[Stated]:
    """Return the answer outside of boxes and tags, and those stated after it."""
    text = elements.text
    place = next(elements.announced(), None)
    if is_wordy:
        if place is None or text[place.start] not in "$\\":
            words = announced_text(text)
            last = elements.formulas[-1] if elements.formulas else last_line(text)
            place = words or last
    elif place is None:
        place = elements.last() or announced_text(text) or last_line(text)
    if place is None:
        return []
    return [stated(elements, place, boxed=False), *stated_later(elements, place.end)]
