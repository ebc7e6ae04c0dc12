r"""From tokens to a SymPy expression, exactly and within limits.

Recursive descent over the tokens of `tokens.py`. Only numbers, one-letter variables and the
commands named in `names.py` are built into expressions, by calls of their own; text is never handed
to `sympify`, `parse_expr` or any other evaluator. Decimals become fractions, `\frac{a}{b}` after an
integer a mixed number, `i` and `e` the constants. Before a power, a factorial or a binomial is
evaluated its size is estimated, since `10^{10^{10}}` costs nothing to write.

math-verify's own parser is not used: it reads 2(1/2) as 2.5, 3t as 3 (t a unit), 1011_2 as 1011 and
x' as x, rounds decimals to floats, and needs 5 ms for x^2+2x+1 and 120 ms for ten such terms.
"""

from __future__ import annotations

from fractions import Fraction

import sympy

from common.rewards.latex import bounded
from common.rewards.latex.names import ACCENTS, FUNCTIONS, GREEK, TRIGONOMETRIC
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

MAX_DEPTH = 30
MAX_LABEL = 40
_CLOSES = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", "|": "|"}
_ADDITION = ("+", "-")
_CONSTANTS = {r"\pi": sympy.pi, r"\infty": sympy.oo}
_NO_FACTOR = {*"+-*/^_!'°},;:", r"\rfloor", r"\rceil", *CLOSING}


def expression_of(tokens: list[str]) -> sympy.Expr:
    """The expression that the tokens write.

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
        """The token that is next, empty at the end."""
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
            result = result * factor if operator == "*" else bounded.divide(result, factor)
        return result

    def product(self) -> sympy.Expr:
        """Factors side by side, which bind tighter than a division sign: 1/2x is 1/(2x)."""
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
        if is_number(token):
            raise UnreadableError(f"has no sign before {token!r}")
        return token != "|" or not self.bars

    def power(self) -> sympy.Expr:
        result = self.atom()
        while self.token in ("^", "!", "°"):
            operator = self.take()
            if operator == "^":
                result = bounded.power(result, self.exponent())
            elif operator == "!":
                if self.token == "!":
                    raise UnreadableError("has '!!'")
                result = bounded.factorial(result)
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
            return bounded.divide(self.atom(), self.atom())
        if token in (r"\sqrt", "√"):
            return self.root(token)
        if token in FUNCTIONS:
            return self.function(token)
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token == r"\binom":
            return bounded.binomial(self.atom(), self.atom())
        if token in ACCENTS:
            return sympy.Symbol(f"{token} {_label(self.group())}", real=True)
        raise UnreadableError(f"has {token!r}, which is not understood")

    def number(self, token: str) -> sympy.Expr:
        r"""A number: plain, with digits that repeat for ever, or mixed as `2\frac{1}{2}`."""
        value = fraction_of(token)
        if "." in token:
            periodic = self.token in (r"\overline", r"\bar", r"\dot")
            return bounded.rational(value + self.period(token) if periodic else value)
        match self.tokens[self.position : self.position + 7]:
            case [r"\frac", "{", upper, "}", "{", lower, "}"]:
                count = 7
            case [upper, "/", lower, *_]:
                count = 3
            case _:
                return bounded.rational(value)
        if not (upper.isdecimal() and lower.isdecimal() and int(lower)):
            return bounded.rational(value)
        self.position += count
        return bounded.rational(value + Fraction(int(upper), int(lower)))

    def period(self, token: str) -> Fraction:
        r"""What `\overline{3}` adds to `0.1`: digits that repeat for ever."""
        self.take()
        digits = "".join(self.group())
        if not digits.isdecimal() or len(digits) > 100:
            raise UnreadableError("repeats something that is no digits")
        places = len(token) - token.index(".") - 1
        return Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)

    def group(self) -> list[str]:
        """Tokens between the braces that follow, or the one token that follows."""
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
            return bounded.absolute(inside)
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
            return bounded.power(radicand, bounded.divide(sympy.Integer(1), degree))
        if degree % 2 and radicand.is_number and radicand.is_negative:
            return -bounded.power(-radicand, 1 / degree)
        return bounded.power(radicand, 1 / degree)

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
        result = bounded.apply(name, argument, base)
        return result if power is None else bounded.power(result, power)

    def bare_argument(self) -> sympy.Expr:
        r"""`2\pi x` of `\sin 2\pi x`: factors up to a sign, a bracket or the next function."""
        negative = self.accept("-")
        factors = [self.power()]
        while self.token not in FUNCTIONS | {"(", "["} and self.starts_factor():
            factors.append(self.power())
        return sympy.Mul(-1 if negative else 1, *factors)


def _label(tokens: list[str]) -> str:
    """An index, or what stands under an accent, as part of a variable's name."""
    name = written(tokens).replace(TEXT, "")
    if len(name) > MAX_LABEL or not set("'()[]=;").isdisjoint(name):
        raise UnreadableError(f"has a variable called {name[:MAX_LABEL]!r}")
    return name
