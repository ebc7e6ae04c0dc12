"""Tests of CODE as they stand in a row's `answer`, and how they are read.

The answer is JSON, one test or a list of them:

    {"kind": "stdio", "stdin": "3\\n4\\n", "stdout": "7\\n"}
    {"kind": "call", "function": "add", "arguments": [3, 4], "expected": 7}
    "assert add(3, 4) == 7"

or plain text of assert lines, or the form of APPS, `{"inputs": […], "outputs": […], "fn_name": …}`.
`call` may have `keywords`; both kinds may have a `tolerance`, an absolute difference by which
numbers may differ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.rewards.programs.asserts import read_asserts
from common.rewards.programs.compare import Comparison
from common.rewards.rule import GoldError
from common.rewards.sandbox.child import TOO_MUCH, encode

MAX_STDIN = 4 << 20
"""Characters of one test, which becomes a file in the sandbox."""
MAX_RESULTS = 1 << 19
"""Characters of one test's output, or of all results of calls, encoded: half of what is read."""


@dataclass(frozen=True)
class StdioTest:
    """Feed `stdin`, compare what is printed."""

    stdin: str
    stdout: str
    tolerance: float | None = None
    """Compare word by word, numbers within this difference."""


@dataclass(frozen=True)
class CallTest:
    """Call a function, compare what it returns."""

    function: str
    arguments: tuple[Any, ...]
    expected: tuple[Any, ...]
    """Any of these is right; nearly always just one."""
    comparison: Comparison = field(default_factory=Comparison)
    keywords: Mapping[str, Any] = field(default_factory=dict)


Test = StdioTest | CallTest


def read_tests(answer: str) -> tuple[Test, ...]:
    """All tests of a row; at least one.

    Raises:
        GoldError: what is wrong, with the test's number.
    """
    text = answer.strip()
    if text[:1] not in ("[", "{", '"'):
        tests: list[Test] = list(_from_asserts(text))
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


def _from_asserts(text: str) -> Iterator[CallTest]:
    for parsed in read_asserts(text):
        yield CallTest(*parsed)


def _from_json(item: object) -> Iterator[Test]:
    if isinstance(item, str):
        yield from _from_asserts(item)
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
    """APPS' form: without `fn_name` the inputs and outputs are text, or lists of lines."""
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
