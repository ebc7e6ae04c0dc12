r"""Where an answer stands in the answer part, for the rules that read mathematics.

The last place decides: the last complete `\boxed{…}`, else the only `<answer>…</answer>`, else what
stands after the last "answer is", "Answer:", "A:" or "####", else the last mathematics in the text.
All scanners here are linear in the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from common.rewards.answer_part import Span, boxes

SAYS = re.compile(
    r"answer\**(?:\s+(?:is|are))?\**\s{0,9}[:：=]|answers?\s+(?:is|are)\b|\#{4}"
    r"|^[ \t*_>-]{0,6}A\**[ \t]?:|^[ \t#*_]{0,9}(?:final\s)?answer[ \t*_]{0,9}$",
    re.IGNORECASE | re.MULTILINE,
)
"""What announces an answer."""
CORRECTION_REACH = 60
"""Characters after "wait" or "actually" within which another answer corrects the one before."""

_MARK = re.compile(r"\\[\[\]()]|\\.|\${1,2}", re.DOTALL)
_NO_WORD = "and|or|sin|cos|tan|log|ln|exp|sqrt|pi"
# With the power of a unit: the 2 of cm^2 and of km/h^2 is no mathematics of its own.
_WORD = re.compile(
    rf"(?<![\\A-Za-z{{])(?!(?:{_NO_WORD})(?![A-Za-z]))"
    r"(?:[A-Za-z]{2,}(?:['’][a-z]{1,2}(?![A-Za-z]))?(?:/[A-Za-z]{1,3})?"
    r"(?:\^\{?-?[0-9]{1,2}\}?|[²³])?|[aA](?=\s+[$\\0-9])|I(?=\s+[a-z]{2})"
    r"|(?<=[.?!])\s+(?=[A-Z]))"
)
_MATHEMATICS = re.compile(r"[0-9０-９\\]|[A-Za-z]\s*=|[½⅓⅔¼¾π√∞]")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?'?")
_IS = re.compile(r"[\s$*)]*(?:is|are|equals|must\s+be|=)(?![A-Za-z])", re.IGNORECASE)
_BETWEEN = re.compile(r"[A-Za-z]{2,}")
_FILLER = frozenset(
    [
        "the",
        "value",
        "of",
        "is",
        "are",
        "be",
        "equal",
        "equals",
        "to",
        "exactly",
        "simply",
        "just",
        "therefore",
        "thus",
        "then",
        "so",
        "hence",
        "indeed",
        "given",
        "by",
        "it",
        "that",
        "about",
        "around",
        "roughly",
        "approximately",
        "approx",
        "nearly",
        "almost",
        "at",
        "most",
        "least",
        "than",
        "less",
        "more",
        "not",
        "negative",
        "minus",
        "over",
        "under",
        "up",
        "within",
        "below",
        "above",
        "option",
        "some",
    ]
)
_CORRECTION = re.compile(
    r"\b(?:wait|actually|correction|oops|sorry|scratch\s+that|i\s+mean|i\s+meant|or\s+rather"
    r"|on\s+second\s+thought|no(?=[,.!;:—–]))\b[\s,.:;!—–-]{1,9}",
    re.IGNORECASE,
)
_OUTER = ' \t\n*`"“”_'
_JOINT_FIRST = re.compile(r"(?:and|or)(?![A-Za-z])\s*")
_JOINT_LAST = re.compile(r"[\s,]{1,6}(?:and|or)\Z")
_SIGNED = re.compile(r"[.–][0-9]")


@dataclass(frozen=True)
class Elements:
    """The pieces of mathematics in a text, as places: formulas, and stretches between words."""

    text: str

    @cached_property
    def boxes(self) -> list[Span]:
        """All complete boxes."""
        return boxes(self.text)

    @cached_property
    def formulas(self) -> list[Span]:
        r"""All complete `$…$`, `$$…$$`, `\[…\]` and `\(…\)`.

        As in Markdown, a dollar opens only before something other than space. It closes only after
        something other than space, and not before a digit, so that "$5 and $6" are prices.
        """
        text = self.text
        found: list[Span] = []
        opened: tuple[str, int, int] | None = None
        for mark in _MARK.finditer(text):
            sign, start, end = mark[0], mark.start(), mark.end()
            if opened is not None and sign == opened[0] and _closes(text, start, end, sign):
                if text[opened[2] : start].strip():
                    found.append(Span(opened[1], end, opened[2], start))
                opened = None
            elif sign in ("$", "$$") and (opened is None or "$" in opened[0]):
                if sign == "$$" or not text[end : end + 1].isspace():
                    opened = (sign, start, end)
            elif sign in (r"\[", r"\("):
                opened = (r"\]" if sign == r"\[" else r"\)", start, end)
        return found

    def formula_around(self, place: Span) -> Span | None:
        """Return the formula that a box stands in."""
        index = bisect_left(self.formulas, place.end, key=lambda formula: formula.outside)
        if index < len(self.formulas) and self.formulas[index].inside <= place.start:
            return self.formulas[index]
        return None

    def within(self, start: int, end: int) -> Iterator[Span]:
        """Yield the formulas and stretches of a region, from its beginning."""
        index = bisect_left(self.formulas, start, key=lambda formula: formula.start)
        while index < len(self.formulas) and self.formulas[index].start < end:
            formula = self.formulas[index]
            yield from self.stretches(start, formula.start)
            yield formula
            start, index = formula.end, index + 1
        if start < end:
            yield from self.stretches(start, end)

    def stretches(self, start: int, end: int) -> Iterator[Span]:
        """Yield the stretches of mathematics between words; "14 or 15" is one, "or" joins."""
        ends = [word.span() for word in _WORD.finditer(self.text, start, end)]
        for word_start, word_end in [*ends, (end, end)]:
            if _MATHEMATICS.search(self.text, start, word_start):
                span = _without_joints(self.text, _trimmed(self.text, start, word_start))
                if span is not None:
                    yield span
            start = word_end

    def last(self) -> Span | None:
        """Return the last formula or stretch of the text, if it has any."""
        start = self.formulas[-1].end if self.formulas else 0
        end = len(self.text)
        while end > start:
            line = max(self.text.rfind("\n", start, end) + 1, start)
            found = list(self.stretches(line, end))
            if found:
                return found[-1]
            end = line - 1
        return self.formulas[-1] if self.formulas else None

    def announced(self, position: int = 0, *, at_once: bool = False) -> Iterator[Span]:
        """Yield what the text says its answers are, from the last to the first after `position`.

        After "answer is" it is what follows at once, and otherwise, unless only such answers are
        asked for, the last mathematics in the line: "Answer: 2 of 3 remain, so 14 are left".
        """
        phrases = list(SAYS.finditer(self.text, position))
        stop = len(self.text)
        for phrase in reversed(phrases):
            start, end = _line(self.text, phrase.end(), stop)
            stop = phrase.start()
            places = list(self.within(start, end))
            first = _said_at_once(self.text, start, places)
            if first is not None:
                yield first
            elif places and not at_once:
                yield places[-1]

    def corrections(self, position: int) -> Iterator[Span]:
        """Yield what the text says after `position` that the answer is instead."""
        for correction in _CORRECTION.finditer(self.text, position):
            stop = min(correction.end() + CORRECTION_REACH, len(self.text))
            start, end = _line(self.text, correction.end(), stop)
            first = next(self.within(start, end), None)
            if first is not None:
                yield first


def announced_text(text: str) -> Span | None:
    """Return the line after the last phrase that announces an answer; it may be words alone."""
    stop = len(text)
    for phrase in reversed(list(SAYS.finditer(text))):
        start, end = _line(text, phrase.end(), stop)
        stop = phrase.start()
        if span := _trimmed(text, start, end):
            return span
    return None


def last_line(text: str) -> Span | None:
    """Return the last line that is not blank."""
    end = len(text.rstrip())
    return _trimmed(text, text.rfind("\n", 0, end) + 1, end)


def _line(text: str, start: int, stop: int) -> tuple[int, int]:
    """Return the rest of the line, or the next line if the rest is blank.

    A formula that is set apart ends where it ends.
    """
    while start < stop and text[start] in _OUTER + ":":
        start += 1
    end = text.find("\n", start, stop)
    end = stop if end < 0 else end
    for opening, closing in ((r"\[", r"\]"), ("$$", "$$")):
        at = text.find(opening, start, end)
        if at >= 0 and (closed := text.find(closing, at + 2, stop)) >= end:
            end = closed + 2
    return start, end


def _closes(text: str, start: int, end: int, sign: str) -> bool:
    if sign != "$":
        return True
    return not text[start - 1].isspace() and not text[end : end + 1].isdigit()


def _trimmed(text: str, start: int, end: int) -> Span | None:
    """Return a region without the marks and the punctuation around it.

    Points that go on, as in 3.14..., are left, and so is a dash that is a minus.
    """
    while start < end and text[start] in _OUTER + ",;:.!?–—=" and not _SIGNED.match(text, start):
        start += 1
    while start < end and text[end - 1] in _OUTER + ",;:?.!(" and text[end - 2 : end] != "..":
        end -= 1
    return Span(start, end, start, end) if start < end else None


def _without_joints(text: str, span: Span | None) -> Span | None:
    """Return a stretch without an "or" or "and" at its ends, which joins it to something else."""
    if span is None:
        return None
    first, last = (
        _JOINT_FIRST.match(text, *span[:2]),
        _JOINT_LAST.search(text, span.end - 9, span.end),
    )
    if last is not None and last.start() < span.start:
        last = None
    return _trimmed(text, first.end() if first else span.start, last.start() if last else span.end)


def _said_at_once(text: str, start: int, places: list[Span]) -> Span | None:
    """Return the first place, or the one it names, unless other words stand before it."""
    for place in places:
        if any(
            word[0].lower() not in _FILLER for word in _BETWEEN.finditer(text, start, place.start)
        ):
            return None
        content = place.content(text).strip()
        if not (_NAME.fullmatch(content) and _IS.match(text, place.end)):
            return place
        start = place.end
    return None
