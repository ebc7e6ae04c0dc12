"""From tokens to the shape of an answer, by the signs that stand outside of brackets."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

from common.rewards.latex.shape import Items, Relation, Shape, Text, Value
from common.rewards.latex.tokens import (
    CLOSING,
    OPENING,
    TEXT,
    TooLargeError,
    UnreadableError,
    fraction_of,
    is_letter,
    is_number,
    tokens_of,
)
from common.rewards.latex.units import without_unit
from common.rewards.latex.vocabulary import TRIGONOMETRIC
from common.rewards.number import parse_number, value_of

MAX_DEPTH = 8
MAX_ITEMS = 64

RELATIONS = frozenset({"=", "<", ">", r"\le", r"\ge", r"\ne", r"\in", r"\approx"})
_PUNCTUATION = (".", ",", ";", ":", "\n")
_BOLD = re.compile(r"(?<![^\s(])\*\*([^*\s][^*]{0,200})\*\*(?![A-Za-z0-9(])")
_MATRIX = re.compile(r"\\begin\s*\{(?:[pbB]?matrix|smallmatrix|array)\}")


def read(latex: str) -> Shape:
    """Read an answer or a gold.

    Raises:
        UnreadableError: it is empty, or neither mathematics nor text.
    """
    latex = _without_marks(latex.strip())
    number = parse_number(latex)
    if number is not None:
        return Value((latex,), fraction_of(latex))
    return _read(tokens_of(latex), 0)


def read_number(latex: str) -> Value | None:
    r"""Read a number with or without a unit: `42`, `\$42`, `42\text{ cm}`, `\frac12`, `50\%`.

    The result is None for all else. Nothing is worked out, so that this takes no time to speak of.
    """
    latex = _without_marks(latex.strip())
    if (value := value_of(latex)) is not None:
        return Value((latex,), value)
    try:
        tokens = tokens_of(latex)
        while tokens and tokens[-1] in _PUNCTUATION:
            tokens = tokens[:-1]
        number, scale, unit, note = _split_value(tokens)
        exact = _exact(number)
    except UnreadableError:
        return None
    return None if exact is None else Value(tuple(number), exact / scale, scale, unit, note)


def _without_marks(latex: str) -> str:
    """Take off the dollars or brackets that set it as mathematics, and marks of bold text."""
    latex = _BOLD.sub(r"\1", latex)
    for opening, closing in (
        ("$$", "$$"),
        ("$", "$"),
        (r"\(", r"\)"),
        (r"\[", r"\]"),
        ("**", "**"),
        ("__", "__"),
        ("*", "*"),
        ("`", "`"),
        ('"', '"'),
        ("“", "”"),
    ):
        inner = latex[len(opening) : -len(closing)]
        if latex.startswith(opening) and latex.endswith(closing) and opening not in inner:
            return _without_marks(inner.strip()) if inner.strip() != latex else latex
    return latex


def _read(tokens: list[str], depth: int) -> Shape:
    if depth > MAX_DEPTH:
        raise TooLargeError(f"is nested deeper than {MAX_DEPTH} levels")
    while tokens and tokens[-1] in _PUNCTUATION:
        tokens = tokens[:-1]
    if not tokens:
        raise UnreadableError("is empty")
    _check_braces(tokens)
    for reader in _READERS:
        shape = reader(tokens, depth)
        if shape is not None:
            return shape
    try:
        return _value(tokens)
    except TooLargeError:
        return Text(tuple(tokens))
    except UnreadableError:
        if any(token.startswith(TEXT) for token in tokens):
            return Text(tuple(tokens))
        raise


def _check_braces(tokens: list[str]) -> None:
    depth = 0
    for token in tokens:
        depth += (token == "{") - (token == "}")
        if depth < 0:
            raise UnreadableError("has '}' without '{'")
    if depth:
        raise UnreadableError("lacks '}'")


def _split(tokens: list[str], is_separator: Callable[[str], bool]) -> tuple[list[str], ...]:
    """Return parts and separators in turn (part, separator, part, …), only outside of brackets."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += token in OPENING or token == "{" or token.startswith(r"\begin")
        depth -= token in CLOSING or token == "}" or token.startswith(r"\end")
        if depth == 0 and is_separator(token):
            parts += [[token], []]
        else:
            parts[-1].append(token)
    return tuple(parts)


def _items(tokens: list[str], separators: tuple[str, ...], depth: int) -> tuple[Shape, ...] | None:
    """Return the parts between separators, None if there are no separators."""
    pieces = _split(tokens, lambda token: token in separators)
    if len(pieces) == 1:
        return None
    # "1, 2, and 3" and "1; 2;" leave empty parts.
    parts = [part for part in pieces[::2] if part]
    if not parts:
        raise UnreadableError("is empty")
    if len(parts) > MAX_ITEMS:
        raise TooLargeError(f"has more than {MAX_ITEMS} items")
    items = [_read(part, depth + 1) for part in parts]
    # 1 ± x within a list is two of its items.
    flat = [
        [*item.items] if isinstance(item, Items) and not item.brackets else [item] for item in items
    ]
    return tuple(item for group in flat for item in group)


def _text(tokens: list[str], depth: int) -> Shape | None:
    words = [token for token in tokens if token not in (".", "!", r"\ldots")]
    if words and all(word.startswith(TEXT) for word in words):
        return Text(tuple(words))
    if len(tokens) == 1 and re.fullmatch(r"\\mathbf[A-Z]", tokens[0]):
        return Value((tokens[0][-1],), None)  # a choice set in bold
    if tokens[0] in (r"\triangle", r"\angle") and all(map(is_letter, tokens[1:])):
        return Text(tuple(tokens))
    if tokens in ([r"\emptyset"], [r"\{", r"\}"]):
        return Text((r"\emptyset",))
    if tokens == [r"\mathbbR"]:
        infinity = Value((r"\infty",), None)
        return Items("()", (Value(("-", r"\infty"), None), infinity))
    if len(tokens) == 1 and tokens[0].startswith(r"\mathbb"):
        return Text(tuple(tokens))
    unsigned = tokens[1:] if tokens[0] in ("-", "+") else tokens
    if len(unsigned) > 2 and is_number(unsigned[0]) and unsigned[1] == "_":
        return Text(tuple(token for token in tokens if token not in ("{", "}")))
    return None


def _list(tokens: list[str], depth: int) -> Shape | None:
    items = _items(tokens, (",", ";", r"\lor"), depth)
    if items is None:
        return None
    return Items("", items) if len(items) > 1 else items[0]


def _relation(tokens: list[str], depth: int) -> Shape | None:
    pieces = _split(tokens, lambda token: token in RELATIONS)
    if len(pieces) == 1:
        return None
    sides = []
    for number, part in enumerate(pieces[::2]):
        try:
            sides.append(_read(part, depth + 1))
        except UnreadableError:
            if number or not part:
                raise
            sides.append(Text(tuple(part)))
    return Relation(tuple(piece[0] for piece in pieces[1::2]), tuple(sides))


def _union(tokens: list[str], depth: int) -> Shape | None:
    items = _items(tokens, (r"\cup",), depth)
    return None if items is None else Items("∪", items)


def _described(tokens: list[str], depth: int) -> Shape | None:
    condition = _condition_of(tokens)
    shape = None if condition is None else _read(condition, depth + 1)
    return shape if shape is not None and _is_inequality(shape) else None


def _condition_of(tokens: list[str]) -> list[str] | None:
    r"""Return the condition on x of `\{x \mid x > 2\}` or `\{x \in \mathbb{R} : x > 2\}`."""
    if tokens[0] != r"\{" or tokens[-1] != r"\}" or not is_letter(tokens[1]):
        return None
    rest = tokens[2:-1]
    if rest[:2] == [r"\in", r"\mathbbR"]:
        rest = rest[2:]
    if rest[:1] not in ([r"\mid"], [":"], ["|"]) or tokens[1] not in rest:
        return None
    return rest[1:]


def _is_inequality(shape: Shape) -> bool:
    """Return whether the shape is an inequality, or several."""
    parts = shape.items if isinstance(shape, Items) else (shape,)
    return all(isinstance(part, Relation) and "=" not in part.operators for part in parts)


def _without_points(tokens: list[str], depth: int) -> Shape | None:
    r"""Read `\mathbb{R} \setminus \{0, 1\}` as a union of intervals."""
    if tokens[:1] != [r"\mathbbR"] or tokens[1:2] not in ([r"\setminus"], [r"\backslash"], ["-"]):
        return None
    return _gaps(_read(tokens[2:], depth + 1))


def _gaps(points: Shape) -> Items | None:
    """Return the intervals between points of a set; None if they are not all different numbers."""
    if not isinstance(points, Items) or points.brackets != "{}":
        return None
    by_value: dict[Fraction, Shape] = {
        item.exact: item
        for item in points.items
        if isinstance(item, Value) and item.exact is not None
    }
    if len(by_value) < len(points.items):
        return None
    ends: list[Shape] = [
        Value(("-", r"\infty"), None),
        *(by_value[value] for value in sorted(by_value)),
        Value((r"\infty",), None),
    ]
    return Items("∪", tuple(Items("()", pair) for pair in pairwise(ends)))


def _bracketed(tokens: list[str], depth: int) -> Shape | None:
    """Read a tuple, an interval or a set, if the first bracket closes at the end."""
    if tokens[0] not in (*OPENING, "{") or tokens[-1] not in (*CLOSING, "}"):
        return None
    level = 0
    for token in tokens[:-1]:
        level += (token in OPENING or token == "{") - (token in CLOSING or token == "}")
        if level == 0:
            return None
    inner = tokens[1:-1]
    brackets = (tokens[0] + tokens[-1]).replace("\\", "")
    if not inner:
        raise UnreadableError("is empty")
    items = _items(inner, (",", ";"), depth)
    if items is not None:
        return Items(brackets, items)
    if brackets == "()" or tokens[0] == "{":
        return _read(inner, depth + 1)
    if brackets == "[]" and _matrix(inner, depth) is not None:
        return _matrix(inner, depth)
    return Items(brackets, (_read(inner, depth + 1),))


def _matrix(tokens: list[str], depth: int) -> Shape | None:
    if not _MATRIX.fullmatch(tokens[0]) or not tokens[-1].startswith(r"\end"):
        return None
    inner = tokens[1:-1]
    if tokens[0].endswith("{array}") and inner[:1] == ["{"]:
        inner = inner[inner.index("}") + 1 :]
    rows = _split(inner, lambda token: token == "\\\\")[::2]
    cells = [_split(row, lambda token: token == "&")[::2] for row in rows if row]
    if sum(map(len, cells)) > MAX_ITEMS:
        raise TooLargeError(f"has more than {MAX_ITEMS} cells")
    return Items(
        "matrix",
        tuple(Items("row", tuple(_read(cell, depth + 1) for cell in row)) for row in cells),
    )


def _ratio(tokens: list[str], depth: int) -> Shape | None:
    items = _items(tokens, (":",), depth)
    return None if items is None else Items(":", items)


def _plus_minus(tokens: list[str], depth: int) -> Shape | None:
    r"""Read `1 \pm x` as the list of 1 + x and 1 - x."""
    if r"\pm" not in tokens and r"\mp" not in tokens:
        return None
    upper = [{r"\pm": "+", r"\mp": "-"}.get(token, token) for token in tokens]
    lower = [{r"\pm": "-", r"\mp": "+"}.get(token, token) for token in tokens]
    return Items("", (_read(upper, depth + 1), _read(lower, depth + 1)))


_READERS = (
    _text,
    _list,
    _relation,
    _union,
    _described,
    _without_points,
    _bracketed,
    _matrix,
    _ratio,
    _plus_minus,
)


def _value(tokens: list[str]) -> Value:
    number, scale, unit, note = _split_value(tokens)
    exact = _exact(number)
    value = Value(tuple(number), exact and exact / scale, scale, unit, note)
    if exact is None:
        _ = value.expression  # raises what cannot be read
    return value


def _split_value(tokens: list[str]) -> tuple[list[str], int, str, tuple[str, ...]]:
    """Return a number's or expression's tokens, its scale, its unit, and other words beside it."""
    tokens, unit, note = without_unit(tokens)
    scale = 1
    if tokens[-1:] == ["%"]:
        tokens, scale = tokens[:-1], 100
    if tokens[-2:] in (["°", "C"], ["°", "F"]):
        tokens, note = tokens[:-1], (tokens[-1].lower(), *note)
    if "°" in tokens and not TRIGONOMETRIC.intersection(tokens):
        tokens, unit = [token for token in tokens if token != "°"], "°"
    if not tokens:
        raise UnreadableError("is empty")
    return tokens, scale, unit, note


def _exact(tokens: list[str]) -> Fraction | None:
    """Return the value of a plain number or fraction, worked out without SymPy."""
    negative = False
    while tokens and tokens[0] in ("+", "-"):
        negative ^= tokens[0] == "-"
        tokens = tokens[1:]
    match tokens:
        case [number] if is_number(number):
            upper, lower = number, "1"
        case [r"\frac", "{", upper, "}", "{", lower, "}"] | [upper, "/", lower]:
            pass
        case _:
            return None
    if not (is_number(upper) and is_number(lower)):
        return None
    divisor = fraction_of(lower)
    if not divisor:
        raise UnreadableError("divides by zero")
    return fraction_of(upper) / divisor * (-1 if negative else 1)
