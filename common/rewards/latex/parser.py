r"""From tokens to a SymPy expression, exactly and within limits.

The parser is a recursive descent over the tokens of `tokens.py`. It builds expressions from
numbers, one-letter variables and the commands in `vocabulary.py`, and from nothing else: no text is
ever handed to `sympify`, `parse_expr` or any other evaluator. Decimals become fractions,
`\frac{a}{b}` after an integer makes a mixed number, `i` and `e` are the constants. Before a power,
a factorial or a binomial is evaluated, its size is estimated: `10^{10^{10}}` costs nothing to
write.

math-verify's own parser is not used: it reads 2(1/2) as 2.5, 3t as 3 (t a unit), 1011_2 as 1011 and
x' as x, rounds decimals to floats, and needs 5 ms for x^2+2x+1 and 120 ms for ten such terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import sympy

from common.rewards.latex.tokens import (
    CLOSING,
    TEXT,
    TooLargeError,
    UnreadableError,
    fraction_of,
    is_letter,
    is_number,
    written,
)
from common.rewards.latex.vocabulary import (
    ACCENTS,
    FUNCTIONS,
    GREEK,
    HYPERBOLIC,
    TRIGONOMETRIC,
)

MAX_DEPTH = 30
MAX_LABEL = 40
MAX_BITS = 40_000
"""Size of the largest integer that is worked out, in bits."""
MAX_ROOT_BITS = 1_000
"""Size of the largest integer whose root is worked out, in bits: SymPy factors it for that."""
MAX_EXPONENT = 10_000
"""Largest exponent of a power that is not a number, or whose exponent is not a fraction."""
MAX_TOWER = 3
"""How many exponents with variables may stand one upon the other."""
MAX_FACTORIAL = 3_000
MAX_FACTORS = 20
"""How many factors a binomial with a variable may be multiplied out to."""
_CLOSES = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", "|": "|"}
_ADDITION = ("+", "-")
_CONSTANTS = {r"\pi": sympy.pi, r"\infty": sympy.oo}
_NO_FACTOR = {*"+-*/^_!'°},;:", r"\rfloor", r"\rceil", *CLOSING}


def expression_of(tokens: list[str]) -> sympy.Expr:
    """Return the expression that the tokens write.

    Raises:
        UnreadableError: they write none, or one without a value.
        TooLargeError: working it out would take too long.
    """
    if r"\infty" in tokens and any(map(is_letter, tokens)):
        raise UnreadableError("reckons with variables and infinity")
    parser = _Parser(tokens)
    result = parser.sum()
    if parser.token:
        raise UnreadableError(f"has {parser.token!r} where it should end")
    if result.has(sympy.nan, sympy.zoo):
        raise UnreadableError("has no value")
    return result


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0  # absolute values that are open: whether | closes

    @property
    def token(self) -> str:
        """Return the next token; it is empty at the end."""
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.token
        self.position += 1
        return token

    def accept(self, *tokens: str) -> bool:
        if self.token and self.token in tokens:
            self.position += 1
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise UnreadableError(f"lacks {token!r}")

    def sum(self) -> sympy.Expr:
        terms = [self.term()]
        while self.token in _ADDITION:
            sign = self.take()
            terms.append(self.term() if sign == "+" else -self.term())
        return sympy.Add(*terms)

    def term(self) -> sympy.Expr:
        result = self.product()
        while self.token in ("*", "/"):
            operator = self.take()
            factor = self.product()
            result = result * factor if operator == "*" else _divide(result, factor)
        return result

    def product(self) -> sympy.Expr:
        """Read factors side by side, which bind tighter than a division sign: 1/2x is 1/(2x)."""
        if self.token in _ADDITION:
            self.deeper()
            negative = self.take() == "-"
            result = self.product()
            self.depth -= 1
            return -result if negative else result
        factors = [self.power()]
        while self.starts_factor():
            factors.append(self.power())
        return sympy.Mul(*factors)

    def starts_factor(self) -> bool:
        token = self.token
        if not token or token in _NO_FACTOR or token.startswith(TEXT):
            return False
        # (n-2)2^n is a product; digits after a bracket by themselves may be anything.
        before, after = self.tokens[self.position - 1], self.tokens[self.position + 1 :][:1]
        if is_number(token) and not (before == ")" and after == ["^"]):
            raise UnreadableError(f"has no sign before {token!r}")
        return token != "|" or not self.bars

    def power(self) -> sympy.Expr:
        result = self.atom()
        while self.token in ("^", "!", "°"):
            operator = self.take()
            if operator == "^":
                result = _power(result, self.exponent())
            elif operator == "!":
                if self.token == "!":
                    raise UnreadableError("has '!!'")
                result = _factorial(result)
            else:
                result = result * sympy.pi / 180
        return result

    def exponent(self) -> sympy.Expr:
        if self.token in _ADDITION:
            self.deeper()
            sign = self.take()
            result = self.exponent()
            self.depth -= 1
            return -result if sign == "-" else result
        return self.atom()

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLargeError(f"is nested deeper than {MAX_DEPTH} levels")

    def atom(self) -> sympy.Expr:
        self.deeper()
        try:
            return self._atom()
        finally:
            self.depth -= 1

    def _atom(self) -> sympy.Expr:
        token = self.take()
        if not token:
            raise UnreadableError("is not complete")
        if is_number(token):
            return self.number(token)
        if token in _CLOSES:
            return self.bracketed(token)
        if is_letter(token) or token in GREEK or token.startswith(r"\mathbf"):
            return self.variable(token)
        if token == r"\frac":
            return _divide(self.atom(), self.atom())
        if token in (r"\sqrt", "√"):
            return self.root(token)
        if token in FUNCTIONS:
            return self.function(token)
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token == r"\binom":
            return _binomial(self.atom(), self.atom())
        if token in ACCENTS:
            name = f"{token} {_label(self.group())}"
            if self.accept("_"):
                name += "_" + _label(self.group())
            return sympy.Symbol(name, real=True)
        raise UnreadableError(f"has {token!r}, which is not understood")

    def number(self, token: str) -> sympy.Expr:
        r"""Read a number: plain, with digits that repeat for ever, or mixed as `2\frac{1}{2}`."""
        value = fraction_of(token)
        if "." in token:
            periodic = self.token in (r"\overline", r"\bar", r"\dot")
            return rational(value + self.period(token) if periodic else value)
        match self.tokens[self.position : self.position + 7]:
            case [r"\frac", "{", upper, "}", "{", lower, "}"]:
                count = 7
            case [upper, "/", lower, *_]:
                count = 3
            case _:
                return rational(value)
        if not (upper.isdecimal() and lower.isdecimal() and int(lower)):
            return rational(value)
        self.position += count
        return rational(value + Fraction(int(upper), int(lower)))

    def period(self, token: str) -> Fraction:
        r"""Return what `\overline{3}` adds to `0.1`: digits that repeat for ever."""
        self.take()
        digits = "".join(self.group())
        if not digits.isdecimal() or len(digits) > 100:
            raise UnreadableError("repeats something that is no digits")
        places = len(token) - token.index(".") - 1
        return Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)

    def group(self) -> list[str]:
        """Return the tokens between the braces that follow, or the one token that follows."""
        if not self.accept("{"):
            return [self.take()]
        start, depth = self.position, 1
        while depth and self.token:
            depth += (self.token == "{") - (self.token == "}")
            self.take()
        if depth:
            raise UnreadableError("lacks '}'")
        return self.tokens[start : self.position - 1]

    def bracketed(self, opening: str) -> sympy.Expr:
        bars, self.bars = self.bars, 1 if opening == "|" else 0
        inside = self.sum()
        self.expect(_CLOSES[opening])
        self.bars = bars
        if opening == "|":
            return _absolute(inside)
        if opening == r"\lfloor":
            return sympy.floor(inside)
        return sympy.ceiling(inside) if opening == r"\lceil" else inside

    def root(self, token: str) -> sympy.Expr:
        degree = sympy.Integer(2)
        if token == r"\sqrt" and self.accept("["):
            bars, self.bars = self.bars, 0
            degree = self.sum()
            self.expect("]")
            self.bars = bars
        if token == r"\sqrt" and is_number(self.token or " ") and len(self.token) > 1:
            raise UnreadableError(f"has a root of {self.token!r} without braces")
        radicand = self.atom()
        if not (degree.is_Integer and 2 <= degree <= 100):
            return _power(radicand, _divide(sympy.Integer(1), degree))
        if degree % 2 and radicand.is_number and radicand.is_negative:
            return -_power(-radicand, 1 / degree)
        return _power(radicand, 1 / degree)

    def variable(self, token: str) -> sympy.Expr:
        name = token
        if self.accept("_"):
            name += "_" + _label(self.group())
        while self.accept("'"):
            name += "'"
        if name == "i":
            return sympy.I
        if name == "e":
            return sympy.E
        if name.rstrip("'") in ("f", "g", "h") and self.accept("("):
            bars, self.bars = self.bars, 0
            arguments = [self.sum()]
            while self.accept(","):
                arguments.append(self.sum())
            self.expect(")")
            self.bars = bars
            return sympy.Function(name)(*arguments)
        return sympy.Symbol(name, real=True)

    def function(self, name: str) -> sympy.Expr:
        power = base = None
        while self.token in ("^", "_"):
            if self.take() == "^":
                power = self.exponent()
            else:
                base = self.atom()
        bracketed = self.token in ("(", "{", "[")
        argument = self.atom() if bracketed else self.bare_argument()
        if power == -1 and name in TRIGONOMETRIC:
            name, power = rf"\arc{name[1:]}", None
        result = _apply(name, argument, base)
        return result if power is None else _power(result, power)

    def bare_argument(self) -> sympy.Expr:
        r"""Read `2\pi x` of `\sin 2\pi x`: factors up to a sign, a bracket or the next function."""
        negative = self.accept("-")
        factors = [self.power()]
        while self.token not in FUNCTIONS | {"(", "["} and self.starts_factor():
            factors.append(self.power())
        return sympy.Mul(-1 if negative else 1, *factors)


def _label(tokens: list[str]) -> str:
    """Return an index, or what stands under an accent, as part of a variable's name."""
    name = written(tokens).replace(TEXT, "")
    if len(name) > MAX_LABEL or not set("'()[]=;").isdisjoint(name):
        raise UnreadableError(f"has a variable called {name[:MAX_LABEL]!r}")
    return name


