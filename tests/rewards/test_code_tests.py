"""Tests of CODE: how they are read from a gold answer."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from common.rewards.code import read_gold
from common.rewards.code_results import Applied, Comparison
from common.rewards.code_tests import CallTest, StdioTest
from common.rewards.rule import GoldError


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
    ("assert set(f(1)) == set((4, 5))", [f(1, to={4, 5}, through=(Applied("set"),))]),
    ("assert f(1) in (2, 3)", [CallTest("f", (1,), (2, 3))]),
    ("assert abs(f(1) - 1.5) <= 1e-6", [f(1, to=1.5, relative=0.0, tolerance=1e-6)]),
    ("assert abs(f(1) - 2) < 1", [f(1, to=2, relative=0.0, tolerance=math.nextafter(1, 0))]),
    (
        "import math\nassert math.isclose(f(1), 2, rel_tol=0.1)",
        [f(1, to=2.0, relative=0.1, tolerance=0.0)],
    ),
    ("assert f(1) == 10**9 + 7", [f(1, to=10**9 + 7)]),
    ("assert f([0] * 3, -(2**31)) == 'a' + 'b'", [f([0] * 3, -(2**31), to="ab")]),
    ("assert f(list(range(3))) == 1 / 2", [f([0, 1, 2], to=0.5)]),
    ("assert sorted(f(1)) == [1, 2]", [f(1, to=[1, 2], through=(Applied("sorted"),))]),
    (
        "assert sorted(f(1), reverse=True) == [2, 1]",
        [f(1, to=[2, 1], through=(Applied("sorted", (), (("reverse", True),)),))],
    ),
    ("assert len(set(f(1))) == 2", [f(1, to=2, through=(Applied("set"), Applied("len")))]),
    ("assert round(f(1), 2) == 1.23", [f(1, to=1.23, through=(Applied("round", (2,)),))]),
    ("assert f(1) != 3\nassert 3 != f(2)", [f(n, to=3, differs=True) for n in (1, 2)]),
    (
        "from math import isclose\nassert isclose(1.5, f(1), abs_tol=0.5)",
        [f(1, to=1.5, relative=1e-9, tolerance=0.5)],
    ),
    ("assert np.isclose(f(1), 2)", [f(1, to=2.0, relative=1e-5, tolerance=1e-8)]),
    ("assert f(1) == pytest.approx(2)", [f(1, to=2.0, relative=1e-6, tolerance=1e-12)]),
    ("assert f(1) == approx([2], abs=0.5)", [f(1, to=[2.0], relative=0.0, tolerance=0.5)]),
    ("assert Solution().f(3) == 4", [f(3, to=4)]),
    ("s = Solution()\nx, y = [3, 1], 2\nassert s.f(x, y) == 4", [f([3, 1], 2, to=4)]),
    ("n = 3\nxs = [n, n + 1]\ng = f\nassert g(xs) == n", [f([3, 4], to=3)]),
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
    ("x = g(1)\nassert f(1) == 1", "no assert: x = g"),
    ("x = 1\nx.y = 2\nassert f(1) == 1", "no assert: x.y = 2"),
    ("for x in (1, 2):\n    assert f(x) == 1", "no assert: for"),
    ("assert f(1) == 9**9**9", "read as a call and its result"),
    ("assert f(1) == 1 << 10**9", "read as a call and its result"),
    ("assert f(1) == [0] * 10**9", "read as a call and its result"),
    ("assert f(1) == 'ab' * 10**6", "read as a call and its result"),
    ("assert f(range(10**9)) == 1", "read as a call and its result"),
    ("assert f(1) == 1 / 0", "read as a call and its result"),
    ("assert f(1) == 'a%9999999999d' % 1", "read as a call and its result"),
    ("assert eval(f(1)) == 1", "read as a call and its result"),
    ("assert sorted(f(1), key=g) == [1]", "read as a call and its result"),
    ("a = [1] * 99\n" + "a = [a, a]\n" * 40 + "assert f(a)", "no assert: a = "),
    ("assert round(f(1), -(10**9)) == 0", "read as a call and its result"),
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
