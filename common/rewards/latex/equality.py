"""Whether an answer is the gold: by shape, then value by value.

math-verify (Hugging Face) has the last word on two expressions in variables, but only there: by
itself it passes 0.333333 for 1/3, 10^{-20} for 10^{-21}, x_A for x_a, `1, 2` for (1, 2) and the end
of a chain `x = 6 = 5`. So numbers are compared exactly, or to more digits than they are written
with; expressions are first refuted by their values at six points; lists, intervals, equations and
units are matched here.

Sums, integrals and limits are beyond the reader of this package. math-verify reads and compares
them, and only for golds that need it: its parser guesses where notation is doubtful. Text reaches
it as LaTeX alone, since its other parser evaluates what it is given.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from common.rewards.latex.shape import Items, Relation, Shape, Text, Value, is_name, plain
from common.rewards.latex.units import same_text

DIGITS = 60
MAX_DIGITS = 2000
POINTS = ("17/13", "-29/11", "7/83", "-5/97", "211/3", "-1009/7")
"""Values of variables at which two expressions must agree, of both signs and any size."""

LEAST_POINTS = 2
"""At how many of them two expressions must have real values, which roots may not have."""

_OPERATORS = re.compile(r"\\(?:sum|prod|int|lim|max|min|gcd|lcm)(?![A-Za-z])")
MAX_FORMULA = 1000

_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def same(gold: Shape, answer: Shape) -> bool:
    """Return whether `answer` says what `gold` says; a second, different answer in it is wrong."""
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _same_relation(gold, answer)
    if isinstance(gold, Items) or isinstance(answer, Items):
        return isinstance(gold, Items) and isinstance(answer, Items) and _same_items(gold, answer)
    if isinstance(gold, Text) or isinstance(answer, Text):
        return plain(gold) == plain(answer)
    return _same_value(gold, answer)


def _same_value(gold: Value, answer: Value) -> bool:
    if not same_text(gold, answer):
        return False
    if gold.exact is not None and answer.exact is not None:
        return gold.exact == answer.exact
    if (gold.tokens, gold.scale) == (answer.tokens, answer.scale):
        return True
    from common.rewards.latex.parser import computing

    one, other = gold.expression, answer.expression
    with computing():
        return equal(one, other)


def _same_items(gold: Items, answer: Items) -> bool:
    if "∪" in (gold.brackets, answer.brackets):
        gold, answer = _as_union(gold), _as_union(answer)
    unordered = ("", "{}")
    kinds_agree = gold.brackets == answer.brackets or (
        gold.brackets in unordered and answer.brackets in unordered
    )
    if not kinds_agree or len(gold.items) != len(answer.items):
        return False
    if gold.ordered:
        return all(map(same, gold.items, answer.items))
    if len(_names(answer.items)) > 1 and not _names(gold.items):
        return False
    # Equality is transitive, so that taking the first match for each leaves no better matching.
    remaining = list(answer.items)
    for item in gold.items:
        match = next((i for i, other in enumerate(remaining) if same(item, other)), None)
        if match is None:
            return False
        del remaining[match]
    return True


def _as_union(items: Items) -> Items:
    """Return `x < 2 or x > 3` as (-∞, 2) ∪ (3, ∞), and anything else as it is."""
    regions = [_interval(item) for item in items.items if isinstance(item, Relation)]
    names = {region[0] for region in regions if region}
    if items.brackets or len(regions) < len(items.items) or None in regions or len(names) > 1:
        return items
    return Items("∪", tuple(region[1] for region in regions if region))


def _names(items: Iterable[Shape]) -> set[str]:
    """Return the variables that are given values, with x for x_1.

    So `x = 1, y = 2` is told from the list 1, 2.
    """
    return {_name(item).partition("_")[0] for item in items if isinstance(item, Relation)}


def _name(relation: Relation) -> str:
    side = relation.sides[0]
    return _label(side) if is_name(side) else ""


def _label(shape: Shape) -> str:
    """Return the name that stands left of a relation, also a tuple of names."""
    if isinstance(shape, Items):
        return ",".join(map(_label, shape.items))
    if isinstance(shape, Relation):
        return ""
    return plain(shape) if isinstance(shape, Text) else "".join(shape.tokens)


def _same_relation(gold: Shape, answer: Shape) -> bool:
    gold, answer = _tidy(gold), _tidy(answer)
    if _is_approximate(answer) and not _is_approximate(gold):
        return False
    if not isinstance(gold, Relation):
        if not isinstance(answer, Relation):
            return same(gold, answer)
        if _is_assignment(answer):
            return all(same(gold, side) for side in answer.sides[1:])
        if set(answer.operators) == {"="}:
            return all(same(gold, side) for side in answer.sides)
        region = _interval(answer)
        return region is not None and same(gold, region[1])
    if not isinstance(answer, Relation):
        if _is_assignment(gold):
            return same(gold.sides[-1], answer)
        region = _interval(gold)
        return region is not None and same(region[1], answer)
    if _is_assignment(gold):
        if _is_assignment(answer) and _name(gold) == _name(answer):
            return all(same(gold.sides[-1], side) for side in answer.sides[1:])
        if _is_constant(gold.sides[-1]):
            return False  # the equation to be solved is not its solution
    one, other = _interval(gold), _interval(answer)
    if one is not None:
        return other is not None and one[0] == other[0] and same(one[1], other[1])
    return _equivalent(gold, answer)


def _tidy(shape: Shape) -> Shape:
    """Return a relation with its name on the left, and without the decimals after ≈."""
    if not isinstance(shape, Relation):
        return shape
    operators, sides = shape.operators, shape.sides
    if operators[-1] == r"\approx" and not (len(operators) == 1 and is_name(sides[0])):
        if len(operators) == 1:
            return sides[0]
        operators, sides = operators[:-1], sides[:-1]
    if operators == ("=",) and is_name(sides[1]) and not is_name(sides[0]):
        sides = sides[::-1]
    return Relation(operators, sides)


def _is_approximate(shape: Shape) -> bool:
    return isinstance(shape, Relation) and r"\approx" in shape.operators


def _is_assignment(relation: Relation) -> bool:
    signs = set(relation.operators)
    return is_name(relation.sides[0]) and (
        signs <= {"=", r"\approx"} or relation.operators == (r"\in",)
    )


def _is_constant(shape: Shape) -> bool:
    return isinstance(shape, Value) and (
        shape.exact is not None or not shape.expression.free_symbols
    )


def _interval(relation: Relation) -> tuple[str, Shape] | None:
    r"""Return `x > 2`, `2 < x` or `0 \le x < 1` as the variable's name and its interval."""
    operators, sides = relation.operators, relation.sides
    if not all(operator in _FLIPPED for operator in operators):
        return None
    if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
        operators, sides = (_FLIPPED[operators[0]],), sides[::-1]
    if len(sides) == 3 and {"<", r"\le"}.isdisjoint(operators):
        operators, sides = tuple(_FLIPPED[sign] for sign in operators[::-1]), sides[::-1]
    infinity = Value((r"\infty",), None)
    if len(sides) == 2 and is_name(sides[0]) and _is_constant(sides[1]):
        bracket = "(" if operators[0] in "<>" else "["
        if operators[0] in (">", r"\ge"):
            return _label(sides[0]), Items(bracket + ")", (sides[1], infinity))
        low = Value(("-", r"\infty"), None)
        return _label(sides[0]), Items("(" + {"(": ")", "[": "]"}[bracket], (low, sides[1]))
    if len(sides) == 3 and is_name(sides[1]) and all(map(_is_constant, sides[::2])):
        if not {">", r"\ge"}.isdisjoint(operators):
            return None
        brackets = ("(" if operators[0] == "<" else "[") + (")" if operators[1] == "<" else "]")
        return _label(sides[1]), Items(brackets, (sides[0], sides[2]))
    return None


