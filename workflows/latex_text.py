"""Numbers and polynomials as LaTeX, the way one writes them by hand."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt


def fraction(top: int, bottom: int) -> str:
    r"""Write top / bottom in lowest terms: as `\frac{2}{3}`, or as a whole number."""
    return latex(Fraction(top, bottom))


def latex(value: Fraction) -> str:
    """Write a rational number, with the minus sign in front of the fraction."""
    if value.denominator == 1:
        return str(value)
    minus = "-" if value < 0 else ""
    return rf"{minus}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def root(square: int) -> str:
    r"""Write the square root of a whole number: as `3`, `\sqrt{5}` or `2\sqrt{3}`."""
    outside = max(n for n in range(1, isqrt(square) + 1) if square % (n * n) == 0)
    inside = square // outside**2
    if inside == 1:
        return str(outside)
    return rf"{outside if outside > 1 else ''}\sqrt{{{inside}}}"


def polynomial(a: int, b: int, c: int) -> str:
    """Write a x² + b x + c without zero terms and without a factor of 1 before x² or x."""
    text = ""
    for factor, power in ((a, "x^2"), (b, "x"), (c, "")):
        if not factor:
            continue
        size = "" if abs(factor) == 1 and power else str(abs(factor))
        sign = ("-" if factor < 0 else "") if not text else (" - " if factor < 0 else " + ")
        text += f"{sign}{size}{power}"
    return text or "0"
