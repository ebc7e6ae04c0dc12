"""Tests written as asserts, as in MBPP and HumanEval, read without running them.

Understood are, with a literal on the other side and literals as arguments:

    assert f(1, 2) == 3          assert 3 == f(1, 2)          assert f(1) is None
    assert f(1)                  assert not f(1)              (True and False, nothing else)
    assert set(f(1)) == {1, 2}   assert f(1) in (2, 3)
    assert abs(f(1) - 1.5) < 1e-6
    assert math.isclose(f(1), 1.5, rel_tol=1e-6)

and HumanEval's `def check(candidate): …` around them, with `check(name)` after it. A test that
needs more than literals would have to run beside the program, which then could read the answer.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from typing import Any

from common.rewards.programs.compare import Comparison
from common.rewards.rule import GoldError

Parsed = tuple[str, tuple[Any, ...], tuple[Any, ...], Comparison, dict[str, Any]]
"""(function, arguments, right results, how to compare, keywords)."""

_CONSTANTS = {"inf": math.inf, "nan": math.nan, "pi": math.pi, "e": math.e}
_MAKERS: dict[str, type] = {
    kind.__name__: kind for kind in (set, frozenset, list, tuple, dict, bytes)
}
_FLOATS = ("inf", "+inf", "-inf", "infinity", "-infinity", "nan")


def read_asserts(text: str) -> Iterator[Parsed]:
    """The calls that `text` asserts something about.

    Raises:
        GoldError: it is no Python, or asserts what cannot be read as a call and its result.
    """
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise GoldError(f"is neither JSON nor Python: {error}") from None
    check = next((node for node in body if isinstance(node, ast.FunctionDef)), None)
    if check is None:
        yield from _read_all(body, {})
        return
    names = [_checked(node) for node in body]
    function = next((name for name in names if name), None)
    if check.name != "check" or len(check.args.args) != 1 or function is None:
        raise GoldError("defines a function; say def check(candidate), and check(name) after it")
    rest = [node for node, name in zip(body, names, strict=True) if node is not check and not name]
    yield from _read_all([*check.body, *rest], {check.args.args[0].arg: function})


def _checked(node: ast.stmt) -> str | None:
    """`name` of a statement `check(name)`."""
    match node:
        case ast.Expr(ast.Call(ast.Name("check"), [ast.Name(name)], [])):
            return name
    return None


def _read_all(body: list[ast.stmt], names: dict[str, str]) -> Iterator[Parsed]:
    """Asserts of `body`; imports, comments and descriptions say nothing about the answer."""
    for node in body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Expr(ast.Constant()):
                pass
            case ast.Assign([ast.Name("METADATA")]) | ast.Assert(ast.Constant(True)):
                pass
            case ast.Assert(claim):
                try:
                    parsed = _read_claim(claim)
                except (_UnreadableError, RecursionError, TypeError, ValueError, OverflowError):
                    raise GoldError(
                        f"asserts what cannot be read as a call and its result: {_shown(node)}"
                    ) from None
                yield names.get(parsed[0], parsed[0]), *parsed[1:]
            case _:
                raise GoldError(f"has a statement that is no assert: {_shown(node)}")


def _shown(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 120 else text[:117] + "..."


class _UnreadableError(Exception):
    """Not of a known form, or not a literal."""


def _read_claim(claim: ast.expr) -> Parsed:
    """One assert's claim. Raises `_UnreadableError`, or what a wrong literal raises."""
    match claim:
        case ast.UnaryOp(ast.Not(), call):
            return _test(call, False)
        case ast.Compare(
            ast.Call(ast.Name("abs"), [ast.BinOp(call, ast.Sub(), value)], []),
            [ast.Lt() | ast.LtE() as relation],
            [bound],
        ):
            most = float(_literal(bound))
            most = math.nextafter(most, -math.inf) if isinstance(relation, ast.Lt) else most
            return _test(call, _number(value), Comparison(relative=0.0, tolerance=_positive(most)))
        case ast.Call(
            ast.Name("isclose") | ast.Attribute(ast.Name("math"), "isclose"),
            [call, value],
            settings,
        ):
            return _test(call, float(_number(value)), _closeness(settings))
        case ast.Compare(left, [ast.Eq()], [right]):
            # An assert has one call, and it may stand on either side.
            return _equality(right, left) if _is_literal(left) else _equality(left, right)
        case ast.Compare(call, [ast.Is()], [ast.Constant(None | True | False) as value]):
            return _test(call, value.value)
        case ast.Compare(call, [ast.In()], [ast.List() | ast.Tuple() | ast.Set() as several]):
            function, values, _, comparison, named = _test(call, None)
            return function, values, tuple(_literal(several)), comparison, named
        case _:
            return _test(claim, True)


