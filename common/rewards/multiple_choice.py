"""MULTIPLE_CHOICE: exactly one letter is chosen, and it is the gold.

A choice is marked if it stands in a box, in `<answer>`, in parentheses, in bold or after "answer
is" or "Answer:". Options that are restated in their order before a box, a tag or "Answer:" are no
choices. Capital letters that stand alone in prose count only if nothing is marked, and only where a
choice may stand: "I pick B" chooses, "Plan B" names something else. Two different letters, both
marked or both unmarked, are no choice; the same letter twice is one. A letter that adds to a marked
one or corrects it ("A + B", "A. Wait, B") counts as marked too; "cannot be A" and "all but A"
choose nothing, "B or not B" neither, and A' is another thing than A.
"""

from __future__ import annotations

import re

from common.rewards.answer_part import answer_part
from common.rewards.rule import NO_ANSWER, GoldError, Row, Verdict, graded

_GOLD = re.compile(r"\(([A-Za-z])\)|([A-Za-z])[.)]?")

# A letter by itself: no part of a word, a contraction, an abbreviation or P(A). Chinese puts no
# space around it.
_BEFORE = r"(?<![A-Za-z0-9_À-ɏͰ-֏Ḁ-ỿ])(?<![A-Za-z][.'’(])"
_AFTER = r"(?![A-Za-z0-9_À-ɏͰ-֏Ḁ-ỿ(]|[.'’][A-Za-z])"
_LETTER = rf"{_BEFORE}([A-Za-z]){_AFTER}"
_AND = r"(?:[,/&;+=|]|\band\b|\bn?or\b|\bvs\b|\bversus\b)"

# Each quantifier is bounded or ends at a character that it excludes, so that all this is linear.
_BOX = re.compile(r"\\boxed\s{0,9}\{((?:[^{}]|\{[^{}]{0,99}\}){0,99})\}")
_TAG = re.compile(r"<answer>([^<]{0,99})</answer>")
_PARENTHESES = re.compile(rf"{_BEFORE}[(（]\s?\**([A-Za-z])\**\s?[)）]")
_BOLD = re.compile(rf"\*\*\s?\(?{_LETTER}[).:]?\s?\*\*")
_SAID = re.compile(
    r"(?i:answer)(?i:\s{0,9}(?:is|:|=|：)){1,2}"
    r"(?i:\s{0,9}(?:the\s|(?:option|choice|letter)\b\s?))?[\s*_(\[\"'“`$:]{0,9}"
    rf"(?:\\[a-z]+\{{\(?)?(?={_LETTER}(.{{0,40}}))",
    re.DOTALL,
)
_ALONE = re.compile(rf"\W*{_LETTER}\W*")
_LIST = re.compile(rf"\W*[A-Za-z](?:\W*{_AND}\W*{_LETTER})+\W*", re.IGNORECASE)
_LABEL = re.compile(rf"\W*{_LETTER}\W*[).:]\s*\S")
_MARKUP = re.compile(r"\\[A-Za-z]+|\\.|[{}$]")

# "A car" and "I think" are no choices, "A or B" and "A is right" are; "not B" is none either. The
# looks ahead, here and below, pass over prose quickly.
_NEXT = "and|or|is|because|since|as|with"
_IS_WORD = {
    "A": re.compile(rf"\s+(?!(?:{_NEXT}|was|seems|looks|must|should|would|has|it)\b)[a-z]"),
    "I": re.compile(rf"\s+(?!(?:{_NEXT})\b)[a-z]"),
}
_NOT = re.compile(
    r"(?=[aceinor'’])(?:\b(?:can)?not|n['’]t|\bnever|\bneither|\bexcept(?:\sfor)?"
    r"|\b(?:other|rather)\sthan|\binstead\sof|\b(?:all|any\w{1,5}|every\w{1,5})\sbut|\bruled?\sout|\bexclud(?:e|es|ed|ing))"
    r"(?:\s(?:be|the|option|choice|answer|necessarily|simply|just)){0,3}"
    rf"\s[(*]{{0,3}}[A-Za-z]{_AFTER}"
    rf"(?:[)*]{{0,3}},?\s{{1,3}}n?or\s[(*]{{0,3}}[A-Za-z]{_AFTER}){{0,9}}",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"(?<!\w)[A-Za-z][)*]{0,3}\s(?:is|was)"
    r"(?:n['’]t|\s(?:not|never|wrong|incorrect|false|impossible|excluded|eliminated))\b",
    re.IGNORECASE,
)
# What changes a letter: A' and A^c, ¬A and \overline{A} are no A. 'A' is one.
_PRIMED = re.compile(rf"\W*(?<!['‘]){_LETTER}\s?['’′^]")
_NEGATED = re.compile(r"¬|\\(?:neg|lnot|not|overline|bar|prime|[bx]?cancel|sout)(?![A-Za-z])")

