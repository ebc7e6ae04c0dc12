"""The tests of a CODE row: how its `answer` states them, and how they are read.

The answer is JSON, one test or a list of them:

    {"kind": "stdio", "stdin": "3\\n4\\n", "stdout": "7\\n"}
    {"kind": "call", "function": "add", "arguments": [3, 4], "expected": 7}
    "assert add(3, 4) == 7"

or plain text of assert lines, or the form of APPS, `{"inputs": […], "outputs": […], "fn_name": …}`.
`call` may have `keywords`; both kinds may have a `tolerance`, an absolute difference by which
numbers may differ.

Asserts, as in MBPP and HumanEval, are read without being run. These forms are understood, with a
literal on the other side and literals as arguments:

    assert f(1, 2) == 3          assert 3 == f(1, 2)          assert f(1) is None
    assert f(1)                  assert not f(1)              (True and False, nothing else)
    assert f(1) != 3             assert f(1) in (2, 3)        assert Solution().f(1) == 2
    assert sorted(f(1)) == [1]   assert len(set(f(1))) == 1   assert round(f(1), 2) == 1.5
    assert abs(f(1) - 1.5) < 1e-6
    assert math.isclose(f(1), 1.5, rel_tol=1e-6)              (also numpy's, and pytest.approx)

Arithmetic of literals (`10**9 + 7`) counts as a literal. Names may be given literals before:
`x = [3, 1]`, `s = Solution()`.

HumanEval's `def check(candidate): …` may stand around them, with `check(name)` after it. A test
that needs more than literals would have to run beside the program, which could then read the
expected value.
"""

from __future__ import annotations

import ast
import copy
import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from common.rewards.code_results import FUNCTIONS, Applied, Comparison
from common.rewards.rule import GoldError
from common.rewards.sandbox.child import TOO_MUCH, encode

MAX_STDIN = 4 << 20
"""Most characters of one test's input, which becomes a file in the sandbox."""
MAX_RESULTS = 1 << 19
"""Most characters of one test's output, or of all results of calls, encoded: half of what is
read."""


MAX_LITERAL = 100_000
"""Most bits of a number, and members of a sequence, that arithmetic in a test may make."""
MAX_PLACES = 300
"""Most places that a result may be rounded to."""
MAX_NODES = 10_000
"""Most pieces of an assert once names are replaced by what they were given."""


@dataclass(frozen=True)
class StdioTest:
    """A test that feeds `stdin` to the program and compares what it prints."""

    stdin: str
    stdout: str
    tolerance: float | None = None
    """If given, output is compared word by word, and numbers may differ by so much."""


@dataclass(frozen=True)
class CallTest:
    """A test that calls a function and compares what it returns."""

    function: str
    arguments: tuple[Any, ...]
    expected: tuple[Any, ...]
    """Results of which any is right; nearly always just one."""
    comparison: Comparison = field(default_factory=Comparison)
    keywords: Mapping[str, Any] = field(default_factory=dict)


Test = StdioTest | CallTest


def read_tests(answer: str) -> tuple[Test, ...]:
    """Return all tests of a row, at least one.

    Raises:
        GoldError: there are none, or one cannot be read; the message has its number.
    """
    text = answer.strip()
    if text[:1] not in ("[", "{", '"'):
        tests: list[Test] = list(_read_asserts(text))
    else:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GoldError(f"is not JSON: {error}") from None
        tests = []
        for number, item in enumerate(content if isinstance(content, list) else [content], 1):
            try:
                tests += _from_json(item)
            except GoldError as error:
                raise GoldError(f"has a fault in test {number}: {error}") from None
    if not tests:
        raise GoldError("has no tests")
    _check_sizes([test for test in tests if isinstance(test, CallTest)])
    return tuple(tests)


def _from_json(item: object) -> Iterator[Test]:
    if isinstance(item, str):
        yield from _read_asserts(item)
    elif not isinstance(item, dict):
        raise GoldError(f"it is {_name(item)}; expected an object or an assert")
    elif "inputs" in item:
        yield from _from_apps(item)
    elif item.get("kind") == "stdio":
        _check_keys(item, {"stdin": str, "stdout": str}, set())
        yield _stdio(item["stdin"], item["stdout"], _tolerance(item))
    elif item.get("kind") == "call":
        _check_keys(item, {"function": str, "arguments": list, "expected": object}, {"keywords"})
        _check_name(item["function"])
        keywords = item.get("keywords", {})
        if not isinstance(keywords, dict):
            raise GoldError(f"its `keywords` are {_name(keywords)}; expected an object")
        comparison = Comparison(tolerance=_tolerance(item), from_json=True)
        arguments, expected = tuple(item["arguments"]), (item["expected"],)
        yield CallTest(item["function"], arguments, expected, comparison, keywords)
    else:
        raise GoldError(f'its `kind` is {item.get("kind")!r}; there are "stdio" and "call"')


