"""Operations whose result may be far larger than what is written: refused before they are done."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import sympy

from common.rewards.latex.names import HYPERBOLIC
from common.rewards.latex.tokens import TooLargeError, UnreadableError

MAX_BITS = 40_000
"""Size of the largest integer that is worked out."""
MAX_ROOT_BITS = 1_000
"""Size of the largest integer whose root is worked out, which SymPy factors for that."""
MAX_EXPONENT = 10_000
"""Of a power that is no number, or whose exponent is no fraction."""
MAX_TOWER = 3
"""How often an exponent with variables may have an exponent with variables."""
MAX_FACTORIAL = 3_000
MAX_FACTORS = 20
"""Of a binomial with a variable: how many factors it may be multiplied out to."""


@contextmanager
def computing() -> Iterator[None]:
    """Turn what SymPy and math-verify raise at an expression into `UnreadableError`.

    They do so at odd ones, such as floor(π^1000). That is no fault of ours that would take a
    completion out of its group, or a model could choose to be taken out.
    """
    try:
        yield
    except (UnreadableError, RecursionError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableError(f"cannot be worked out: {type(error).__name__}") from None


def rational(value: Fraction) -> sympy.Rational:
    """The same fraction in SymPy."""
    return sympy.Rational(value.numerator, value.denominator)


def divide(upper: Any, lower: Any) -> sympy.Expr:
    if lower.is_zero:
        raise UnreadableError("divides by zero")
    return upper / lower


def _bits(number: Any) -> float:
    """Binary digits that a number's numerator and denominator take, about."""
    if number.is_Rational:
        return float(max(int(number.p).bit_length(), int(number.q).bit_length()))
    return max((_bits(atom) for atom in number.atoms(sympy.Rational)), default=1) * 2


def power(base: Any, exponent: Any) -> sympy.Expr:
    if base in (0, 1, -1):
        return base**exponent
    if exponent.is_Rational:
        size = math.ceil(abs(exponent)) if _bits(exponent) < 64 else math.inf
        if size * _bits(base) > MAX_BITS if base.is_number else size > MAX_EXPONENT:
            raise TooLargeError("has a power that is too large")
        if not exponent.is_Integer and base.is_number and _bits(base) > MAX_ROOT_BITS:
            raise TooLargeError("has a root of a number that is too large")
    elif exponent.is_number:
        _check_moderate(exponent)
    elif _tower(exponent) > MAX_TOWER:
        raise TooLargeError(f"has more than {MAX_TOWER} exponents one upon the other")
    elif any(abs(number) > MAX_EXPONENT for number in exponent.atoms(sympy.Rational)):
        raise TooLargeError("has a power that is too large")
    return base**exponent


def _check_moderate(number: Any) -> None:
    """Refuse a number whose exponential could not be computed; it is itself made of such."""
    if _bits(number) > MAX_BITS or abs(number.evalf(5)) > MAX_EXPONENT:
        raise TooLargeError("has a power that is too large")


def _tower(expression: Any) -> int:
    """How many exponents with variables stand one upon the other, this expression among them."""
    if not expression.free_symbols:
        return 0
    above = max((_tower(argument) for argument in expression.args), default=0)
    exponent = expression.as_base_exp()[1] if expression.is_Pow else None
    if isinstance(expression, sympy.exp):
        exponent = expression.args[0]
    if exponent is None or not exponent.free_symbols:
        return max(above, 1)
    return max(above, 1 + _tower(exponent))


def factorial(number: Any) -> sympy.Expr:
    """`n!` and `(n-k)!`, but of numbers only integers."""
    _check_countable(number, MAX_FACTORIAL)
    return sympy.factorial(number)


def binomial(upper: Any, lower: Any) -> sympy.Expr:
    """`n` over `k`, of numbers only integers."""
    _check_countable(upper, MAX_FACTORIAL)
    _check_countable(lower, MAX_FACTORIAL if upper.is_number else MAX_FACTORS)
    return sympy.binomial(upper, lower)


def _check_countable(number: Any, limit: int) -> None:
    if number.is_number:
        if not (number.is_Integer and number >= 0):
            raise UnreadableError("counts with a number that is no natural one")
        if number > limit:
            raise TooLargeError("has a factorial or binomial that is too large")
    elif not number.is_polynomial() or number.count_ops() > MAX_FACTORS:
        raise TooLargeError("has a factorial or binomial of too much")


def absolute(inside: Any) -> sympy.Expr:
    """The absolute value, of complex numbers only those made by arithmetic and roots."""
    arithmetic = not inside.atoms(sympy.Function) and all(
        power.exp.is_Rational for power in inside.atoms(sympy.Pow)
    )
    if inside.is_number and not inside.is_extended_real and not arithmetic:
        raise TooLargeError("has an absolute value that is hard to compute")
    return sympy.Abs(inside)


def apply(name: str, argument: Any, base: Any) -> sympy.Expr:
    if name in (r"\log", r"\lg", r"\ln"):
        if argument.is_zero:
            raise UnreadableError("takes the logarithm of zero")
        natural = name == r"\ln" and base is None
        return sympy.log(argument) if natural else sympy.log(argument, 10 if base is None else base)
    if base is not None:
        raise UnreadableError(f"has an index at {name!r}")
    if name == r"\exp":
        return power(sympy.E, argument)
    if name in HYPERBOLIC and argument.is_number:
        _check_moderate(argument)
    name = name[1:]
    return getattr(sympy, "a" + name[3:] if name.startswith("arc") else name)(argument)
