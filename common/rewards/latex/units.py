r"""Units and other text beside a number.

A unit may be missing: `5\text{ cm}` equals 5, but not 5 m. Other text may change the number:
`5\text{ million}` does not equal 5.
"""

from __future__ import annotations

import re

from common.rewards.latex.shape import Value
from common.rewards.latex.tokens import TEXT, UnreadableError
from common.rewards.latex.vocabulary import CHANGING_WORDS, unit_name

_CURRENCIES = ('"$', '"£', '"€')
_POWER = r"(?:\^(?:-?[123]|\{-?[123]\}))?"
_TEXTS = re.compile(rf"T{_POWER}(?:[*/]?T{_POWER})*")
_TEXT_POWER = re.compile(r"\^(-?[123])(?![0-9])")
_WORD = re.compile(r"[^\W\d_]+|[^\w\s,;:()'’!\"-]")
_SIGNS = frozenset("/^-123$¢€£")
_DEGREES = frozenset({"degree", "degrees"})
_CAPITALS = {"K": "k.", "M": "million", "B": "billion"}
_SHORT = {"celsius": "c", "fahrenheit": "f", "kelvin": "k.", "kelvins": "k."}


def without_unit(tokens: list[str]) -> tuple[list[str], str, tuple[str, ...]]:
    """Return the tokens without a currency before and text after them, their unit, and other words.

    Words are returned only if they are not a known unit.

    Raises:
        UnreadableError: the text does not end the tokens, or has a number in it.
    """
    signs = [i for i, token in enumerate(tokens[:2]) if token in _CURRENCIES]
    if signs and tokens[0] in ("-", "+", *_CURRENCIES):
        sign = tokens[signs[0]][1:]
        rest, unit, note = without_unit([t for i, t in enumerate(tokens) if i != signs[0]])
        return rest, unit if unit.startswith(sign) else sign + unit, note
    start = next((i for i, token in enumerate(tokens) if token.startswith(TEXT)), len(tokens))
    rest = [part for token in tokens[start:] for part in _parts(token)]
    if not rest or start == 0:
        return tokens, "", ()
    if not _TEXTS.fullmatch("".join("T" if token.startswith(TEXT) else token for token in rest)):
        raise UnreadableError("has something after its unit")
    if any(char.isdigit() for token in rest if token.startswith(TEXT) for char in token):
        raise UnreadableError("has a number in its text")
    return tokens[:start], *_read([token for token in rest if token not in ("{", "}", "*")])


def _parts(token: str) -> list[str]:
    """Return text such as `m/s^2` in parts, as if its exponents stood outside of it."""
    if not token.startswith(TEXT) or "^" not in token:
        return [token]
    parts: list[str] = []
    for number, part in enumerate(_TEXT_POWER.split(token[1:])):
        if number % 2:
            parts += ["^", *(["-"] if part[0] == "-" else []), part[-1]]
        elif part.strip():
            parts.append(TEXT + part)
    return parts


def same_text(gold: Value, answer: Value) -> bool:
    """Return whether the texts beside two numbers agree.

    Text that changes no value may be missing beside one of them.
    """
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if gold.note and answer.note:
        return gold.note == answer.note
    noted, other = (gold, answer) if gold.note else (answer, gold)
    if noted.note and other.unit and not noted.unit and not _begins_with(noted.note, other.unit):
        return False
    return all(
        word in _SIGNS or (word.strip(".").isalpha() and word not in CHANGING_WORDS)
        for word in noted.note
    )


def _begins_with(note: tuple[str, ...], unit: str) -> bool:
    """Return whether the words are that unit and more: `cm long`."""
    heads = ("".join(note[:count]) for count in range(1, len(note)))
    return any(
        head == unit and after not in _SIGNS for head, after in zip(heads, note[1:], strict=True)
    )


def _read(tokens: list[str]) -> tuple[str, tuple[str, ...]]:
    """Return one name for a known unit, however it is written; for any other text its words."""
    names: list[str] = []
    power = unit = ""
    is_known = True
    for token in tokens:
        for word in _words(token) if token.startswith(TEXT) else [token]:
            name = unit_name(word)
            if word.lower() in ("square", "sq", "cubic"):
                power = "3" if word.lower() == "cubic" else "2"
                continue
            if word.lower() in _DEGREES:
                unit, is_known = "°", False
                continue
            if word in _SIGNS or word.lower() == "per":
                names.append("/" if word.lower() == "per" else word)
                continue
            is_known = is_known and name is not None
            names += [name or _singular(word), *(["^", power] if power else [])]
            power = ""
    if power:
        names, is_known = [*names, "square"], False
    return ("".join(names), ()) if is_known else (unit, tuple(names))


def _words(token: str) -> list[str]:
    """Return the words of a text, and its signs but punctuation, marked as no part of a unit."""
    text = re.sub("n['’]t\\b", " not", token[1:].replace(".", ""))
    words = _WORD.findall(text) or [text.strip()]
    return [
        word if word.isalpha() or word == "/" or unit_name(word) else f"'{word}'"
        for word in filter(None, words)
    ]


def _singular(word: str) -> str:
    """Return one form of a word, without case and plural; the unit kelvin is not a thousand."""
    if word in _CAPITALS:
        return _CAPITALS[word]
    word = _SHORT.get(word.casefold(), word.casefold())
    if word in CHANGING_WORDS or len(word) < 4 or word.endswith("ss"):
        return word
    return word.removesuffix("s")
