"""Tests of CODE: how they are read from a gold answer, and when a result is right."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, deque, namedtuple
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.rewards.code import read_gold
from common.rewards.programs.compare import Comparison, same_output
from common.rewards.programs.tests import CallTest, StdioTest
from common.rewards.sandbox.child import encode
from common.rewards.verdict import GoldError


def f(*arguments: Any, to: Any, **comparison: Any) -> CallTest:
    return CallTest("f", arguments, (to,), Comparison(**comparison))


GOLDS: list[tuple[str, list[Any]]] = [
    ('{"kind": "stdio", "stdin": "1\\n", "stdout": "2\\n"}', [StdioTest("1\n", "2\n")]),
    ('[{"kind": "stdio", "stdin": "", "stdout": "", "tolerance": 0}]', [StdioTest("", "", 0.0)]),
    (
        '{"kind": "call", "function": "f", "arguments": [1, [2]], "expected": null}',
        [f(1, [2], to=None, from_json=True)],
    ),
    (
        '{"kind": "call", "function": "f", "arguments": [], "keywords": {"k": 1}, "expected": 2,'
        ' "tolerance": 0.5}',
        [CallTest("f", (), (2,), Comparison(tolerance=0.5, from_json=True), {"k": 1})],
    ),
    (
        '["assert f(1) == 2", "assert f(-1) == (1, [2.5], {3: None})"]',
        [f(1, to=2), f(-1, to=(1, [2.5], {3: None}))],
    ),
    (
        "assert f(1) == 2\nassert f('a', [True]) == {'b'}, 'why'",
        [f(1, to=2), f("a", [True], to={"b"})],
    ),
    ("assert 3 == f(1)", [f(1, to=3)]),
    ("assert f(1) is None\nassert f(2) is True", [f(1, to=None), f(2, to=True)]),
    ("assert f(1)\nassert not f(2)", [f(1, to=True), f(2, to=False)]),
    ("assert f(x=1) == 2", [CallTest("f", (), (2,), Comparison(), {"x": 1})]),
    ("assert set(f(1)) == set((4, 5))", [f(1, to={4, 5}, as_set=True)]),
    ("assert f(1) in (2, 3)", [CallTest("f", (1,), (2, 3))]),
    ("assert abs(f(1) - 1.5) <= 1e-6", [f(1, to=1.5, relative=0.0, tolerance=1e-6)]),
    ("assert abs(f(1) - 2) < 1", [f(1, to=2, relative=0.0, tolerance=math.nextafter(1, 0))]),
    (
        "import math\nassert math.isclose(f(1), 2, rel_tol=0.1)",
        [f(1, to=2.0, relative=0.1, tolerance=0.0)],
    ),
    (
        "assert f(float('inf'), -1j, 1 - 2j, set(), b'x') == frozenset([1])",
        [f(math.inf, -1j, 1 - 2j, set(), b"x", to=frozenset([1]))],
    ),
    (
        "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    '''why'''\n    assert True\n"
        "    assert candidate(1) == 2, 'one'\n    assert candidate([]) == []\n\ncheck(f)",
        [f(1, to=2), f([], to=[])],
    ),
    (
        '{"inputs": ["1\\n", ["2", "3"]], "outputs": ["1", ["5"]]}',
        [StdioTest("1\n", "1"), StdioTest("2\n3", "5")],
    ),
    (
        '{"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [2, 3]]}',
        [f(1, to=[1], from_json=True), f(2, to=[2, 3], from_json=True)],
    ),
    (
        '{"fn_name": "f", "inputs": [[1]], "outputs": [[7]]}',
        [CallTest("f", (1,), ([7], 7), Comparison(from_json=True))],
    ),
]


@pytest.mark.parametrize(("answer", "tests"), GOLDS)
def test_forms_of_tests(answer: str, tests: list[Any]) -> None:
    assert list(read_gold(answer)) == tests


FAULTY = [
    ("", "no tests"),
    ("[]", "no tests"),
    ('"import math"', "no tests"),
    ("[1]", "test 1: it is a number"),
    ("[{}]", "`kind` is None"),
    ('[{"kind": "shell"}]', "`kind` is 'shell'"),
    ('["assert f(1) == 2", {"kind": "stdio", "stdin": ""}]', "test 2: it has no `stdout`"),
    ('{"kind": "stdio", "stdin": 1, "stdout": ""}', "`stdin` is a number; expected text"),
    ('{"kind": "stdio", "stdin": "", "stdout": "", "tolerence": 1}', "unknown key `tolerence`"),
    ('{"kind": "stdio", "stdin": "", "stdout": "", "tolerance": -1}', "`tolerance` is -1"),
    ('{"kind": "stdio", "stdin": "", "stdout": "", "tolerance": true}', "`tolerance` is True"),
    ('{"kind": "call", "function": "a.b", "arguments": [], "expected": 1}', "'a.b' is no name"),
    (
        '{"kind": "call", "function": "f", "arguments": {}, "expected": 1}',
        "`arguments` is an object",
    ),
    ('{"kind": "call", "function": "f", "arguments": []}', "no `expected`"),
    ('{"inputs": ["1"], "outputs": []}', "1 inputs and 0 outputs"),
    ('{"inputs": [1], "outputs": ["1"]}', "a number among its inputs"),
    ('{"fn_name": "f", "inputs": [1], "outputs": ["1"]}', "lists of arguments"),
    ("[{", "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ("the answer is 5", "neither JSON nor Python"),
    ("def f(x): return x", "defines a function"),
    ("def check(candidate):\n    assert candidate(1) == 1", "check\\(name\\)"),
    ("x = 1\nassert f(1) == 1", "no assert: x = 1"),
    ("assert f(x) == 1", "read as a call and its result"),
    ("assert f(1) == g(1)", "read as a call and its result"),
    ("assert f(f(1)) == 1", "read as a call and its result"),
    ("assert f(1) == 1 == 1", "read as a call and its result"),
    ("assert f(1) > 1", "read as a call and its result"),
    ("assert f(1) == 1 and f(2) == 2", "read as a call and its result"),
    ("assert f(*[1]) == 1", "read as a call and its result"),
    ("assert f(1)[0] == 1", "read as a call and its result"),
    ("assert a.f(1) == 1", "read as a call and its result"),
    ("assert f({[]}) == 1", "read as a call and its result"),
    ("assert f(...) == 1", "read as a call and its result"),
    ("assert abs(f(1) - 1) < -1", "read as a call and its result"),
    ("assert __import__('os').system('true') == 0", "read as a call and its result"),
    ("assert f(" + "[" * 70 + "]" * 70 + ") == 1", "nested too deep"),
    (json.dumps([f"assert f({n}) == '{'x' * 9999}'" for n in range(30)]), "characters; "),
]


@pytest.mark.parametrize(("answer", "message"), FAULTY)
def test_faulty_tests_are_errors_of_the_data_set(answer: str, message: str) -> None:
    with pytest.raises(GoldError, match=message):
        read_gold(answer)


class Lie(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __index__(self) -> int:
        return 7

    __hash__ = int.__hash__


Point = namedtuple("Point", "x y")
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
DEEP: Any = 1
for _ in range(1000):
    DEEP = [DEEP]

EQUAL: list[tuple[Any, Any, dict[str, Any]]] = [
    (1, 1, {}),
    (-(2**70), -(2**70), {}),
    (True, True, {}),
    (None, None, {}),
    ("ä\ud800\n", "ä\ud800\n", {}),
    (b"\xff", b"\xff", {}),
    (0.3, 0.1 + 0.2, {}),
    (2.0, 2, {}),
    (2, 2.0, {}),
    ([2], [2.0], {}),
    (math.nan, math.nan, {}),
    (math.inf, math.inf, {}),
    (0.0, -0.0, {}),
    (1 + 2j, 1 + 2j, {}),
    ([1, [2.5, "a"]], [1, [2.5, "a"]], {}),
    ((1, 2), (1, 2), {}),
    ((1, 2), Point(1, 2), {}),
    ([1, [2]], (1, (2,)), {"from_json": True}),
    ({1, 2}, {2, 1}, {}),
    ({1, 2}, frozenset([2, 1]), {}),
    ({1.0, 2.5}, {1, 2.5}, {}),
    ({frozenset([1, 2]), frozenset([3])}, {frozenset([3]), frozenset([2, 1])}, {}),
    ({1: "a", "b": [2]}, {"b": [2], 1: "a"}, {}),
    ({"a": 0.3}, {"a": 0.1 + 0.2}, {}),
    ({"a": 2}, Counter("aa"), {}),
    ({"a": 2}, OrderedDict(a=2), {}),
    ({1, 2}, [2, 1, 1], {"as_set": True}),
    (5, 5.4, {"tolerance": 0.5}),
    (1.5, 1.9, {"tolerance": 0.5}),
    ([1.5], [1.9], {"tolerance": 0.5}),
]

DIFFERENT: list[tuple[Any, Any, dict[str, Any]]] = [
    (1, True, {}),
    (True, 1, {}),
    (0, False, {}),
    (0, None, {}),
    (None, 0, {}),
    (2, 2.0, {"from_json": True}),
    (2, 2.0000000001, {}),
    (2**53 + 1, float(2**53), {}),
    (2, "2", {}),
    ("2", 2, {}),
    ("a", b"a", {}),
    (0.3, 0.3001, {}),
    (math.nan, 0.0, {}),
    (0.0, math.nan, {}),
    (math.inf, 10**400, {}),
    (1.0, 10**400, {}),
    (1.0, True, {}),
    ([1, 2], [2, 1], {}),
    ([1, 2], [1], {}),
    ([1, 2], (1, 2), {}),
    ((1, 2), [1, 2], {}),
    ((1, 2), [1, 2], {"from_json": True}),
    ({1, 2}, {1, 3}, {}),
    ({1, 2}, {1}, {}),
    ({1, 2}, [1, 2], {}),
    ({1: "a"}, {"1": "a"}, {}),
    ({1: "a"}, {True: "a"}, {}),
    ({1: "a"}, {1: "b"}, {}),
    ({1: "a"}, {1: "a", 2: "b"}, {}),
    ({1, 2}, {1: 1, 2: 2}, {"as_set": True}),
    (7, Lie(3), {}),
    (7, 7.6, {"tolerance": 0.5}),
    (1, True, {"tolerance": 0.5}),
    ([1, 2, 3], range(1, 4), {}),
    ([1], deque([1]), {}),
    ([], iter([]), {}),
    (ENDLESS[:0], ENDLESS, {}),
    ([1], DEEP, {}),
    ("x", object(), {}),
]


@pytest.mark.parametrize(("expected", "result", "how"), EQUAL)
def test_results_that_are_right(expected: Any, result: Any, how: dict[str, Any]) -> None:
    assert Comparison(**how).is_met(expected, encode(result).encode())


@pytest.mark.parametrize(("expected", "result", "how"), DIFFERENT)
def test_results_that_are_wrong(expected: Any, result: Any, how: dict[str, Any]) -> None:
    assert not Comparison(**how).is_met(expected, encode(result).encode())


FORGED = [
    ({1}, b'["set",["int","0x1"],["int","0x1"]]'),
    (
        {1: 2},
        b'["dict",["tuple",["int","0x1"],["int","0x2"]],["tuple",["int","0x1"],["int","0x2"]]]',
    ),
    (1, b'["int","1"] ["int","0x1"]'),
    (1, b"1"),
    ("a", b'"a"'),
    ([1], b"[1]"),
]


@pytest.mark.parametrize(("expected", "line"), FORGED)
def test_lines_that_no_result_is_written_as(expected: Any, line: bytes) -> None:
    assert not Comparison().is_met(expected, line)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.integers() | st.text(), inner)
        | st.sets(st.integers() | st.text() | st.floats())
    ),
    max_leaves=20,
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["int", "list", "set"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
@settings(max_examples=200)
def test_every_value_equals_itself_and_nothing_around_it(value: Any) -> None:
    line = encode(value).encode()
    assert Comparison().is_met(value, line)
    assert not Comparison().is_met([value], line)
    assert not Comparison().is_met(value, encode([value]).encode())


@given(VALUES, st.binary() | PLAIN.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=300)
def test_no_line_breaks_the_comparison(expected: Any, line: bytes) -> None:
    assert Comparison().is_met(expected, line) in (False, line == encode(expected).encode())


OUTPUTS = [
    ("1\n2\n", b"1\n2\n", None, True),
    ("1\n2", b"1  \n2\t\n\n\n", None, True),
    ("", b"", None, True),
    ("", b"\n", None, True),
    ("1\n2", b"1\r\n2\r\n", None, True),
    ("1 2", b"1  2", None, False),
    ("1\n2", b"1\n\n2", None, False),
    ("1", b" 1", None, False),
    ("1", b"1.0", None, False),
    ("1", b"1\n2", None, False),
    ("\xff", b"\xff", None, False),
    ("0.333 yes", b"0.3333\nyes", 1e-3, True),
    ("0.333", b"0.335", 1e-3, False),
    ("0.333", b"0.333 0.333", 1e-3, False),
    ("0.333", b"x", 1e-3, False),
    ("5", b"nan", 1e9, False),
]


@pytest.mark.parametrize(("expected", "output", "tolerance", "same"), OUTPUTS)
def test_output(expected: str, output: bytes, tolerance: float | None, same: bool) -> None:
    assert same_output(expected, output, tolerance) is same
