"""`python -m workflows.suites`: its table, and how it reads files of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import REPOSITORY

from common.config import RewardsConfig
from common.errors import UserError
from common.rewards.scorer import Scorer
from workflows import suites
from workflows.suite_files import (
    Case,
    changed_cases,
    notation_cases,
    own_golds,
    policy,
    read_golds,
    read_solutions,
    read_test_file,
    right_styles,
)
from workflows.suites import HEAD, Suite, judged, outside_suites, own_suites, row_of

PYTEST = """
import pytest
@pytest.mark.parametrize(
    "gold, pred, expected", [("5", "It is $5$", 1), ("5", f"{x}", 1), (r"5", "6", 0)]
)
def test_one(gold, pred, expected): raise SystemExit("never run")

@pytest.mark.parametrize("gold,pred,strict,expected", [("5", "5", True, 1)])
def test_options(gold, pred, strict, expected): ...
"""
UNITTEST = """
class Test(unittest.TestCase):
    def test_same(self):
        test_in = "1/2"
        test_out = "0.5"
        self.assertTrue(is_equiv(test_in, test_out))
    def test_other(self):
        test_in = "1"
        test_out = "2"
        self.assertFalse(is_equiv(test_in, test_out))
"""


def test_others_tests_are_read_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(PYTEST)
    (tmp_path / "test_b.py").write_text(UNITTEST)
    assert read_test_file(tmp_path / "test_a.py") == [
        Case("It is $5$", "5", True),
        Case("6", "5", False),
    ]
    assert read_test_file(tmp_path / "test_b.py") == [
        Case(r"\boxed{1/2}", "0.5", True),
        Case(r"\boxed{1}", "2", False),
    ]
    (suite,) = outside_suites([], [tmp_path], None)
    assert len(suite.cases) == 4


def test_golds_of_data_sets(tmp_path: Path) -> None:
    path = tmp_path / "golds.jsonl"
    rows = [
        {"answer": "It is <<1+1=2>>2.\n#### 2"},
        {"answer": 27.0},
        {"final_answer": ["1", "2"], "answer": "no"},
        {"solution": r"So \boxed{1} and then \boxed{\frac12}."},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_golds(path) == ["2", "27.0", "1, 2", r"\frac12"]
    path.write_text('{"question": "?"}')
    with pytest.raises(UserError, match="no `answer` and no box"):
        read_golds(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_golds(tmp_path / "none.jsonl")
    path.write_text("")
    with pytest.raises(UserError, match="no cases were found"):
        outside_suites([], [REPOSITORY / "tests" / "workflows" / "test_suites.py"], path)


def test_solutions_with_labels(tmp_path: Path) -> None:
    path = tmp_path / "solutions.jsonl"
    sample = {"is_correct": False, "solution": "So 17.\nA: 17"}
    path.write_text(json.dumps({"question": "?", "ground_truth": "So\nA: 18", "small": sample}))
    assert read_solutions(path, "MATH") == [Case("So 17.\nA: 17", "18", False)]


def test_a_row_counts_what_it_says() -> None:
    right, wrong = Case(r"\boxed{5}", "5", True), Case(r"\boxed{6}", "5", False)
    mislabelled = Case(r"\boxed{7}", "7", False)
    unread = Case(r"\boxed{5}", r"\hello", True)
    suite = Suite("mine", [right, wrong, mislabelled, unread])
    with Scorer(RewardsConfig()) as scorer:
        found = judged(scorer, suite.cases)
    assert [one.passed for one in found] == [True, False, True, None]
    row = row_of(suite, found, None, {unread.key: "why"})
    assert dict(zip(HEAD, row, strict=True)) == {
        "suite": "mine",
        "rule": "MATH",
        "cases": "4",
        "refused": "1",
        "ours": "2",
        "math-verify": "",
        "passes": "1",
        "policy": "1",
        "open": "1",
    }


def test_own_suites_agree_in_all_cases(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command, with every 40th case."""
    thinned = [Suite(suite.name, suite.cases[::40]) for suite in own_suites()]
    assert {suite.name for suite in thinned} == {"pairs", "right styles", "changed answers"}
    monkeypatch.setattr(suites, "own_suites", lambda: thinned)
    suites.main(golds=[], tests=[], solutions=None, first=0, show=False)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == list(HEAD)
    assert len(lines) == len(thinned)
    for line in lines:
        assert line.split()[-3:] == ["0", "0", "0"]


def test_styles_and_policy_are_what_the_documents_say() -> None:
    assert len(right_styles()) >= 20
    names = [style["name"] for style in right_styles()]
    assert len(set(names)) == len(names)
    assert len(notation_cases([r"\frac12", "$x$"])) == 2 * sum(
        bool(style.get("notation")) for style in right_styles()
    )
    assert not {case.gold for case in changed_cases("MATH")} & set("0")
    assert all(len(key) == 12 for key in policy())
    assert len(own_golds()) == 20


def test_the_documented_table_has_the_cases_that_there_are() -> None:
    """All are decided as they should be, which the tests of the rewards hold."""
    readme = (REPOSITORY / "workflows" / "README.md").read_text(encoding="utf-8")
    for suite in own_suites():
        count = len(suite.cases)
        start = f"| {suite.name} | `{suite.cases[0].rule}` | {count} | 0 | {count} | "
        (row,) = [line for line in readme.splitlines() if line.startswith(start)]
        assert row.endswith("| 0 | 0 | 0 |")