def _equivalent(gold: Relation, answer: Relation) -> bool:
    """Return whether two equations or inequalities are the same up to a factor."""
    if gold == answer:
        return True
    one, other = _over_zero(gold), _over_zero(answer)
    if one is None or other is None:
        return gold.operators == answer.operators and all(map(same, gold.sides, answer.sides))
    from common.rewards.latex.parser import computing

    with computing():
        return one[0] == other[0] and _proportional(one[1], other[1], one[0] in (">", r"\ge"))


def _over_zero(relation: Relation) -> tuple[str, Any] | None:
    """Return `a < b` as the sign > and the expression b - a; None without two expressions."""
    if len(relation.sides) != 2 or relation.operators[0] == r"\in":
        return None
    left, right = relation.sides
    if not (isinstance(left, Value) and isinstance(right, Value)):
        return None
    sign = relation.operators[0]
    if sign in ("<", r"\le"):
        return _FLIPPED[sign], right.expression - left.expression
    return sign, left.expression - right.expression


def _proportional(one: Any, other: Any, positive: bool) -> bool:
    import sympy

    symbols = one.free_symbols
    if symbols != other.free_symbols or not symbols:
        return False
    digits = _digits(one, other)
    at = [[_at(side, symbols, point, digits) for side in (one, other)] for point in range(3)]
    ratios = [a / b for a, b in at if b != 0]
    if not all(_close(a, b, digits) for a, b in pairwise(ratios)):
        return False
    ratio = sympy.cancel(sympy.together(one / other))
    return bool(ratio.is_number and ratio != 0 and (not positive or ratio.is_positive))


