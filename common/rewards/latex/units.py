r"""Units and other text at a number: `5\text{ cm}` is 5, and no 5 m."""

from __future__ import annotations

import re

from common.rewards.latex.tokens import TEXT, UnreadableError
from common.rewards.latex.unit_names import unit_name

_CURRENCIES = ('"$', '"£', '"€')
_SIGNS = frozenset({"/", "*", "^", "-", "{", "}", "1", "2", "3"})


def without_unit(tokens: list[str]) -> tuple[list[str], str]:
    """Tokens without a currency before and text after, and the unit that these name."""
    signs = [i for i, token in enumerate(tokens[:2]) if token in _CURRENCIES]
    if signs and tokens[0] in ("-", "+", *_CURRENCIES):
        unit = tokens[signs[0]]
        return [token for i, token in enumerate(tokens) if i != signs[0]], unit[1:]
    start = next((i for i, token in enumerate(tokens) if token.startswith(TEXT)), len(tokens))
    rest = tokens[start:]
    if not rest or start == 0:
        return tokens, ""
    words = [token for token in rest if token.startswith(TEXT)]
    if any(token not in _SIGNS for token in rest if token not in words):
        raise UnreadableError("has something after its unit")
    if any(character.isdigit() for word in words for character in word):
        raise UnreadableError("has a number in its text")
    return tokens[:start], _name_of([token for token in rest if token not in ("{", "}")])


def _name_of(tokens: list[str]) -> str:
    """One name for a known unit, whatever the way to write it; empty for any other text."""
    names: list[str] = []
    power = ""
    for token in tokens:
        if not token.startswith(TEXT):
            names.append(token)
            continue
        for word in re.split(r"[\s.]+|(/)", token[1:].lower()):
            if word in ("square", "sq", "cubic"):
                power = "3" if word == "cubic" else "2"
            elif word in ("/", "per"):
                names.append("/")
            elif word:
                name = unit_name(word)
                if name is None:
                    return ""
                names += [name, "^", power] if power else [name]
                power = ""
    return "".join(names)
