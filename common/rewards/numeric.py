r"""NUMERIC: a measured or computed quantity, right within a tolerance.

The gold is a number, alone or with its tolerance: `9.81`, `9.81 ± 0.05`, `9.81 ± 1%`. Without one
the recipe's holds, `rewards.numeric`. A value is right if it differs from the gold by at most the
absolute tolerance or by at most the relative one times the gold; both ends belong to it, since all
is computed with fractions and nothing is rounded.

Numbers may have a power of ten (`6.02 \times 10^{23}`), be a fraction (`3/4`, `\frac{3}{4}`) and
carry one of the words hundred, thousand, dozen, million, billion and trillion. `$` before and `%`
after a number do not change it, as under LAST_NUMBER. What stands in the last complete
`\boxed{…}`, or else in the single `<answer>`, must be one number: a name and `=` may come before
it, a unit after it. In prose the last number is the answer. Other powers, roots and multiples of π
are no numbers, and wrong where they stand last.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from common.config import RewardsConfig
from common.rewards.answer_part import answer_part, last_box, several_answers, tagged_answer
from common.rewards.number import parse_number
from common.rewards.rule import NO_ANSWER, GoldError, Judge, Row, Verdict, graded

MAX_POWER = 10_000
MAX_MARKED = 500
"""Characters of a marked answer beyond which it is not read."""

_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}

_LATEX = (
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"\\(?:approx|simeq|sim)(?![A-Za-z])"), "≈"),
    (re.compile(r"\\pm(?![A-Za-z])"), "±"),
    (re.compile(r"\\(?:sqrt|pi|ln|log|exp|sin|cos|tan|arcsin|arccos|arctan)(?![A-Za-z])"), "√"),
    (re.compile(r"\\[dt]?frac\s?\{([^{}\\]{1,99})\}\s?\{([^{}\\]{1,99})\}"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s?\{([^{}]{0,99})\}"), r"\1"),
    (re.compile(r"\\!\s?|\\[,;: ]"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[%$]"), lambda sign: sign[0][1]),
    (re.compile(r"\\[A-Za-z]+"), " "),
    (re.compile(r"\*\*(?!\s*[-+−({0-9])"), ""),  # bold
)

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻−", "0123456789+--")

# Each quantifier is possessive or bounded, so that all this is linear.
_DIGIT = "[0-9０-９]"
_BODY = (
    rf"(?:{_DIGIT}++(?:,{_DIGIT}{{3}}(?!{_DIGIT}))*+(?:\.{_DIGIT}++)?|(?<![\w.)\]}}])\.{_DIGIT}++)"
    rf"(?:[eE][-+−]?{_DIGIT}++)?+"
)


def _power(number: int) -> str:
    """Return a pattern for `10^n`, whose groups `power` and `above` have that number."""
    return (
        rf"10(?:\s?(?:\^|\*\*)\s?[{{(]?\s?(?P<power{number}>[-+−]?[0-9]{{1,9}})\s?[)}}]?"
        rf"|(?P<above{number}>[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{{1,9}}))"
    )


_VALUE = (
    r"(?P<sign>(?<![0-9０-９%+\-−])[-+−])?[$€£¥]?"
    rf"(?:{_power(0)}|(?P<body>{_BODY})"
    rf"(?:\s{{0,3}}[×x*·]\s{{0,3}}{_power(1)}|\s?/\s?(?P<below>{_BODY}))?+)"
    # What makes another number of it, with the digits that belong to that.
    r"(?P<odd>\s?[√π⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻!¼½¾⅓⅔⅛]|\s?(?:\^|\*\*)\s?[({]?\s?[-+−]?[0-9.]{0,9}"
    r"|\s?/\s?[0-9(][0-9./]{0,20})?+"
    rf"(?:\s{{1,3}}(?P<scale>{'|'.join(_SCALES)})s?\b)?"
    rf"(?:\s?(?:±|\+/-|\+-)\s?{_BODY})?"
)
_LETTER = "A-Za-zÀ-ÖØ-öø-ʯͰ-֏Ḁ-ỿ"
_IN_PROSE = re.compile(
    # The look ahead passes over prose quickly. What belongs to a word, a power or an index is
    # matched, and is no candidate.
    r"(?=[-+−√$€£¥.0-9０-９])"
    rf"(?:(?:(?<=[{_LETTER}_^])|(?<=[_^][({{]))[-+−]?{_BODY}"
    rf"|(?P<root>√\s?[{{(]?\s?)?{_VALUE})"
)
_MARKED = re.compile(
    r"\s*(?:[^0-9０-９=<>≤≥≠√]{0,60}[=≈])?[\s≈~({$]{0,9}"
    rf"{_VALUE}"
    r"(?P<unit>(?:[^0-9０-９=<>≤≥≠√,;^]|\^(?:\{?[-+−]?[0-9]\}?)?+)*+)",
)
_NO_UNIT = re.compile(r"\b(?:or|and|to|more|less|most|least|than|not|square[ds]?|cubed?)\b", re.I)
_TOLERANCE = re.compile(r"\s*(?:±|\+/-|\+-|\\pm)\s*")


class Gold(NamedTuple):
    """The right value, and how far from it an answer may be; None where the recipe says so."""

    value: Fraction
    absolute: Fraction | None
    relative: Fraction | None


@lru_cache(1024)
def read_gold(answer: str) -> Gold:
    """Return the gold's value and tolerance.

    Raises:
        GoldError: one of them is not a number, or the tolerance is below 0.
    """
    value_text, *tolerances = _TOLERANCE.split(answer.strip())
    value = read_marked(value_text)
    if value is None:
        raise GoldError("is no number, with ± and its tolerance or without")
    if not tolerances:
        return Gold(value, None, None)
    percent = tolerances[0].endswith(("%", r"\%"))
    tolerance = read_marked(tolerances[0]) if len(tolerances) == 1 else None
    if tolerance is None or tolerance < 0:
        raise GoldError("has after ± no number from 0 on, such as 0.05 or 1%")
    if percent:
        return Gold(value, Fraction(0), tolerance / 100)
    return Gold(value, tolerance, Fraction(0))


def open_rule(rewards: RewardsConfig) -> Judge:
    """Return the rule with the recipe's tolerance."""
    absolute = Fraction(str(rewards.numeric.absolute))
    relative = Fraction(str(rewards.numeric.relative))

    def judge(text: str, row: Row) -> Verdict:
        gold = read_gold(row["answer"])
        part = answer_part(text) or ""
        if (several := several_answers(part)) is not None:
            return graded(False, several)
        found = find_value(part)
        if found is None:
            return NO_ANSWER
        shown, value = found
        most = max(
            absolute if gold.absolute is None else gold.absolute,
            (relative if gold.relative is None else gold.relative) * abs(gold.value),
        )
        return graded(value is not None and abs(value - gold.value) <= most, shown)

    return judge


