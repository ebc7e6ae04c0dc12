"""Where in a completion the answer may stand, and how the usual marks around it are read.

All scanners here are linear in the text: model output is hostile and may be long.
"""

from __future__ import annotations

import re
from typing import NamedTuple

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

# Two backslashes are a JSON-escaped one; any other escaped character, \{ and \} above all, is text.
_BOX_TOKEN = re.compile(r"(?=[\\{}])(?:(\\{1,2}boxed\s*\{)|\\.|([{}]))", re.DOTALL)
_END_TOKEN = re.compile(
    r"(?:<\|[\w▁ ]{1,40}\|>(?:\n?(?:user|assistant|system))?|<｜[\w▁ ]{1,40}｜>"
    r"|</s>|<eos>|<end_of_turn>|\[EOS\])\s*\Z"
)
_LONGEST_END = 60


class Span(NamedTuple):
    """A marked answer, such as a complete `\\boxed{…}`: where it stands, and where its content."""

    start: int
    end: int
    inside: int
    """Position at which the content begins."""
    outside: int
    """Position at which the content ends."""

    def content(self, text: str) -> str:
        """Return what stands between the marks."""
        return text[self.inside : self.outside]


def answer_part(text: str) -> str | None:
    """Return what follows the last `</think>`, or the whole text if there is no `<think>`.

    Control tokens at the end, such as `<|im_end|>`, are left out. The result is None if thinking
    was opened and not closed: the model has not begun to answer.
    """
    _, _, rest = text.rpartition(THINK_CLOSE)
    return None if THINK_OPEN in rest else _without_end_tokens(rest)


def _without_end_tokens(text: str) -> str:
    end = len(text)
    while True:
        tail = text[max(end - 2 * _LONGEST_END, 0) : end].rstrip()
        shown = max(end - 2 * _LONGEST_END, 0) + len(tail)
        token = _END_TOKEN.search(text, max(shown - _LONGEST_END, 0), shown)
        if token is None:
            break
        end = token.start()
    return text[:end]


def boxes(text: str) -> list[Span]:
    r"""Return all complete `\boxed{…}`, in the order in which they end.

    If a box holds nothing but another box, the content is that of the inner one. Of nested boxes
    the outer one ends last: `\boxed{6 \boxed{7}}` gives two answers, and its content is not a
    number.
    """
    depth = 0
    opened: list[tuple[int, int, int]] = []  # (depth, start of the box, start of its content)
    found: list[Span] = []
    for token in _BOX_TOKEN.finditer(text):
        if token[1]:
            depth += 1
            opened.append((depth, token.start(), token.end()))
        elif token[2] == "{":
            depth += 1
        elif token[2] and depth:
            if opened and opened[-1][0] == depth:
                _, start, inside = opened.pop()
                outside = token.start()
                inner = found[-1] if found else None
                if inner and inner.start >= inside and _is_all(text, inside, outside, inner):
                    inside, outside = inner.inside, inner.outside
                found.append(Span(start, token.end(), inside, outside))
            depth -= 1
    return found


def _is_all(text: str, start: int, end: int, inner: Span) -> bool:
    """Return whether a box is all there is; margins of nested boxes do not overlap: linear."""
    return not text[start : inner.start].strip() and not text[inner.end : end].strip()


def last_box(text: str) -> str | None:
    r"""Return the content of the last complete `\boxed{…}`, None if no box is complete."""
    found = boxes(text)
    return found[-1].content(text) if found else None


def several_answers(text: str) -> str | None:
    """Return the text from the first answer tag on if a tag stands more than once, and else None.

    If there are several answers, none of them counts.
    """
    if text.count(ANSWER_OPEN) <= 1 and text.count(ANSWER_CLOSE) <= 1:
        return None
    return text[max(text.find(ANSWER_OPEN), 0) :].strip()


def tag_place(text: str) -> Span | None:
    """Return where the first `<answer>…</answer>` stands; None if none is complete."""
    start = text.find(ANSWER_OPEN)
    outside = text.find(ANSWER_CLOSE, start + len(ANSWER_OPEN)) if start >= 0 else -1
    if outside < 0:
        return None
    return Span(start, outside + len(ANSWER_CLOSE), start + len(ANSWER_OPEN), outside)


def tagged_answer(text: str) -> str | None:
    """Return the content of the first `<answer>…</answer>`; None if none is complete."""
    place = tag_place(text)
    return None if place is None else place.content(text)
