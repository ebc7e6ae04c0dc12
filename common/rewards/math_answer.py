r"""MATH: the answer is mathematically the gold, in LaTeX or in plain notation.

The answer is looked for in the answer part: in the last complete `\boxed{…}`, else in the single
`<answer>…</answer>`, else in the last `$…$`, `$$…$$`, `\[…\]` or `\(…\)`, else in what the text
says last. `latex/` reads and compares it.
"""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache

from common.config import RewardsConfig
from common.errors import MissingToolError
from common.rewards.answer_part import answer_part, last_box, several_answers, tagged_answer
from common.rewards.latex.equality import Formula, read_formula, same, same_formula
from common.rewards.latex.reader import read
from common.rewards.latex.shape import Shape
from common.rewards.latex.tokens import UnreadableError
from common.rewards.latex.vocabulary import WORDS_AFTER, WORDS_BEFORE
from common.rewards.rule import NO_ANSWER, GoldError, Judge, Row, Verdict, graded

_MARK = re.compile(r"\\[\[\]()]|\\.|\${1,2}", re.DOTALL)
_SAYS = re.compile(r"answer(?:\s+is)?\s*:|answer\s+is|####", re.IGNORECASE)
_WORD = re.compile(
    r"(?<![\\A-Za-z{])(?!(?:and|or|sin|cos|tan|log|ln|exp|sqrt|pi)(?![A-Za-z]))"
    r"(?:[A-Za-z]{2,}|a(?=\s+[$\\0-9]))"
)
_MATHEMATICS = re.compile(r"[0-9\\]|[A-Za-z]\s*=|[½⅓⅔¼¾π√∞]")


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
    """Return the rule, once it has judged an example, which loads what it needs."""
    judge(r"\boxed{(x+1)^2}", {"answer": "x^2+2x+1"})
    return judge


def read_gold(answer: str) -> Shape | Formula:
    r"""Return the gold as it was read, with or without dollars or `\boxed`; words alone are text.

    Raises:
        GoldError: it is empty, or not mathematics that this rule reads.
    """
    box = last_box(answer)
    return _read_gold(answer if box is None else box)


@lru_cache(maxsize=4096)
def _read_gold(gold: str) -> Shape | Formula:
    try:
        shape = read(gold)
    except UnreadableError as error:
        formula = read_formula(gold)
        if formula is None:
            raise GoldError(str(error)) from None
        return formula
    except RecursionError:
        raise GoldError("is nested too deeply") from None
    return shape


def judge(text: str, row: Row) -> Verdict:
    """Compare the answer with the gold.

    Two answers where one is asked for are wrong, and so is an answer that cannot be read. One that
    exhausts the stack or the memory is a `timeout`, as one that takes too long is.
    """
    gold = read_gold(row["answer"])
    part = answer_part(text) or ""
    box = last_box(part)
    if box is None and (several := several_answers(part)) is not None:
        return graded(False, several)
    found = box if box is not None else find_answer(part)
    if found is None or not found.strip():
        return NO_ANSWER
    found = found.strip()
    try:
        if isinstance(gold, Formula):
            return graded(same_formula(gold, found), found)
        return graded(same(gold, read(found)), found)
    except UnreadableError:
        return graded(False, found)
    except (RecursionError, MemoryError) as error:
        return Verdict(0.0, "timeout", found, f"MATH: {type(error).__name__}")


def find_answer(part: str) -> str | None:
    """Return the answer's text outside of boxes, None if there is none; linear in the text."""
    tagged = tagged_answer(part)
    part = part if tagged is None else tagged
    segment = last_segment(part)
    return segment if segment is not None else _said_last(part.strip())


def last_segment(text: str) -> str | None:
    r"""Return the content of the last complete `$…$`, `$$…$$`, `\[…\]` or `\(…\)`, if there is one.

    As in Markdown, a dollar opens only before something other than space. It closes only after
    something other than space, and not before a digit, so that "$5 and $6" are prices.
    """
    opened: tuple[str, int] | None = None
    last: tuple[int, int] | None = None
    for mark in _MARK.finditer(text):
        sign, start, end = mark[0], mark.start(), mark.end()
        if opened is not None and sign == opened[0] and _closes(text, start, end, sign):
            if text[opened[1] : start].strip():
                last = (opened[1], start)
            opened = None
        elif sign in ("$", "$$") and (opened is None or "$" in opened[0]):
            if sign == "$$" or not text[end : end + 1].isspace():
                opened = (sign, end)
        elif sign in (r"\[", r"\("):
            opened = (r"\]" if sign == r"\[" else r"\)", end)
    return text[last[0] : last[1]] if last else None


def _closes(text: str, start: int, end: int, sign: str) -> bool:
    if sign != "$":
        return True
    return not text[start - 1].isspace() and not text[end : end + 1].isdigit()


def _said_last(text: str) -> str | None:
    """Return the last stretch of mathematics after the last "answer is", or in the last line.

    "14 or 15" is one stretch: "or" and "and" join, other words separate.
    """
    phrases = list(_SAYS.finditer(text))
    lines = (text[phrases[-1].end() :] if phrases else text).strip(" *:\n").splitlines()
    if not lines:
        return None
    line = (lines[0] if phrases else lines[-1]).strip()
    return _last_stretch(line)


def _last_stretch(line: str) -> str:
    """Return the last stretch of mathematics, with a word beside it that changes its value.

    The result is the whole line if it has none.
    """
    words = list(_WORD.finditer(line))
    starts = [0, *(word.end() for word in words)]
    ends = [*(word.start() for word in words), len(line)]
    for i in reversed(range(len(starts))):
        if not _MATHEMATICS.search(line, starts[i], ends[i]):
            continue
        stretch = line[starts[i] : ends[i]].strip(" *")
        if i < len(words) and words[i][0].lower() in WORDS_AFTER and stretch[-1] not in ".,;:!?":
            stretch += f" {words[i][0]}"
        if i and words[i - 1][0].lower() in WORDS_BEFORE and stretch[0] not in ".,;:!?":
            stretch = rf"\text{{{words[i - 1][0]}}} {stretch}"
        return stretch
    return line