def _equality(call: ast.expr, value: ast.expr) -> Parsed:
    """`f(…) == literal`, or `set(f(…)) == literal` for results whose order does not matter."""
    match call:
        case ast.Call(ast.Name("set"), [ast.Call() as inner], []):
            expected = _literal(value)
            if not isinstance(expected, set | frozenset):
                raise _UnreadableError
            return _test(inner, expected, Comparison(as_set=True))
        case _:
            return _test(call, _literal(value))


def _test(call: ast.expr, expected: Any, comparison: Comparison = Comparison()) -> Parsed:
    match call:
        case ast.Call(ast.Name(function), arguments, keywords):
            values = tuple(_literal(argument) for argument in arguments)
            return function, values, (expected,), comparison, _named(keywords)
    raise _UnreadableError


def _named(keywords: list[ast.keyword]) -> dict[str, Any]:
    if any(keyword.arg is None for keyword in keywords):
        raise _UnreadableError
    return {str(keyword.arg): _literal(keyword.value) for keyword in keywords}


def _closeness(keywords: list[ast.keyword]) -> Comparison:
    named = _named(keywords)
    if not set(named) <= {"rel_tol", "abs_tol"}:
        raise _UnreadableError
    relative, absolute = float(named.get("rel_tol", 1e-9)), float(named.get("abs_tol", 0.0))
    return Comparison(relative=_positive(relative), tolerance=_positive(absolute))


def _positive(value: float) -> float:
    if not 0 <= value < math.inf:
        raise _UnreadableError
    return value


def _is_literal(node: ast.expr) -> bool:
    try:
        _literal(node)
    except (_UnreadableError, TypeError, ValueError):
        return False
    return True


def _literal(node: ast.expr) -> Any:
    """The value of a literal, as `ast.literal_eval`, and of set(…), float("inf"), math.pi."""
    match node:
        case ast.Constant(value) if value is not ...:
            return value
        case ast.List(members):
            return [_literal(member) for member in members]
        case ast.Tuple(members):
            return tuple(_literal(member) for member in members)
        case ast.Set(members):
            return {_literal(member) for member in members}
        case ast.Dict(keys, values) if None not in keys:
            pairs = zip(keys, values, strict=True)
            return {_literal(key): _literal(value) for key, value in pairs if key is not None}
        case ast.Call(ast.Name(kind), inside, []) if kind in _MAKERS:
            return _MAKERS[kind](*[_literal(argument) for argument in inside])
        case ast.Call(ast.Name("float"), [ast.Constant(str(text))], []) if text.lower() in _FLOATS:
            return float(text)
        case ast.Attribute(ast.Name("math"), name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(ast.USub() | ast.UAdd() as sign, operand):
            value = _number(operand)
            return -value if isinstance(sign, ast.USub) else +value
        case ast.BinOp(left, ast.Add() | ast.Sub() as sign, ast.Constant(complex() as imaginary)):
            return _number(left) + (imaginary if isinstance(sign, ast.Add) else -imaginary)
    raise _UnreadableError


def _number(node: ast.expr) -> Any:
    value = _literal(node)
    if isinstance(value, bool) or not isinstance(value, int | float | complex):
        raise _UnreadableError
    return value