# What a marked letter goes on with: letters that add to it, a letter that ends its line, a
# correction. "Answer: A, a car" adds none, nor does "A\nB is false".
_ADDED = re.compile(
    rf"(?:[\s)*.]{{0,9}}(?:{_AND}|[-–—](?=[A-Z]))[\s(*]{{0,9}}"
    rf"(?:(?:maybe|perhaps|possibly|probably|even|also|else|option|choice)\s){{0,2}}[(*]{{0,3}}"
    rf"(?:[AaI](?!\s(?!and\b|n?or\b)[a-z])|[B-HJ-Zb-z]){_AFTER})+"
)
_ENDS = re.compile(rf"[\s.*–—-]{{1,9}}([A-Z]){_AFTER}[)*]{{0,3}}[.!]?\*{{0,2}}\s*(?:\n|$)")
_CORRECTION = re.compile(
    r"(?=[achinorsw])\b(?:wait|no|actually|sorry|correction|oops|hmm|rather|instead)\b"
    r"[\s,.:;!–—-]{1,9}"
    r"(?:(?:it|it's|it’s|is|be|the|answer|option|maybe|should|i|mean|make|that|actually|no)\s){0,5}"
    rf"[(*]{{0,3}}(?-i:([B-HJ-Z]|A(?!\s(?!is\b|n?or\b|and\b)[a-z])|I(?!\s[a-z]))){_AFTER}",
    re.IGNORECASE,
)
_CONTRADICTION = re.compile(
    rf"{_LETTER}[)*.,]{{0,3}}\s(?:or|and|but)\s(?:also\s)?not\s[(*]{{0,3}}\1{_AFTER}", re.IGNORECASE
)
# Words after which a letter in prose is a choice; after any other it is part of a name.
_CHOOSING = frozenset(
    [
        "a",
        "an",
        "the",
        "is",
        "was",
        "be",
        "are",
        "it",
        "its",
        "it's",
        "option",
        "options",
        "choice",
        "choices",
        "letter",
        "answer",
        "answers",
        "choose",
        "chose",
        "pick",
        "picked",
        "select",
        "selected",
        "guess",
        "say",
        "take",
        "go",
        "with",
        "for",
        "therefore",
        "so",
        "thus",
        "hence",
        "then",
        "but",
        "and",
        "or",
        "nor",
        "either",
        "just",
        "only",
        "probably",
        "maybe",
        "perhaps",
        "to",
        "of",
        "that",
        "response",
        "alternative",
        "correct",
        "right",
        "i'm",
        "mean",
        "actually",
        "definitely",
        "clearly",
        "simply",
        "must",
        "case",
        "statement",
    ]
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'’]*")
_CAPITAL = re.compile(rf"{_BEFORE}([A-Z]){_AFTER}")


def read_gold(answer: str) -> str:
    """Return the gold's letter as a capital; `(B)`, `B.` and `B)` are read too.

    Raises:
        GoldError: it is not a single letter.
    """
    match = _GOLD.fullmatch(answer.strip())
    if match is None:
        raise GoldError("is no single letter from A to Z")
    return (match[1] or match[2]).upper()


def judge(text: str, row: Row) -> Verdict:
    """Compare the chosen letter with the gold; a text that chooses no letter has no answer."""
    gold = read_gold(row["answer"])
    whole = answer_part(text) or ""
    part = _WRONG.sub(" ", _NOT.sub(" ", whole))
    letters = _marked(part)
    if not letters and (letters := _unmarked(part)):
        letters |= _denied(whole, letters)
    if not letters:
        return NO_ANSWER
    letters |= {match[0] for match in _CONTRADICTION.finditer(whole)}
    return graded(letters == {gold}, ", ".join(sorted(letters)))


def _denied(text: str, chosen: set[str]) -> set[str]:
    """Return the words that deny a chosen letter, which differ from any letter."""
    denied = {match[0].strip() for pattern in (_NOT, _WRONG) for match in pattern.finditer(text)}
    return {words for words in denied if not chosen.isdisjoint(re.findall(_LETTER, words))}


def _marked(text: str) -> set[str]:
    letters: set[str] = set()
    said_from = len(text)
    for pattern in (_BOX, _TAG, _SAID):
        for match in pattern.finditer(text):
            chosen = (
                _said(text, match.start(1), match[2]) if pattern is _SAID else _content(match[1])
            )
            if chosen:
                said_from = min(said_from, match.start())
            letters |= chosen
    for pattern in (_PARENTHESES, _BOLD):
        marks = list(pattern.finditer(text))
        restated = _restated(text, marks, said_from) if letters else 0
        letters |= {match[1].upper() for match in marks[restated:]}
    return letters


def _restated(text: str, marks: list[re.Match[str]], said_from: int) -> int:
    """Return how many of the marked letters restate the options: A 12, B 14, C 16."""
    count = 0
    for mark in marks:
        if mark.start() >= said_from or mark[1].upper() != chr(ord("A") + count):
            break
        end = marks[count + 1].start() if count + 1 < len(marks) else said_from
        option = text[mark.end() : end].strip(" \t\n.,:;*")
        if not option or re.fullmatch(rf"{_AND}", option, re.IGNORECASE):
            break
        count += 1
    return count if count > 1 else 0


def _content(content: str) -> set[str]:
    r"""Return the letters chosen in a box: one in `B`, `\text{(B)}`, `B) 12`, two in `A and B`."""
    if _NEGATED.search(content) or _PRIMED.match(_MARKUP.sub("", content)):
        return {content.strip()}
    content = _MARKUP.sub(" ", content)
    if alone := _ALONE.fullmatch(content):
        return {alone[1].upper()}
    if _LIST.fullmatch(content):
        return {letter.upper() for letter in re.findall(_LETTER, content)}
    label = _LABEL.match(content)
    if label is None:
        several = {match[1] for match in _CAPITAL.finditer(content)}
        return several if len(several) > 1 else set()
    marked = {match[1].upper() for match in _PARENTHESES.finditer(content)}
    return {label[1].upper()} | marked | _joined(content[label.end(1) :])


def _said(text: str, at: int, rest: str) -> set[str]:
    """Return the letter that stands after "answer is", and those that the rest adds to it."""
    letter = text[at]
    if _PRIMED.match(text, at):
        return {text[at : at + 2]}
    if letter.upper() in _IS_WORD and _IS_WORD[letter.upper()].match(rest):
        return set()
    if letter.islower() and re.match(r"\s+[^\W\d_]", rest) and not re.match(rf"\s+{_AND}", rest):
        return set()
    return {letter.upper()} | _joined(rest)


def _joined(rest: str) -> set[str]:
    """Return the letters that the text after a marked letter adds to it."""
    letters: set[str] = set()
    if added := _ADDED.match(rest):
        letters |= {other.upper() for other in re.findall(_LETTER, added[0])}
    if ends := _ENDS.match(rest):
        letters.add(ends[1])
    if correction := _CORRECTION.search(rest):
        letters.add(correction[1])
    return letters


def _unmarked(text: str) -> set[str]:
    if alone := _ALONE.fullmatch(text):
        return {text.strip() if _PRIMED.match(text) else alone[1].upper()}
    return {
        _named(text, match)
        for match in _CAPITAL.finditer(text)
        if not (match[1] in _IS_WORD and _IS_WORD[match[1]].match(text, match.end()))
    }


def _named(text: str, match: re.Match[str]) -> str:
    """Return the letter, with the word before it if that makes it a name: `Plan B`."""
    before = text[max(0, match.start() - 33) : match.start()]
    if before[-1:] not in (" ", "\t", "-") or before[-2:-1] in (" ", "-"):
        return match[1]
    word = before[:-1].replace("-", " ").split()[-1:]
    if not word or len(word[0]) == 1 or not _WORD.fullmatch(word[0]):
        return match[1]
    is_choice = word[0].lower().replace("’", "'") in _CHOOSING
    return match[1] if is_choice else f"{word[0]} {match[1]}"