# Operations whose result may be far larger than what is written: refused before they are done


@contextmanager
def computing() -> Iterator[None]:
    """Turn what SymPy and math-verify raise at an expression into `UnreadableError`.

    They raise errors at odd expressions such as floor(π^1000). Such an error is not an
    `infra_error`, which takes a completion out of its group: a model could choose to be taken out.
    """
    try:
        yield
    except (UnreadableError, RecursionError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableError(f"cannot be worked out: {type(error).__name__}") from None


def rational(value: Fraction) -> sympy.Rational:
    """Return the same fraction in SymPy."""
    return sympy.Rational(value.numerator, value.denominator)


def _divide(upper: Any, lower: Any) -> sympy.Expr:
    if lower.is_zero:
        raise UnreadableError("divides by zero")
    return upper / lower


def _bits(number: Any) -> float:
    """Return about how many binary digits a number's numerator and denominator take."""
    if number.is_Rational:
        return float(max(int(number.p).bit_length(), int(number.q).bit_length()))
    return max((_bits(atom) for atom in number.atoms(sympy.Rational)), default=1) * 2


def _power(base: Any, exponent: Any) -> sympy.Expr:
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
    """Refuse a number whose exponential could not be computed.

    To compute the number itself is safe, since the numbers in it have passed this check.
    """
    if _bits(number) > MAX_BITS or abs(number.evalf(5)) > MAX_EXPONENT:
        raise TooLargeError("has a power that is too large")


def _tower(expression: Any) -> int:
    """Return how many exponents with variables stand one upon the other, this one included."""
    if not expression.free_symbols:
        return 0
    above = max((_tower(argument) for argument in expression.args), default=0)
    exponent = expression.as_base_exp()[1] if expression.is_Pow else None
    if isinstance(expression, sympy.exp):
        exponent = expression.args[0]
    if exponent is None or not exponent.free_symbols:
        return max(above, 1)
    return max(above, 1 + _tower(exponent))


def _factorial(number: Any) -> sympy.Expr:
    """Return `n!`; a number n must be an integer."""
    _check_countable(number, MAX_FACTORIAL)
    return sympy.factorial(number)


def _binomial(upper: Any, lower: Any) -> sympy.Expr:
    """Return `n` over `k`; numbers must be integers."""
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


def _absolute(inside: Any) -> sympy.Expr:
    """Return the absolute value; complex numbers must be made by arithmetic and roots alone."""
    arithmetic = not inside.atoms(sympy.Function) and all(
        power.exp.is_Rational for power in inside.atoms(sympy.Pow)
    )
    if inside.is_number and not inside.is_extended_real and not arithmetic:
        raise TooLargeError("has an absolute value that is hard to compute")
    return sympy.Abs(inside)


def _apply(name: str, argument: Any, base: Any) -> sympy.Expr:
    if name in (r"\log", r"\lg", r"\ln"):
        if argument.is_zero:
            raise UnreadableError("takes the logarithm of zero")
        natural = name == r"\ln" and base is None
        return sympy.log(argument) if natural else sympy.log(argument, 10 if base is None else base)
    if base is not None:
        raise UnreadableError(f"has an index at {name!r}")
    if name == r"\exp":
        return _power(sympy.E, argument)
    if name in HYPERBOLIC and argument.is_number:
        _check_moderate(argument)
    name = name[1:]
    return getattr(sympy, "a" + name[3:] if name.startswith("arc") else name)(argument)