def _from_apps(item: dict[str, Any]) -> Iterator[Test]:
    """Read APPS' form: without `fn_name` the inputs and outputs are text, or lists of lines."""
    inputs, outputs, function = item["inputs"], item.get("outputs"), item.get("fn_name")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise GoldError("its `inputs` and `outputs` must be lists")
    if len(inputs) != len(outputs):
        raise GoldError(f"it has {len(inputs)} inputs and {len(outputs)} outputs")
    if function is None:
        for stdin, stdout in zip(inputs, outputs, strict=True):
            yield _stdio(_lines(stdin), _lines(stdout), None)
        return
    _check_name(function)
    # Half of APPS wraps each output in a list of one; where all are, either reading is right.
    wrapped = all(isinstance(output, list) and len(output) == 1 for output in outputs)
    for arguments, output in zip(inputs, outputs, strict=True):
        if not isinstance(arguments, list):
            raise GoldError(f"its inputs for {function} must be lists of arguments")
        expected = (output, output[0]) if wrapped else (output,)
        yield CallTest(function, tuple(arguments), expected, Comparison(from_json=True))


def _lines(value: object) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise GoldError(f"it has {_name(value)} among its inputs or outputs; expected text")
    return value


def _stdio(stdin: str, stdout: str, tolerance: float | None) -> StdioTest:
    if len(stdin) > MAX_STDIN:
        raise GoldError(f"its `stdin` has {len(stdin):,} characters; {MAX_STDIN:,} are allowed")
    if len(stdout) > MAX_RESULTS:
        raise GoldError(f"its `stdout` has {len(stdout):,} characters; {MAX_RESULTS:,} are allowed")
    return StdioTest(stdin, stdout, tolerance)


def _check_keys(item: dict[str, Any], required: dict[str, type], optional: set[str]) -> None:
    """Raise `GoldError` for a missing, mistyped or unknown key."""
    for key, kind in required.items():
        if key not in item:
            raise GoldError(f"it has no `{key}`")
        if not isinstance(item[key], kind):
            raise GoldError(f"its `{key}` is {_name(item[key])}; expected {_NAMES[kind]}")
    unknown = set(item) - set(required) - optional - {"kind", "tolerance"}
    if unknown:
        raise GoldError(f"it has an unknown key `{min(unknown)}`")


def _tolerance(item: dict[str, Any]) -> float | None:
    value = item.get("tolerance")
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise GoldError(f"its `tolerance` is {value!r}; expected a number from 0 on")
    return float(value)


def _check_sizes(tests: list[CallTest]) -> None:
    """Raise `GoldError` unless all arguments can be sent, and all results sent back."""
    for test in tests:
        values = [*test.arguments, *test.keywords.values(), *test.expected]
        if any(encode(value) == TOO_MUCH for value in values):
            raise GoldError(f"has a value for {test.function} nested too deep or too large")
    size = sum(len(encode(test.expected[0])) for test in tests)
    if size > MAX_RESULTS:
        raise GoldError(f"has results of {size:,} characters; {MAX_RESULTS:,} are allowed")


def _check_name(function: object) -> None:
    if not isinstance(function, str) or not function.isidentifier():
        raise GoldError(f"{function!r} is no name of a function")


_NAMES: dict[type, str] = {
    type(None): "null",
    bool: "a truth value",
    str: "text",
    list: "a list",
    dict: "an object",
}


def _name(value: object) -> str:
    return _NAMES.get(type(value), "a number")


# Asserts

_CONSTANTS = {"inf": math.inf, "nan": math.nan, "pi": math.pi, "e": math.e}
_MAKERS: dict[str, type] = {
    kind.__name__: kind for kind in (set, frozenset, list, tuple, dict, bytes)
}
_NUMBERS = (int, float, complex)
_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
}
_FLOATS = ("inf", "+inf", "-inf", "infinity", "-infinity", "nan")


