"""Numbers as text: found in prose, read exactly, compared as decimals and never as floats.

A number is made of ASCII or full-width digits, with an optional sign (+, -, U+2212 or an en dash),
commas only as correct thousands groups (`{,}` in LaTeX), a point and an exponent. In prose a
fraction, a power of a number, a product with a power of ten and a root are one number, too.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARACTERS = 4096
MAX_EXPONENT = 10_000

_DIGIT = "[0-9０-９]"
_SIGN = "[-+−–]"
_MINUS = ("-", "−", "–")
_SEPARATOR = r"(?:,|\{,\})"

_LETTER = "[A-Za-zÀ-ÖØ-öø-ʯͰ-֏Ḁ-῿Ａ-Ｚａ-ｚ]"

# What may be meant as a number within text. `_` joins digits into something that cannot be read,
# so that 1_000 is neither 1000 nor 0. A sign after a digit, a per cent or a sign is a dash; a point
# after a digit, a letter, a closing bracket or a point is punctuation.
_SIGN_IN_TEXT = rf"(?:(?<![0-9０-９%+\-−–]){_SIGN})?"
_BODY = (
    rf"(?:{_DIGIT}+(?:(?:_|{_SEPARATOR}){_DIGIT}+)*(?:\.{_DIGIT}+)?"
    rf"|(?<![\w.)\]}}])\.{_DIGIT}+)"
    rf"(?:[eE]{_SIGN}?{_DIGIT}+)?"
)
_SUPERSCRIPT = "[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]"
_VULGAR = "[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]"
_EXPONENT = rf"(?:(?:\^\{{?{_SIGN}?[0-9]{{1,9}}(?:\.[0-9]{{1,9}})?\}}?){{1,9}}|{_SUPERSCRIPT}+)"
_ARGUMENT = rf"(?:\{{ ?{_SIGN}?{_DIGIT}{{1,99}}(?:\.{_DIGIT}{{1,99}})? ?\}}|[0-9])"
_SPACES = "[ \u00a0\u2009\u202f]"
# What follows a number and is part of it: groups of thousands, an exponent, a denominator.
_TAIL = (
    rf"(?:(?<=[0-9])(?<![0-9]{{4}})(?:{_SPACES}[0-9]{{3}}(?![0-9])){{1,9}}(?![,.]?[0-9]))?"
    rf"(?:{_VULGAR}|{_EXPONENT}| ?(?:×|\\times|\*|·|\\cdot) ?10{_EXPONENT}"
    rf"|(?: {_DIGIT}{{1,9}})? ?[/⁄] ?{_DIGIT}{{1,99}}(?:[/.]{_DIGIT}{{1,99}})*)?"
    r"(?:\\pi(?![A-Za-z])|π)?"
)
# The look ahead passes over prose quickly. What belongs to a word is matched and not captured, and
# so is the power of a word, which is a unit: cm^2.
_CANDIDATE = re.compile(
    rf"(?=[-+−–$\\.^√0-9０-９¼-¾⅐-⅞])"
    rf"(?:(?:(?<={_LETTER})|(?<={_LETTER}_))(?:{_EXPONENT}|{_SIGN_IN_TEXT}{_BODY})"
    rf"|(?<=\}})\^\{{?{_SIGN}?[0-9]{{1,9}}\}}?"
    rf"|({_SIGN_IN_TEXT}(?:\\[dtc]?frac ?{_ARGUMENT} ?{_ARGUMENT}(?:\\pi(?![A-Za-z])|π)?"
    rf"|(?:\\sqrt ?(?:\[[0-9]{{1,9}}\])?\{{?|√\(?){_BODY}"
    rf"|(?:\\?\$)?{_BODY}{_TAIL}|{_VULGAR})))"
)

_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})?"
    rf"(?:(?P<whole>[1-9][0-9]{{0,2}}(?:{_SEPARATOR}[0-9]{{3}})+|[0-9]+)(?:\.(?P<part>[0-9]*))?"
    r"|\.(?P<only_part>[0-9]+))"
    rf"(?:[eE](?P<exponent_sign>{_SIGN})?(?P<exponent>[0-9]+))?"
)

_TO_ASCII = str.maketrans("０１２３４５６７８９", "0123456789")


class Number(NamedTuple):
    """A number ±0.digits × 10^exponent.

    Its digits have no zeros at either end, so that equal numbers are equal tuples.
    """

    negative: bool
    digits: str
    exponent: int


ZERO = Number(False, "", 0)


def parse_number(text: str) -> Number | None:
    """Read the whole of `text`, white space around it aside, as one number; None if it is not one.

    The result is None, too, for more than 4,096 characters and for exponents beyond ±10,000: such
    text costs nothing to write and much to compute with.
    """
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        return None
    match = _NUMBER.fullmatch(text.translate(_TO_ASCII))
    if match is None:
        return None
    shift = (match["exponent"] or "0").lstrip("0") or "0"
    if len(shift) > len(str(MAX_EXPONENT)) or int(shift) > MAX_EXPONENT:
        return None
    exponent = -int(shift) if match["exponent_sign"] in _MINUS else int(shift)
    whole = re.sub(_SEPARATOR, "", match["whole"] or "").lstrip("0")
    digits = whole + (match["part"] or match["only_part"] or "")
    leading_zeros = len(digits) - len(digits.lstrip("0"))
    digits = digits.strip("0")
    if not digits:
        return ZERO
    return Number(match["sign"] in _MINUS, digits, len(whole) + exponent - leading_zeros)


def find_last_number(text: str) -> str | None:
    """Return the text of the last number in `text`, without `$`; None if there is none.

    A letter directly before a number excludes it (T3, x2, x_2, GPT-4, cm^2), one after it does not
    (14days). Letters are Latin, Greek, Cyrillic and Armenian: Chinese puts no space before a
    number. The result may be beyond what `value_of` reads, such as a root; an earlier number does
    not stand in for it.
    """
    span = last_number_span(text)
    return None if span is None else number_text(text[span[0] : span[1]])


def last_number_span(text: str) -> tuple[int, int] | None:
    """Return where the last number begins and ends; None if there is none."""
    last = None
    for candidate in _CANDIDATE.finditer(text):
        if candidate[1]:
            last = candidate.span(1)
    return last


def number_text(found: str) -> str:
    """Return a number found in prose without `$`; the last if its commas separate several."""
    number = re.sub(r"\\?\$", "", found)
    if "," not in number or _NUMBER.fullmatch(number.translate(_TO_ASCII)):
        return number
    # Commas that do not group thousands separate numbers: the last of 1,23,4 is 4.
    return re.split(_SEPARATOR, number)[-1]


_SUPERSCRIPT_DIGITS = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_VULGAR_VALUES = dict(
    zip(
        "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞",
        [
            "1/2",
            "1/3",
            "2/3",
            "1/4",
            "3/4",
            "1/5",
            "2/5",
            "3/5",
            "4/5",
            "1/6",
            "5/6",
            "1/8",
            "3/8",
            "5/8",
            "7/8",
        ],
        strict=True,
    )
)
_FRACTION = re.compile(r"(.*?)\\[dtc]?frac ?\{? ?(.*?) ?\}? ?\{? ?([^{}]*?) ?\}?")
_SHORT_FRACTION = re.compile(r"(.*?)\\[dtc]?frac ?([0-9])([0-9])")
_POWER = re.compile(rf"(?:(.*?) ?(?:×|\\times|\*|·|\\cdot) ?)?([^ ]*?)({_EXPONENT})")
MAX_POWER_DIGITS = 10_000


def value_of(text: str) -> Fraction | None:
    r"""Return the exact value of a number found in prose: `1,234`, `3/4`, `2½`, `10^{14}`.

    The result is None for what is no rational number that is written so (`\sqrt{2}`, `2\pi`,
    3/4/2025), and for what would take long to work out.
    """
    text = text.strip().translate(_TO_ASCII).replace("⁄", "/")
    text = re.sub(rf"(?<=[0-9]){_SPACES}(?=[0-9]{{3}}(?![0-9/]))", "", text)
    if (number := parse_number(text)) is not None:
        return _fraction(number)
    for sign, fraction in _VULGAR_VALUES.items():
        if text.endswith(sign):
            text = f"{text[:-1]} {fraction}"
    if (short := _SHORT_FRACTION.fullmatch(text)) or (short := _FRACTION.fullmatch(text)):
        text = f"{short[1]}{short[2]}/{short[3]}"
    if power := _POWER.fullmatch(text):
        return _power_of(power[1], power[2], power[3])
    whole, slash, lower = text.partition("/")
    if not slash:
        return None
    more, _, upper = whole.strip().rpartition(" ")
    parts = [parse_number(part) for part in (more or "0", upper, lower)]
    if None in parts or parts[2] == ZERO:
        return None
    whole_part, upper_part, lower_part = (_fraction(part) for part in parts if part is not None)
    ratio = upper_part / lower_part
    return whole_part - ratio if more.startswith(_MINUS) else whole_part + ratio


def _power_of(factor: str | None, base: str, exponent: str) -> Fraction | None:
    shift = parse_number(exponent.strip("^{}").translate(_SUPERSCRIPT_DIGITS))
    numbers = [parse_number(factor or "1"), parse_number(base)]
    if shift is None or None in numbers:
        return None
    power, (factor_value, base_value) = _fraction(shift), map(_fraction, filter(None, numbers))
    if power.denominator != 1 or abs(power) * max(len(base), 1) > MAX_POWER_DIGITS:
        return None
    if base_value == 0 and power <= 0:
        return None
    sign = -1 if base_value < 0 else 1  # -2^2 is -4
    return factor_value * sign * abs(base_value) ** int(power)


def _fraction(number: Number) -> Fraction:
    value = Fraction(int(number.digits or "0"))
    value *= Fraction(10) ** (number.exponent - len(number.digits))
    return -value if number.negative else value
