r"""What stands beside an answer and belongs to it: `at most $5$` and `\boxed{5} million` are not 5.

The policy, for the rules that read mathematics: the words and signs directly before and after an
answer, in its sentence, are part of what is said. If they change its value, so does the answer; if
they join another answer to it, the answer is a list. An approximation (≈, about) is told apart,
since a gold in decimals may be rounded itself.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import islice
from typing import NamedTuple

from common.rewards.answer_part import ANSWER_OPEN, Span, tagged_answer
from common.rewards.latex.vocabulary import SCALE_WORDS, unit_name
from common.rewards.places import Elements

REACH = 200
"""Characters before and after an answer that are looked at."""
MOST_JOINED = 64
MOST_LATER = 8
"""How many answers after the one that decides are compared with the gold, too."""

_CHANGED = r"\text{%s}"

# Before. All of these end where the answer begins, and look at `REACH` characters only.
_SPACE = r"(?:\s|~|\\[,;:! ]|\\(?:left|displaystyle|textstyle|[bB]ig+l?)\b)"
_SPACE_BEFORE = re.compile(rf"{_SPACE}+\Z")
_MARK_BEFORE = r"[$*_`\"“'‘]|\\[(\[]|\\{1,2}boxed\s?\{|<answer>"
_MARKS_BEFORE = re.compile(rf"(?:[\s:]|{_MARK_BEFORE})\Z")
_SEPARATED = re.compile(
    r"(?:[=:,;.&|(\[∈≡]|\\\\|\\q?quad|\\(?:in|equiv|implies|iff|therefore|to|[A-Za-z]*arrow)"
    r"|[=-]>|→|⇒|∴)\Z"
)
_RELATION = re.compile(
    r"(?:\\(?:approx|sim|simeq|le|leq|leqslant|ge|geq|geqslant|ne|neq|lt|gt|pm|mp)|(?<![=-])>"
    r"|[<≤≥≠≈±~])\Z"
)
_TAG_BEFORE = re.compile(r"</?[a-z_]{1,20}>\Z", re.IGNORECASE)
_APPROXIMATE = re.compile(r"\\(?:approx|sim|simeq)|[≈~]")
_SIGN = re.compile(r"([-−–+])\s*\Z")
_SIGN_BEFORE = re.compile(rf"(?:^|[\s(\[=:$])([-−–+])(?:{_MARK_BEFORE})*\Z")
_CONTINUED = re.compile(r"(?:[0-9]|[0-9]\s?[/×÷·^]\s?(?:\$|\\\()?|~~(?:\$|\\\()?)\Z")
_UNARY = re.compile(r"(?:^|[=:,;(\[{&<>≤≥≈]|[A-Za-z]{2,}|\\\\)\s*[-−–+]\s*\Z")
_BULLET = re.compile(r"(?:^|\n)[ \t]*[-–+*>][ \t]+\Z")
_TEXT_BEFORE = re.compile(r"\\(?:text\w*|mathrm|mbox)\s*\{([^{}]{0,99})\}\Z")
_SIDE = re.compile(r"(?:[,;&=]|\\\\|\\q?quad|\\[A-Za-z]*arrow|\\implies|\})([^,;&=]{0,99})\Z")
_WORDS_BEFORE = re.compile(
    r"\b(?:cannot|never|except|excluding|negative|minus|plus|times|over|mod|modulo|twice|thrice"
    r"|half|double|triple|than|most|least|under|below|above|nearly|almost|exceeds?|exceeding|beyond"
    r"|up\s+to|not(?:\s+(?:be|equal|equal\s+to|the|simply|just))?"
    r"|(?:anything|everything|nothing|any|all)\s+but|instead\s+of"
    r"|n['’]t(?:\s+(?:be|equal|equal\s+to|the|simply|just))?"
    r"|(?:root|square|cube|factorial|log|logarithm|multiples?|powers?|reciprocal|inverse|negative"
    r"|opposite|half|third|quarter|percent|tens|dozens?|hundreds?|thousands?|millions?|billions?)"
    r"\s+of|(?:multiple|divisor|divisible)\s+(?:of|by))\Z",
    re.IGNORECASE,
)
_CONTRACTED = re.compile(r"n['’]t(?:\s+(?:be|equal|equal\s+to|the|simply|just))?\Z")
_APPROXIMATELY = re.compile(
    r"\b(?:approximately|approx\.?|about|around|roughly|circa|ca\.?)\Z", re.I
)

# After
_MARKS_AFTER = re.compile(
    r"(?:[ \t]{0,9}(?:\n[ \t]{0,9})?(?:\$\$|\\\]))?"
    r"(?:[ \t*`\"”]|\\q?quad\b|\$(?!\d)|\\\)|\}|_(?![A-Za-z0-9{])|</answer>"
    r"|\\right\b\.?|\\[,;:! ])*"
)
_SEPARATES = re.compile(
    r"\\\\|&|\\q?quad|\\(?:pmod|implies|iff|therefore|because|[A-Za-z]*arrow)"
    r"|\\text\w*\s*\{\s*(?:,|\()|\\end\b"
)
_SPACE_AFTER = re.compile(rf"(?:{_SPACE}|\\q?quad\b|\\right\b)*")
_PER_CENT = re.compile(r"\\?%|per\s?cent\b|percentage(?:\s+points?)?\b|pct\b", re.IGNORECASE)
_OPERATION = re.compile(
    r"(?:\^|[²³]|!(?=[=0-9])|\*\s?[0-9]|/\s?[0-9]|[×÷·]|[-−–+]\s?[0-9$\\]|\+\s?C(?![A-Za-z])"
    r"|=\s?(?![A-Za-z](?![A-Za-z0-9(]))\S|<(?!/?[a-z|｜])|[>≤≥≈≠±]|[0-9]|_[A-Za-z0-9{]"
    r"|\\(?:times|cdot|div|pm|frac|sqrt|pi|le|ge|ne|approx)\b|(?:plus|minus|times|divided\s+by|mod"
    r"|over|to|to\s+the\s+power)\s+[0-9$\\])[^\s,;.]{0,40}"
)
_JOINS = re.compile(
    r"\s*(?:(?:,|;|/|&|\\text\w*\s*\{\s*,?)?\s*(?:\b(and|or|vs\.?|versus)\b)|(?:,|;|/|&))"
    r"(?:\s*\})?(?:\s|\\q?quad\b|\\[,;:! ])*"
    r"(?:(?:either|maybe|perhaps|possibly|probably|also|even|else|it|is|be|could|might|may)\s+){0,4}"
    r"[\s$*_(`\"“]*(?:\\[(\[]\s*)?(?:[A-Za-z](?:_[A-Za-z0-9])?\s*=\s*)?[\s$]*",
    re.IGNORECASE,
)
_NAME_BEFORE = re.compile(r"(?<![A-Za-z\\])([A-Za-z](?:_[A-Za-z0-9])?)\s*=\s*\Z")
_NUMBER = re.compile(r"(?:\\?\$)?[-−+]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?")
_NUMBER_BEFORE = re.compile(
    r"([-−]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?)[*$`\"”)\s]{0,9}"
    r",?\s{0,9}\b(?:or|and)\b\s{0,9}(?:(?:maybe|perhaps|possibly|probably|even|is|it)\s+){0,3}"
    r"[\s$*_(`\"“]{0,9}(?:\\[(\[]\s?)?\Z",
    re.IGNORECASE,
)
_OR_BEFORE = re.compile(
    r"[0-9½¼¾][*$%`\"”)\s\\]{0,9},?\s{0,9}\bor\s{1,9}"
    rf"(?:(?:maybe|perhaps|possibly|probably|even|is|it)\s+){{0,3}}(?:[\s(]|{_MARK_BEFORE}){{0,9}}\Z",
    re.IGNORECASE,
)
_CHANGE = re.compile(
    r"(?:or\s+(?:more|less|fewer|greater|higher|lower|so|above|below|under|over|beyond|larger"
    r"|smaller|older|younger|better|later|earlier|not)"
    r"|and\s+(?:up|above|over|below|under|beyond|more|a\s+half|a\s+quarter)"
    r"|at\s+(?:most|least|minimum|maximum)|approximately|roughly|give\s+or\s+take|-?ish"
    r"|squared|cubed|factorial|base\s+\d"
    r"|(?:is|was|are|were|would\s+be|seems?|looks?)\s?(?:not|n['’]t|never|wrong|incorrect|false|untrue"
    r"|impossible|excluded|invalid|too\s+(?:big|small|low|high|large|much|many|few|little))"
    r"|(?:is|was|are|were|does|do|did|could|would|should|ca)n['’]t|cannot|can\s?not"
    r"|(?:does|do|did|can|could|would|will)\s+not|[,;]?\s*not\b(?=\s+(?:correct|right|the\s+answer)))"
    r"(?![A-Za-z])",
    re.IGNORECASE,
)
_SCALE = re.compile(
    rf"-?\s?({'|'.join(sorted(SCALE_WORDS, key=len, reverse=True))})(?![A-Za-z])", re.I
)
_UNIT = re.compile(
    r"((?:square|sq\.?|cubic)\s)?([A-Za-z]{1,12}|[€£¢])"
    r"(/[A-Za-z]{1,4}|\s+per\s+[A-Za-z]{1,9})?(\^\{?-?[123]\}?|[²³]|\s(?:squared|cubed)\b)?"
)
# 5K are five thousands, 5 K is a temperature.
_SCALE_LETTER = re.compile(r"(?<!\s)([kK])(?![A-Za-z])|\s?([MB])(?![A-Za-z])")
_SCALE_LETTERS = {"k": "thousand", "K": "thousand", "M": "million", "B": "billion"}
_LETTER_UNITS = frozenset("msghlLg")


class Stated(NamedTuple):
    """An answer with what stands beside it."""

    text: str
    approximate: bool = False
    """Whether it is said to be an approximation."""
    parts: tuple[str, ...] = ()
    """The answers that are joined to one list, if there are several."""


def stated(elements: Elements, place: Span, *, boxed: bool, content: str | None = None) -> Stated:
    """Return the answer at `place` together with what stands directly beside it.

    If other answers are joined to it, the result is a list of all of them. `content` may be given
    for an answer whose own text has been read already.
    """
    text = elements.text
    formula = elements.formula_around(place) if boxed else None
    content = place.content(text).strip() if content is None else content
    if content.startswith("~~"):
        return Stated(f"{_CHANGED % 'struck out'} {content}")
    content, after = _with_after(text, place, formula, content)
    content, approximate = _with_before(text, place, formula, content)
    earlier, later = _joined_before(elements, place, boxed), _joined_after(elements, after)
    if not (earlier or later):
        return Stated(content, approximate)
    joined = (*earlier, _name_before(text, place) + content, *later)
    return Stated(", ".join(joined), approximate, joined)


def _with_before(text: str, place: Span, formula: Span | None, content: str) -> tuple[str, bool]:
    """Return the content with what changes it before it, and whether it is approximate."""
    if formula is not None:
        left = text[max(formula.inside, place.start - REACH) : place.start]
        left = _without_space(left)
        if left:
            return _after_mathematics(left, content)
    start = place.start if formula is None else formula.start
    left = text[max(0, start - REACH) : start]
    if _BULLET.search(left) or left[-1:] == "\n":
        return content, False
    left = left[left.rfind("\n") + 1 :]
    if _CONTINUED.search(left):
        return f"{_CHANGED % 'part of more'} {content}", False
    if sign := _SIGN_BEFORE.search(left):
        return (f"-({content})" if sign[1] != "+" else content), False
    while marks := _MARKS_BEFORE.search(left):
        left = left[: marks.start()]
    if _TAG_BEFORE.search(left):
        return content, False
    if relation := _RELATION.search(left):
        return _related(left, relation, content)
    return _after_words(left, content)


def _without_space(left: str) -> str:
    while space := _SPACE_BEFORE.search(left):
        left = left[: space.start()]
    while left.endswith("{") and not re.search(r"[\\}A-Za-z^_\]][A-Za-z]*\{\Z", left):
        left = left[:-1].rstrip()
    return left


def _after_mathematics(left: str, content: str) -> tuple[str, bool]:
    """Return the content after other notation in the same formula."""
    if relation := _RELATION.search(left):
        return _related(left, relation, content)
    if _SEPARATED.search(left):
        return content, False
    if words := _TEXT_BEFORE.search(left):
        return _after_words(words[1].rstrip(" :$~"), content)
    if left.endswith((r"\text{", r"\mathbf{", r"\textbf{", r"\color{red}{", r"\bm{")):
        return content, False
    if _SIGN.search(left) and _UNARY.search(left):
        return (content if left.endswith("+") else f"-({content})"), False
    return _CHANGED % "part of more" + content, False


def _related(left: str, relation: re.Match[str], content: str) -> tuple[str, bool]:
    sign = relation[0]
    if _APPROXIMATE.fullmatch(sign):
        return content, True
    side = _SIDE.search(left[: relation.start()])
    name = side[1] if side else left[: relation.start()]
    return f"{name.strip() if re.search('[0-9A-Za-z]', name) else 'x'} {sign} {content}", False


def _after_words(left: str, content: str) -> tuple[str, bool]:
    if _APPROXIMATELY.search(left):
        return content, True
    words = _WORDS_BEFORE.search(left) or _CONTRACTED.search(left)
    return (f"{_CHANGED % words[0]} {content}" if words else content), False


def stated_number(text: str, start: int, end: int, content: str) -> Stated:
    """Return the number at a place in prose, as `content`, with what changes it beside it.

    Other numbers before it are no part of it, unless "or" joins them: of several, the last decides.
    """
    place = Span(start, end, start, end)
    content, _ = _with_words_after(text, content, end)
    content, approximate = _with_before(text, place, None, content)
    left = text[max(0, start - REACH) : start]
    if _OR_BEFORE.search(left[left.rfind("\n") + 1 :]):
        content = rf"{_CHANGED % 'or'} {content}"
    return Stated(content, approximate)


def stated_later(elements: Elements, position: int) -> list[Stated]:
    """Return what the text states as its answer after the one that decides."""
    places: list[Span] = []
    text = elements.text
    if (tagged := tagged_answer(text[position:])) is not None and tagged.strip():
        start = text.find(ANSWER_OPEN, position) + len(ANSWER_OPEN)
        places.append(Span(start, start + len(tagged), start, start + len(tagged)))
    for found in (elements.announced(position, at_once=True), elements.corrections(position)):
        places += islice(found, MOST_LATER)
    return [stated(elements, place, boxed=False) for place in places]


def _with_after(text: str, place: Span, formula: Span | None, content: str) -> tuple[str, int]:
    """Return the content with what changes it after it, and where that ends."""
    end = place.end
    if formula is not None:
        start = _SPACE_AFTER.match(text, end, formula.outside)
        rest_from = start.end() if start else end
        rest = text[rest_from : min(formula.outside, rest_from + REACH)]
        if separator := _SEPARATES.search(rest):
            rest = rest[: separator.start()]
        if rest.strip(" .,;!\n") and not _JOINS.match(rest):
            return _appended(content, rest.strip()), formula.end
        end = formula.end if not rest.strip(" .,;!\n") else rest_from
        if end != formula.end:
            return content, end
    return _with_words_after(text, content, end)


def _appended(content: str, rest: str) -> str:
    """Return the content and the notation after it, kept apart where they would run together."""
    apart = rest[0] in "^_!'(" or rest[0].isalnum()
    return f"({content}){rest}" if apart else f"{content} {rest}"


def _with_words_after(text: str, content: str, end: int) -> tuple[str, int]:
    marks = _MARKS_AFTER.match(text, end)
    end = marks.end() if marks else end
    line_end = text.find("\n", end, end + REACH)
    rest = text[end : line_end if line_end >= 0 else end + REACH]
    if _PER_CENT.match(rest):
        return content + r"\%", end + len(rest)
    if operation := _OPERATION.match(rest):
        return _appended(content, operation[0].strip("$ ")), end + operation.end()
    if letter := _SCALE_LETTER.match(text, end):
        scale = _SCALE_LETTERS[letter[1] or letter[2]]
        return f"{content} {_CHANGED % scale}", letter.end()
    if change := _CHANGE.match(rest) or _SCALE.match(rest):
        return f"{content} {_CHANGED % change[0].strip(' -')}", end + change.end()
    if unit := _unit(rest, content):
        return f"{content} {unit}", end
    return content, end


def _unit(rest: str, content: str) -> str:
    r"""Return the unit at the beginning of `rest` in LaTeX, empty if there is none."""
    match = _UNIT.match(rest)
    if match is None or r"\text" in content or r"\mathrm" in content or content.endswith("%"):
        return ""
    size, word, per, power = match.groups()
    ends = not re.match(r"[A-Za-z0-9'’]", rest[match.end() :])
    alone = bool(size or per or power) or not re.match(r"\s+[a-z0-9]", rest[match.end() :])
    known = word in _LETTER_UNITS if len(word) == 1 and word.isascii() else unit_name(word)
    if not (known and ends) or (len(word) <= 2 and not alone):
        return ""
    power = (power or "").strip().translate({0xB2: "^2", 0xB3: "^3"})
    power = {"squared": "^2", "cubed": "^3"}.get(power, power)
    per = re.sub(r"\s+per\s+", "/", per or "")
    return rf"\text{{{size or ''}{word}{per}{power}}}"


def _joined_before(elements: Elements, place: Span, boxed: bool) -> list[str]:
    """Return the contents of answers that stand before this one, joined to it.

    Formulas are joined by "and" and "or", and by commas before those; boxes by commas alone, too.
    """
    text = elements.text
    marked = elements.boxes if boxed else elements.formulas
    index = bisect_left(marked, place.start + 1, key=lambda span: span.end)
    joined: list[str] = []
    start, has_word = place.start, boxed
    while index > 0 and len(joined) < MOST_JOINED:
        index -= 1
        other = marked[index]
        gap = _gap(text, other.end, start)
        joint = _JOINS.fullmatch(gap) if len(gap) < REACH else None
        if joint is None or not (has_word or joint[1]):
            break
        has_word = True
        joined.insert(0, _name_before(text, other) + other.content(text).strip())
        start = other.start
    left = text[max(0, start - REACH) : start]
    number = None if joined else _NUMBER_BEFORE.search(left[left.rfind("\n") + 1 :])
    return joined or ([number[1]] if number else [])


def _name_before(text: str, place: Span) -> str:
    r"""Return the `x=` of `x = \boxed{1}`, which tells one answer of several from the others."""
    name = _NAME_BEFORE.search(text, max(0, place.start - REACH), place.start)
    return f"{name[1]}=" if name else ""


def _gap(text: str, start: int, end: int) -> str:
    marks = _MARKS_AFTER.match(text, start, end)
    return text[marks.end() if marks else start : end]


def _joined_after(elements: Elements, end: int) -> list[str]:
    """Return answers that stand after this one, joined to it by "or", "and" or a comma."""
    text = elements.text
    joined: list[str] = []
    while len(joined) < MOST_JOINED:
        marks = _MARKS_AFTER.match(text, end)
        end = marks.end() if marks else end
        joint = _JOINS.match(text, end, end + REACH)
        if joint is None or joint[0].count("\n") > bool(joint[1]):
            break
        other = _element_at(elements, joint.end())
        if other is None:
            break
        joined.append(other.content(text).strip())
        end = other.end
    return joined


def _element_at(elements: Elements, start: int) -> Span | None:
    """Return the box, formula or number that begins here, or whose content does."""
    for marked in (elements.boxes, elements.formulas):
        index = bisect_left(marked, start + 1, key=lambda span: span.end)
        if index < len(marked) and marked[index].start <= start <= marked[index].inside:
            return marked[index]
    number = _NUMBER.match(elements.text, start)
    return Span(start, number.end(), start, number.end()) if number else None