def find_value(part: str) -> tuple[str, Fraction | None] | None:
    """Return the answer as it stands and its value, None for one that is no number.

    The result is None if there is no answer at all.
    """
    for marked in (last_box(part), tagged_answer(part)):
        if marked is not None and marked.strip():
            return marked.strip(), read_marked(marked)
    text, last = _plain(part), None
    for match in _IN_PROSE.finditer(text):
        if match["body"] or match["power0"] or match["above0"]:
            last = match
    if last is None:
        return None
    # Of 3 1/2 the fraction alone would be another number.
    mixed = last["below"] and re.search(r"[0-9]\s\Z", text[: last.start()][-2:])
    return last[0].strip(), None if last["root"] or mixed else _value_of(last)


def read_marked(text: str) -> Fraction | None:
    """Return the value of a text that is one number, perhaps with a unit; None if it is not."""
    text = text.strip().removeprefix("$").removesuffix("$")
    match = _MARKED.fullmatch(_plain(text)) if len(text) <= MAX_MARKED else None
    if match is None or _NO_UNIT.search(match["unit"]):
        return None
    return _value_of(match)


def _plain(text: str) -> str:
    """Return `text` with LaTeX's signs as characters; √ stands for what makes another number."""
    if "\\" in text or "**" in text or "{," in text:
        for pattern, plain in _LATEX:
            text = pattern.sub(plain, text)
    return text


def _value_of(match: re.Match[str]) -> Fraction | None:
    if match["odd"]:
        return None
    value = Fraction(1) if match["body"] is None else _fraction(match["body"])
    if value is None:
        return None
    for power in (match["power0"], match["above0"], match["power1"], match["above1"]):
        if power is not None:
            exponent = int(power.translate(_SUPERSCRIPTS))
            if abs(exponent) > MAX_POWER:
                return None
            value *= Fraction(10) ** exponent
    if match["below"]:
        below = _fraction(match["below"])
        if not below:
            return None
        value /= below
    value *= _SCALES.get(match["scale"] or "", 1)
    return -value if match["sign"] in ("-", "−") else value


def _fraction(body: str) -> Fraction | None:
    number = parse_number(body)
    if number is None:
        return None
    shift = number.exponent - len(number.digits)
    return Fraction(int(number.digits or "0")) * Fraction(10) ** shift
