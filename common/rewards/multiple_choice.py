r"""MULTIPLE_CHOICE: exactly one letter is chosen, and it is the gold.

A choice is marked in a box, in `<answer>`, in parentheses, in bold or after "answer is" or
"Answer:". Only where nothing is marked do capitals that stand alone in prose count. Two different
letters, marked or else unmarked, are no choice; the same letter twice is one.
"""

from __future__ import annotations

import re

from common.rewards.answer_part import answer_part
from common.rewards.verdict import NO_ANSWER, GoldError, Row, Verdict, graded

_GOLD = re.compile(r"\(([A-Za-z])\)|([A-Za-z])[.)]?")

# A letter by itself: no part of a word, a contraction, an abbreviation or P(A). Chinese puts no
# space around it.
_BEFORE = r"(?<![A-Za-z0-9_À-ɏͰ-֏Ḁ-ỿ])(?<![A-Za-z][.'’(])"
_AFTER = r"(?![A-Za-z0-9_À-ɏͰ-֏Ḁ-ỿ(]|[.'’][A-Za-z])"
_LETTER = rf"{_BEFORE}([A-Za-z]){_AFTER}"
_AND = r"(?:,|/|&|;|\band\b|\bor\b)"

# Each quantifier is bounded or ends at a character that it excludes, so that all this is linear.
_BOX = re.compile(r"\\boxed\s{0,9}\{((?:[^{}]|\{[^{}]{0,99}\}){0,99})\}")
_TAG = re.compile(r"<answer>([^<]{0,99})</answer>")
_PARENTHESES = re.compile(rf"{_BEFORE}[(（]\s?\**([A-Za-z])\**\s?[)）]")
_BOLD = re.compile(rf"\*\*\s?\(?{_LETTER}[).:]?\s?\*\*")
_SAID = re.compile(
    r"(?i:answer)(?i:\s{0,9}(?:is|:|=|：)){1,2}"
    r"(?i:\s{0,9}(?:the\s|(?:option|choice|letter)\b\s?))?[\s*_(\[\"'“`$:]{0,9}"
    rf"(?:\\[a-z]+\{{\(?)?(?={_LETTER})(.{{0,40}})"
)
_ALONE = re.compile(rf"\W*{_LETTER}\W*")
_LIST = re.compile(rf"\W*[A-Za-z](?:\W*{_AND}\W*{_LETTER})+\W*", re.IGNORECASE)
_LABEL = re.compile(rf"\W*{_LETTER}\W*[).:]\s*\S")
_MARKUP = re.compile(r"\\[A-Za-z]+|\\.|[{}$]")

# "A car" and "I think" are no choices, "A or B" and "A is right" are; "not B" is none either.
_NEXT = "and|or|is|because|since|as|with"
_IS_WORD = {
    "A": re.compile(rf"\s+(?!(?:{_NEXT}|was|seems|looks|must|should|would|has|it)\b)[a-z]"),
    "I": re.compile(rf"\s+(?!(?:{_NEXT})\b)[a-z]"),
}
_NOT = re.compile(
    rf"(?:\bnot|n't|n’t|\bnor|\bneither)(?:\s(?:option|choice))?\s[(*]{{0,3}}[A-Za-z]{_AFTER}",
    re.IGNORECASE,
)
_CAPITAL = re.compile(rf"{_BEFORE}([A-Z]){_AFTER}")


def read_gold(answer: str) -> str:
    """The gold's letter as a capital; `(B)`, `B.` and `B)` are read too."""
    match = _GOLD.fullmatch(answer.strip())
    if match is None:
        raise GoldError("is no single letter from A to Z")
    return (match[1] or match[2]).upper()


def judge(text: str, row: Row) -> Verdict:
    """A text that chooses no letter has no answer."""
    gold = read_gold(row["answer"])
    part = _NOT.sub(" ", answer_part(text) or "")
    letters = _marked(part) or _unmarked(part)
    if not letters:
        return NO_ANSWER
    return graded(letters == {gold}, ", ".join(sorted(letters)))


def _marked(text: str) -> set[str]:
    letters: set[str] = set()
    for pattern in (_BOX, _TAG):
        for match in pattern.finditer(text):
            letters |= _content(match[1])
    for pattern in (_PARENTHESES, _BOLD):
        letters |= {match[1].upper() for match in pattern.finditer(text)}
    for match in _SAID.finditer(text):
        letters |= _said(match[1], match[2])
    return letters


def _content(content: str) -> set[str]:
    r"""Letters chosen in a box: `B`, `\text{(B)}`, `B) 12`, `A and B`; none in `12` or `Banana`."""
    content = _MARKUP.sub(" ", content)
    if alone := _ALONE.fullmatch(content):
        return {alone[1].upper()}
    if _LIST.fullmatch(content):
        return {letter.upper() for letter in re.findall(_LETTER, content)}
    label = _LABEL.match(content)
    if label is None:
        return set()
    return {label[1].upper()} | {match[1].upper() for match in _PARENTHESES.finditer(content)}


def _said(letter: str, line: str) -> set[str]:
    """Letters after "answer is": the first, and those that "or", "and" or commas add to it."""
    rest = line[1:]
    if letter.upper() in _IS_WORD and _IS_WORD[letter.upper()].match(rest):
        return set()
    if letter.islower() and re.match(r"\s+[^\W\d_]", rest) and not re.match(rf"\s+{_AND}", rest):
        return set()
    added = re.match(rf"(?:[\s)*.]*{_AND}[\s(*]*(?:[A-Za-z]){_AFTER})*", rest)
    return {letter.upper()} | {
        other.upper() for other in re.findall(_LETTER, added[0] if added else "")
    }


def _unmarked(text: str) -> set[str]:
    if alone := _ALONE.fullmatch(text):
        return {alone[1].upper()}
    return {
        match[1]
        for match in _CAPITAL.finditer(text)
        if not (match[1] in _IS_WORD and _IS_WORD[match[1]].match(text, match.end()))
    }