def _read_asserts(text: str) -> Iterator[CallTest]:
    """Yield a test for each assert in `text`.

    Raises:
        GoldError: it is not Python, or asserts something that is not a call and its result.
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
    """Return `name` of a statement `check(name)`, None for any other."""
    match node:
        case ast.Expr(ast.Call(ast.Name("check"), [ast.Name(name)], [])):
            return name
    return None


def _read_all(body: list[ast.stmt], names: dict[str, str]) -> Iterator[CallTest]:
    """Yield a test for each assert of `body`; skip imports, docstrings and the like."""
    named = _Named()
    for node in body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Expr(ast.Constant()):
                pass
            case ast.Assign([ast.Name("METADATA")]) | ast.Assert(ast.Constant(True)):
                pass
            case ast.Assign([target], value) if named.took(target, value):
                pass
            case ast.Assert(claim):
                try:
                    test = _read_claim(named.replaced(claim))
                except (_UnreadableError, RecursionError, TypeError, ValueError, OverflowError):
                    raise GoldError(
                        f"asserts what cannot be read as a call and its result: {_shown(node)}"
                    ) from None
                yield replace(test, function=names.get(test.function, test.function))
            case _:
                raise GoldError(f"has a statement that is no assert: {_shown(node)}")


class _Named(ast.NodeTransformer):
    """Names that were given literals, functions or `Solution()`, and puts these in their place."""

    def __init__(self) -> None:
        self.values: dict[str, ast.expr] = {}

    def took(self, target: ast.expr, value: ast.expr) -> bool:
        """Remember what a name is given; return whether it is something that can be remembered."""
        match target, value:
            case ast.Name(name), _:
                try:
                    value = self.replaced(value)
                except _UnreadableError:
                    return False
                if _is_literal(value) or isinstance(value, ast.Name) or _is_solution(value):
                    self.values[name] = value
                    return True
            case ast.Tuple(targets), ast.Tuple(values) if len(targets) == len(values):
                return all(map(self.took, targets, values))
        return False

    def replaced(self, node: ast.expr) -> ast.expr:
        """Return a copy of the expression without such names.

        Raises:
            _UnreadableError: it becomes too large.
        """
        if self.values:
            node = self.visit(copy.deepcopy(node))
            if sum(1 for _ in ast.walk(node)) > MAX_NODES:
                raise _UnreadableError
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Return what the name was given."""
        return self.values.get(node.id, node)


def _is_solution(node: ast.expr) -> bool:
    """Return whether it is `Solution()`, the class around a function as LeetCode has it."""
    match node:
        case ast.Call(ast.Name("Solution"), [], []):
            return True
    return False


def _shown(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 120 else text[:117] + "..."


class _UnreadableError(Exception):
    """The assert is not of a known form, or has something else than a literal."""


def _read_claim(claim: ast.expr) -> CallTest:
    """Read one assert's claim. Raises `_UnreadableError`, or what a wrong literal raises."""
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
            ast.Name("isclose") | ast.Attribute(ast.Name(), "isclose" | "allclose") as function,
            [call, value],
            settings,
        ):
            call, value = (value, call) if _is_literal(call) else (call, value)
            return _test(call, _floats(_literal(value)), _closeness(function, settings))
        case ast.Compare(left, [ast.Eq()], [right]):
            # An assert has one call, and it may stand on either side.
            return _equality(right, left) if _is_literal(left) else _equality(left, right)
        case ast.Compare(left, [ast.NotEq()], [right]):
            call, value = (right, left) if _is_literal(left) else (left, right)
            return _test(call, _literal(value), Comparison(differs=True))
        case ast.Compare(call, [ast.Is()], [ast.Constant(None | True | False) as value]):
            return _test(call, value.value)
        case ast.Compare(call, [ast.In()], [ast.List() | ast.Tuple() | ast.Set() as several]):
            return replace(_test(call, None), expected=tuple(_literal(several)))
        case _:
            return _test(claim, True)


