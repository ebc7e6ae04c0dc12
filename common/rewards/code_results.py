"""Whether a program's result is the expected one; they are compared here, outside the sandbox.

A result comes as `sandbox/child.py` encodes it, in JSON that names types, and is compared in that
form: it is never rebuilt as a value, and nothing that the program defined takes part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.rewards.sandbox.child import encode

MAX_UNORDERED = 512
"""How many members of a set, or keys of a dict, may be compared pairwise, once those that are equal
as text are matched."""


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(sorted, len, round, sum, min, max, abs, any, all),
        *(set, frozenset, list, tuple, dict, str, int, float, bool),
    )
}
"""Functions of Python that a result may go through in a test. They are applied outside of the
sandbox, to a copy that is made of built-in types alone."""


@dataclass(frozen=True)
class Applied:
    """A function of `FUNCTIONS` with the arguments that follow the result."""

    function: str
    arguments: tuple[Any, ...] = ()
    keywords: tuple[tuple[str, Any], ...] = ()

    def __call__(self, value: Any) -> Any:
        """Return the function's result; it raises what the function raises."""
        return FUNCTIONS[self.function](value, *self.arguments, **dict(self.keywords))


def _decoded(result: Any) -> Any:
    """Return an encoded result as a value of built-in types.

    Raises:
        ValueError, TypeError, LookupError: it is none.
    """
    if result is None or isinstance(result, bool):
        return result
    kind, *content = result
    match kind:
        case "int":
            return int(content[0], 16)
        case "float":
            return float.fromhex(content[0])
        case "str":
            return bytes.fromhex(content[0]).decode(*_UTF8)
        case "bytes":
            return bytes.fromhex(content[0])
        case "complex":
            return complex(*map(float.fromhex, content[0].split(" ")))
        case "list" | "tuple" | "set" | "frozenset":
            return FUNCTIONS[kind](map(_decoded, content))
        case "dict":
            return {_decoded(key): _decoded(value) for _, key, value in content}
    raise ValueError(f"no result: {kind!r}")


@dataclass(frozen=True)
class Comparison:
    """How a result and an expected value are compared.

    Types are strict: True is not 1, "3" is not 3, and a tuple is not a list. An expected float
    accepts an int or a float within `relative` (1e-9), since a float's last digits depend on the
    order of additions. An expected int accepts an equal float if it comes from an assert, since
    2.0 == 2 in Python, but not if it comes from JSON, where 2 means an int. A nan equals a nan.
    """

    relative: float = 1e-9
    tolerance: float | None = None
    """Absolute difference that two numbers may have; if given, int and float are the same."""
    from_json: bool = False
    """Whether the expected value comes from JSON. Then an expected list accepts a tuple, since JSON
    has one kind of sequence, and an expected int accepts no float, since it has two kinds of
    number."""
    through: tuple[Applied, ...] = ()
    """Functions that the result goes through first, such as `sorted`."""
    differs: bool = False
    """Whether the result must differ from the expected value, as Python's `!=` says."""

    def is_met(self, expected: Any, line: bytes) -> bool:
        """Return whether an encoded result is `expected`; False for any line that is no result."""
        try:
            result = json.loads(line)
            if self.through or self.differs:
                value = _decoded(result)
                for applied in self.through:
                    value = applied(value)
                if self.differs:
                    return bool(value != expected)
                result = json.loads(encode(value))
            return self._same(expected, result)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
            return False

    def _same(self, expected: Any, result: Any) -> bool:
        """Return whether a decoded result is `expected`; raise an error if it is not encoded so."""
        if expected is None or isinstance(expected, bool):
            return result is expected
        if not isinstance(result, list):
            return False
        kind, *content = result
        match expected:
            case int() | float():
                return kind in ("int", "float") and self._same_number(expected, kind, content[0])
            case complex():
                parts = [float.fromhex(part) for part in content[0].split(" ")]
                wanted = [expected.real, expected.imag]
                return kind == "complex" and all(map(self._close, wanted, parts))
            case str():
                return kind == "str" and content[0] == expected.encode(*_UTF8).hex()
            case bytes():
                return kind == "bytes" and content[0] == expected.hex()
            case list() | tuple():
                return self._same_sequence(expected, kind, content)
            case set() | frozenset():
                pairs = [(member, None) for member in expected]
                found = [(member, None) for member in content]
                return kind in ("set", "frozenset") and self._same_pairs(pairs, found)
            case dict():
                if kind != "dict" or not all(len(pair) == 3 for pair in content):
                    return False
                found = [(key, value) for _, key, value in content]
                return self._same_pairs(list(expected.items()), found)
        return False

    def _same_number(self, expected: float, kind: str, text: str) -> bool:
        if kind == "int":
            value: float = int(text, 16)
            if isinstance(expected, int) and self.tolerance is None:
                return value == expected
        else:
            value = float.fromhex(text)
            if isinstance(expected, int) and self.tolerance is None:
                return value == expected and not self.from_json
        return self._close(float(expected), float(value))

    def _close(self, expected: float, value: float) -> bool:
        if math.isnan(expected):
            return math.isnan(value)
        absolute = self.tolerance or 0.0
        return math.isclose(expected, value, rel_tol=self.relative, abs_tol=absolute)

    def _same_sequence(self, expected: Any, kind: str, content: list[Any]) -> bool:
        if isinstance(expected, tuple):
            right_kind = kind == "tuple"
        else:
            right_kind = kind == "list" or (kind == "tuple" and self.from_json)
        return (
            right_kind and len(expected) == len(content) and all(map(self._same, expected, content))
        )

    def _same_pairs(self, expected: list[tuple[Any, Any]], found: list[tuple[Any, Any]]) -> bool:
        """Return whether each expected (key, value) is found exactly once, and nothing else."""
        if len(expected) != len(found):
            return False
        # A list, as a set may hold two NaN: they are written alike and not equal.
        by_text: dict[str, list[tuple[Any, Any]]] = {}
        for pair in found:
            by_text.setdefault(json.dumps(pair[0]), []).append(pair)
        others = [
            (key, value)
            for key, value in expected
            if not self._took(by_text.get(_canonical(key), []), key, value)
        ]
        # What is left may still be equal: 2.0 and 2, frozensets written in another order.
        left = [pair for pairs in by_text.values() for pair in pairs]
        return len(left) <= MAX_UNORDERED and all(self._took(left, *pair) for pair in others)

    def _took(self, found: list[tuple[Any, Any]], key: Any, value: Any) -> bool:
        """Take the first pair that equals (key, value) out of `found`; return whether one did."""
        for index, pair in enumerate(found):
            if self._same(key, pair[0]) and self._same(value, pair[1]):
                del found[index]
                return True
        return False


_UTF8 = ("utf-8", "surrogatepass")


def _canonical(value: Any) -> str:
    return json.dumps(json.loads(encode(value)))


def same_output(expected: str, output: bytes, tolerance: float | None) -> bool:
    """Return whether a program printed what it should.

    White space at the end of lines and empty lines at the end do not count. With a tolerance, words
    are compared one by one, numbers by value.
    """
    text = output.decode("utf-8", "replace")
    if tolerance is None:
        return _trimmed(expected) == _trimmed(text)
    words, found = expected.split(), text.split()
    return len(words) == len(found) and all(
        word == other or _near(word, other, tolerance)
        for word, other in zip(words, found, strict=True)
    )


def _trimmed(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _near(word: str, other: str, tolerance: float) -> bool:
    try:
        return abs(float(word) - float(other)) <= tolerance
    except ValueError:
        return False
