"""What an answer is as a whole: a value, several of them, a relation, or text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from common.rewards.latex.tokens import TEXT, is_letter
from common.rewards.latex.vocabulary import ACCENTS, GREEK

_NAME = re.compile(
    r"[A-Za-z](?:\([A-Za-z0-9]\))?|[fghFGH]\^-1\([A-Za-z0-9]\)|[A-Z]{2,3}|\\fracd[a-z]d[a-z]"
)


@dataclass(frozen=True)
class Text:
    """Words, or notation that is compared as it is written; case and space do not count."""

    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """A number or an expression."""

    tokens: tuple[str, ...]
    exact: Fraction | None
    """Its value, if it is a plain number or fraction."""
    scale: int = 1
    """100 for a percentage: the value is that of the tokens, divided by it."""
    unit: str = ""
    """A known unit beside it; `$` counts as one."""
    note: tuple[str, ...] = ()
    """Words beside it that are not a known unit."""

    @cached_property
    def expression(self) -> Any:
        """Return the value as a SymPy expression.

        Raises:
            UnreadableError: it is not one.
        """
        from common.rewards.latex.parser import computing, expression_of, rational

        if self.exact is not None:
            return rational(self.exact)
        with computing():
            return expression_of(list(self.tokens)) / self.scale


@dataclass(frozen=True)
class Items:
    """Several values. A bare list, a set and a union have no order, all others have."""

    brackets: str
    """`` for a bare list, `{}` for a set, `()`, `[)`, … for a tuple or an interval, `:` for a
    ratio, `∪` for a union, `matrix` for the rows of a matrix, `row` for one of them."""
    items: tuple[Shape, ...]

    @property
    def ordered(self) -> bool:
        return self.brackets not in ("", "{}", "∪")


@dataclass(frozen=True)
class Relation:
    r"""`x = 5`, `0 < x < 1`, `x \in [0, 1)`, or a longer chain."""

    operators: tuple[str, ...]
    sides: tuple[Shape, ...]


Shape = Text | Value | Items | Relation


def plain(shape: Text | Value) -> str:
    """Return text to compare, without space, case, or the marks around text."""
    text = "".join(token.removeprefix(TEXT) for token in shape.tokens)
    text = re.sub(r"[\s$]+", "", text).strip(".,;:!").casefold()
    return text[1:-1] if len(text) == 3 and text[0] + text[-1] == "()" else text


def is_name(shape: Shape) -> bool:
    """Return whether the left side of `x = 5` only names what follows.

    Names are x, x_1, f(x), AB, dy/dx, text and tuples of names.
    """
    if isinstance(shape, Text):
        return True
    if isinstance(shape, Items):
        return shape.brackets == "()" and all(is_name(item) for item in shape.items)
    if not isinstance(shape, Value):
        return False
    tokens = [token for token in shape.tokens if token not in ("{", "}", "'")]
    if tokens and tokens[0] in ACCENTS:
        return all(is_letter(token) for token in tokens[1:])
    if len(tokens) > 2 and tokens[1] == "_":
        del tokens[1:3]
    letters = "".join("x" if token in GREEK else token for token in tokens)
    return _NAME.fullmatch(letters) is not None