def _equality(call: ast.expr, value: ast.expr) -> CallTest:
    """Read `f(…) == literal` and `f(…) == pytest.approx(literal)`."""
    match value:
        case ast.Call(ast.Name("approx") | ast.Attribute(ast.Name(), "approx"), [near], settings):
            named = _named(settings)
            if not set(named) <= {"rel", "abs"}:
                raise _UnreadableError
            relative, absolute = named.get("rel", 0.0 if "abs" in named else 1e-6), named.get("abs")
            comparison = Comparison(
                relative=_positive(float(relative)),
                tolerance=_positive(float(1e-12 if absolute is None else absolute)),
            )
            return _test(call, _floats(_literal(near)), comparison)
    return _test(call, _literal(value))


def _test(call: ast.expr, expected: Any, comparison: Comparison = Comparison()) -> CallTest:
    """Read a call of the program's function, also within functions that its result goes through."""
    match call:
        case ast.Call(ast.Name(outer), [ast.Call() as inner, *more], keywords) if (
            outer in FUNCTIONS and not _is_literal(inner)
        ):
            applied = Applied(outer, tuple(map(_literal, more)), tuple(_named(keywords).items()))
            if outer == "round" and not all(
                abs(digits) <= MAX_PLACES for digits in applied.arguments
            ):
                raise _UnreadableError
            return _test(
                inner, expected, replace(comparison, through=(applied, *comparison.through))
            )
        case ast.Call(ast.Name(function), arguments, keywords) | ast.Call(
            ast.Attribute(ast.Call(ast.Name("Solution"), [], []), function), arguments, keywords
        ):
            values = tuple(_literal(argument) for argument in arguments)
            return CallTest(function, values, (expected,), comparison, _named(keywords))
    raise _UnreadableError


def _named(keywords: list[ast.keyword]) -> dict[str, Any]:
    if any(keyword.arg is None for keyword in keywords):
        raise _UnreadableError
    return {str(keyword.arg): _literal(keyword.value) for keyword in keywords}


def _closeness(function: ast.expr, keywords: list[ast.keyword]) -> Comparison:
    """Return how near a result must be for `isclose` of math, or of numpy with its own defaults."""
    named = _named(keywords)
    names, defaults = ("rel_tol", "abs_tol"), (1e-9, 0.0)
    if isinstance(function, ast.Attribute) and ast.unparse(function.value) in ("np", "numpy"):
        names, defaults = ("rtol", "atol"), (1e-5, 1e-8)
    if not set(named) <= set(names):
        raise _UnreadableError
    relative, absolute = (
        float(named.get(name, default)) for name, default in zip(names, defaults, strict=True)
    )
    return Comparison(relative=_positive(relative), tolerance=_positive(absolute))


def _floats(value: Any) -> Any:
    """Return a number as a float, and lists and tuples of numbers as such of floats."""
    if isinstance(value, list | tuple):
        return type(value)(map(_floats, value))
    return float(value)


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
    """Return a literal's value as `ast.literal_eval` does; set(…), float("inf"), math.pi count."""
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
        case ast.Call(ast.Name("range"), inside, []):
            return _bounded(range(*[_literal(argument) for argument in inside]))
        case ast.BinOp(left, operator, right):
            return _arithmetic(_literal(left), operator, _literal(right))
    raise _UnreadableError


def _arithmetic(left: Any, operation: ast.operator, right: Any) -> Any:
    """Work out an operation on literals, unless its result would be large."""
    work = _OPERATIONS.get(type(operation))
    numbers = isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS)
    if work is None or not (numbers or isinstance(operation, ast.Add | ast.Mult)):
        raise _UnreadableError
    if isinstance(operation, ast.Pow | ast.LShift | ast.Mult):
        sizes = [_size(left), _size(right)]
        is_power = isinstance(operation, ast.Pow | ast.LShift)
        size = max(sizes[0], 1) * abs(right) if is_power else sum(sizes)
        if not numbers:
            count, repeated = (left, right) if isinstance(left, int) else (right, left)
            size = len(repeated) * count
        if size > MAX_LITERAL:
            raise _UnreadableError
    try:
        return _bounded(work(left, right))
    except ZeroDivisionError:
        raise _UnreadableError from None


def _size(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 64


def _bounded(value: Any) -> Any:
    if hasattr(value, "__len__") and len(value) > MAX_LITERAL:
        raise _UnreadableError
    return value


def _number(node: ast.expr) -> Any:
    value = _literal(node)
    if isinstance(value, bool) or not isinstance(value, int | float | complex):
        raise _UnreadableError
    return value
