"""Numbers as text: found in prose, read exactly, compared as decimals and never as floats.

A number is made of ASCII or full-width digits, with an optional sign (+, - or U+2212), commas only
as correct thousands groups (`{,}` in LaTeX), a point and an exponent.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_CHARACTERS = 4096
MAX_EXPONENT = 10_000

_DIGIT = "[0-9０-９]"
_SIGN = "[-+−]"
_SEPARATOR = r"(?:,|\{,\})"

_LETTER = "[A-Za-zÀ-ÖØ-öø-ʯͰ-֏Ḁ-῿Ａ-Ｚａ-ｚ]"

# What may be meant as a number within text. `_` joins digits into something that cannot be read,
# so that 1_000 is neither 1000 nor 0. A sign after a digit, a per cent or a sign is a dash; a point
# after a digit, a letter, a closing bracket or a point is punctuation.
_SIGN_IN_TEXT = rf"(?:(?<![0-9０-９%+\-−]){_SIGN})?"
_BODY = (
    rf"(?:{_DIGIT}+(?:(?:_|{_SEPARATOR}){_DIGIT}+)*(?:\.{_DIGIT}+)?"
    rf"|(?<![\w.)\]}}])\.{_DIGIT}+)"
    rf"(?:[eE]{_SIGN}?{_DIGIT}+)?"
)
# The look ahead passes over prose quickly. What belongs to a word is matched and not captured.
_CANDIDATE = re.compile(
    r"(?=[-+−$\\.0-9０-９])"
    rf"(?:(?:(?<={_LETTER})|(?<={_LETTER}_)){_SIGN_IN_TEXT}{_BODY}"
    rf"|({_SIGN_IN_TEXT}(?:\\?\$)?{_BODY}[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]*))"
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
    exponent = -int(shift) if match["exponent_sign"] in ("-", "−") else int(shift)
    whole = re.sub(_SEPARATOR, "", match["whole"] or "").lstrip("0")
    digits = whole + (match["part"] or match["only_part"] or "")
    leading_zeros = len(digits) - len(digits.lstrip("0"))
    digits = digits.strip("0")
    if not digits:
        return ZERO
    return Number(match["sign"] in ("-", "−"), digits, len(whole) + exponent - leading_zeros)


def find_last_number(text: str) -> str | None:
    """Return the text of the last number in `text`, without `$`; None if there is none.

    A letter directly before a number excludes it (T3, x2, x_2, GPT-4), one after it does not
    (14days). Letters are Latin, Greek, Cyrillic and Armenian: Chinese puts no space before a
    number. The result may be beyond what `parse_number` reads, or a power such as 10²; an earlier
    number does not stand in for it.
    """
    candidates: list[str] = _CANDIDATE.findall(text)
    last = next((candidate for candidate in reversed(candidates) if candidate), None)
    if last is None:
        return None
    number = re.sub(r"\\?\$", "", last)
    if _NUMBER.fullmatch(number.translate(_TO_ASCII)):
        return number
    # Commas that do not group thousands separate numbers: the last of 1,23,4 is 4.
    return re.split(_SEPARATOR, number)[-1]
