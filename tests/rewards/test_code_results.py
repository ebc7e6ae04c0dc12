"""Results of CODE: when what a call returned, or a program printed, is right."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, deque, namedtuple
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.rewards.code_results import Applied, Comparison, same_output
from common.rewards.sandbox.child import encode


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
    ({1, 2}, [2, 1, 1], {"through": (Applied("set"),)}),
    ({1, 2}, {1: 1, 2: 2}, {"through": (Applied("set"),)}),
    ([1, 2], (2, 1), {"through": (Applied("sorted"),)}),
    ([[1], [2]], [[2], [1]], {"through": (Applied("sorted"),)}),
    (2, "ab", {"through": (Applied("len"),)}),
    (1.23, 1.2345, {"through": (Applied("round", (2,)),)}),
    (2, [3, 3, 1], {"through": (Applied("set"), Applied("len"))}),
    (3, 4, {"differs": True}),
    (3, None, {"differs": True}),
    (3, [b"x", 1j, {1: (2.5, {3})}], {"differs": True}),
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
    ([1, 2], [2, "1"], {"through": (Applied("sorted"),)}),
    ([1, 2], [True, 2], {"through": (Applied("sorted"),)}),
    ([1, 2], 12, {"through": (Applied("sorted"),)}),
    (2, 2, {"through": (Applied("len"),)}),
    (1.23, "1.23", {"through": (Applied("round", (2,)),)}),
    (3, 3.0, {"differs": True}),
    (1, True, {"differs": True}),
    (3, object(), {"differs": True}),
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


NANS = [float("nan"), float("nan")]


@pytest.mark.parametrize(
    ("expected", "result", "equal"),
    [
        (set(NANS), set(NANS), True),
        (set(NANS), {NANS[0], 1.0}, False),
        (dict.fromkeys(NANS, 1), dict.fromkeys(NANS, 1), True),
        ({NANS[0]: 1, NANS[1]: 2}, {NANS[0]: 2, NANS[1]: 1}, True),
        ({NANS[0]: 1, NANS[1]: 2}, {NANS[0]: 1, NANS[1]: 1}, False),
    ],
)
def test_two_nan_are_two_members(expected: Any, result: Any, equal: bool) -> None:
    assert Comparison().is_met(expected, encode(result).encode()) == equal


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
