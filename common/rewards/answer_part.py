"""Where in a completion the answer may stand, and how the usual marks around it are read.

All scanners here are linear in the text: model output is hostile and may be long.
"""

from __future__ import annotations

import re

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

# Two backslashes are a JSON-escaped one; any other escaped character, \{ and \} above all, is text.
_BOX_TOKEN = re.compile(r"(?=[\\{}])(?:(\\{1,2}boxed\s*\{)|\\.|([{}]))", re.DOTALL)


def answer_part(text: str) -> str | None:
    """Return what follows the last `</think>`, or the whole text if there is no `<think>`.

    The result is None if thinking was opened and not closed: the model has not begun to answer.
    """
    _, _, rest = text.rpartition(THINK_CLOSE)
    return None if THINK_OPEN in rest else rest


def last_box(text: str) -> str | None:
    r"""Return the content of the last complete `\boxed{…}`, None if no box is complete.

    If a box holds nothing but another box, the content is that of the inner one. Of nested boxes
    the outer one ends last and decides: `\boxed{6 \boxed{7}}` gives two answers, and its content is
    not a number.
    """
    depth = 0
    opened: list[tuple[int, int, int]] = []  # (depth, start of the box, start of its content)
    last: tuple[int, int, str] | None = None  # (start of the box, its end, content)
    for token in _BOX_TOKEN.finditer(text):
        if token[1]:
            depth += 1
            opened.append((depth, token.start(), token.end()))
        elif token[2] == "{":
            depth += 1
        elif token[2] and depth:
            if opened and opened[-1][0] == depth:
                _, start, inside = opened.pop()
                last = (start, token.end(), _content(text, inside, token.start(), last))
            depth -= 1
    return last[2] if last else None


def _content(text: str, start: int, end: int, inner: tuple[int, int, str] | None) -> str:
    """Return the text of a box, or what `inner` holds if that box is all there is."""
    if inner and inner[0] >= start:
        # The margins of nested boxes do not overlap, so that all of them together stay linear.
        margins = text[start : inner[0]] + text[inner[1] : end]
        if not margins.strip():
            return inner[2]
    return text[start:end]


def several_answers(text: str) -> str | None:
    """Return the text from the first answer tag on if a tag stands more than once, and else None.

    If there are several answers, none of them counts.
    """
    if text.count(ANSWER_OPEN) <= 1 and text.count(ANSWER_CLOSE) <= 1:
        return None
    return text[max(text.find(ANSWER_OPEN), 0) :].strip()


def tagged_answer(text: str) -> str | None:
    """Return the content of the first `<answer>…</answer>`; None if none is complete."""
    _, opened, rest = text.partition(ANSWER_OPEN)
    content, closed, _ = rest.partition(ANSWER_CLOSE)
    return content if opened and closed else None