def equal(gold: Any, answer: Any) -> bool:
    """Return whether two SymPy expressions are the same number or the same function."""
    if gold == answer:
        return True
    if gold.is_infinite or answer.is_infinite or (gold.is_Rational and answer.is_Rational):
        return False
    symbols = gold.free_symbols | answer.free_symbols
    digits = _digits(gold, answer)
    compared = 0
    for point in range(len(POINTS) if symbols else 1):
        values = [_at(side, symbols, point, digits) for side in (gold, answer)]
        if symbols and all(map(_is_imaginary, values)) and not _has_imaginary(gold, answer):
            continue  # \sqrt{x} is not asked for where x is negative
        compared += 1
        if not _close(values[0], values[1], digits):
            return False
    if symbols and compared < len(POINTS):
        return compared >= LEAST_POINTS and _proven(*map(_where_positive, (gold, answer)))
    if symbols:
        return _proven(gold, answer)
    # Numbers of some size that agree to 50 digits more than are written in them are equal.
    return _is_sized(values) or bool((gold - answer).simplify() == 0)


def _is_imaginary(value: Any) -> bool:
    return bool(value.is_number and value.is_extended_real is False)


def _has_imaginary(*expressions: Any) -> bool:
    import sympy

    return any(expression.has(sympy.I) for expression in expressions)


def _where_positive(expression: Any) -> Any:
    """Return the expression for positive values of its variables."""
    import sympy

    symbols = sorted(expression.free_symbols, key=str)
    return expression.subs({s: sympy.Symbol(str(s), positive=True) for s in symbols})


def _digits(*expressions: Any) -> int:
    """Return how many digits to compute with: more than the numbers in the expressions have."""
    import sympy

    bits = sum(
        int(part).bit_length()
        for expression in expressions
        for number in expression.atoms(sympy.Rational)
        for part in (number.p, number.q)
    )
    return min(DIGITS + bits * 3 // 10, MAX_DIGITS)


def _at(expression: Any, symbols: set[Any], number: int, digits: int) -> Any:
    """Return the value at one of the test points, which gives each variable a value of its own."""
    import sympy

    values = {}
    for i, symbol in enumerate(sorted(symbols, key=str)):
        point = sympy.Rational(POINTS[(number + i) % len(POINTS)])
        values[symbol] = point * (1 + i // len(POINTS))
    return expression.subs(values).evalf(digits)


def _is_sized(values: list[Any]) -> bool:
    try:
        return all(value.is_number and abs(value) > 10**-DIGITS for value in values)
    except TypeError:
        return False


def _close(one: Any, other: Any, digits: int) -> bool:
    """Return whether two values agree to all but ten digits, or cannot be told apart."""
    import sympy

    try:
        scale = max(abs(one), abs(other))
        if not scale.is_Float or not scale.is_finite or scale < 10**-DIGITS:
            return True
        return bool(abs(one - other) <= scale * sympy.Rational(10) ** (10 - digits))
    except TypeError:
        return True  # without a value at this point


def _proven(gold: Any, answer: Any) -> bool:
    """Ask math-verify, without its own time limit: the worker has one."""
    if gold.is_Symbol or answer.is_Symbol:
        return bool((gold - answer).simplify() == 0)
    from math_verify import verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return verify(gold, answer, timeout_seconds=None, raise_on_error=True)


# Golds that the reader of this package does not read: sums, integrals, limits


@dataclass(frozen=True)
class Formula:
    """What math-verify reads in a text."""

    text: str
    expressions: tuple[Any, ...]


def read_formula(text: str) -> Formula | None:
    """Return the formula if it has such an operator and math-verify reads it, and else None."""
    return _parse(text) if _OPERATORS.search(text) else None


def same_formula(gold: Formula, answer: str) -> bool:
    """Return whether `answer` is written like the gold, or is equal to it as math-verify says."""
    from math_verify import verify

    if same_notation(answer, gold.text):
        return True
    # It would take the last side of a chain for all of it.
    found = _parse(answer) if answer.count("=") <= gold.text.count("=") else None
    if found is None:
        return False
    return bool(verify(list(gold.expressions), list(found.expressions), timeout_seconds=None))


@lru_cache(maxsize=4096)
def _parse(text: str) -> Formula | None:
    from math_verify import LatexExtractionConfig, parse

    text = text.strip().strip("$")
    if len(text) > MAX_FORMULA or "$" in text:
        return None
    # It logs what it cannot read, which is text of a model.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    found = parse(
        f"${text}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return Formula(text, tuple(found)) if found else None


def same_notation(one: str, other: str) -> bool:
    """Return whether two texts are written alike, but for dollars and the width of spaces."""
    return one.replace("$", "").split() == other.replace("$", "").split()
