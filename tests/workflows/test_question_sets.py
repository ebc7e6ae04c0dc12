"""The tracked question sets: their golds are right, and not to be had for nothing."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config import RewardsConfig
from common.rewards.scorer import Scorer
from common.runs.layout import REPOSITORY
from workflows.question_kinds import EASY, HARDER
from workflows.questions import PER_KIND, questions

QUESTIONS = REPOSITORY / "data" / "questions"

Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    lines = (QUESTIONS / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


PROBLEMS = rows("programming.jsonl")
SOLUTIONS = {row["prompt_id"]: row["solution"] for row in rows("programming-solutions.jsonl")}
LATEX = rows("latex.jsonl")


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(RewardsConfig()) as opened:
        yield opened


def cases_of(problem: Row) -> list[Any]:
    found = json.loads(problem["answer"])
    assert isinstance(found, list)
    return found


def expected(test: Any) -> Any:
    if isinstance(test, str):
        statement = ast.parse(test).body[0]
        assert isinstance(statement, ast.Assert)
        assert isinstance(statement.test, ast.Compare)
        return ast.literal_eval(statement.test.comparators[0])
    return test["expected"] if test["kind"] == "call" else test["stdout"]


def fenced(program: str) -> str:
    return f"Here it is:\n\n```python\n{program}```\n"


# Programming


def test_every_problem_says_what_it_wants() -> None:
    assert len(PROBLEMS) == len(SOLUTIONS) >= 80
    assert [problem["prompt_id"] for problem in PROBLEMS] == list(SOLUTIONS)
    assert len({problem["question"] for problem in PROBLEMS}) == len(PROBLEMS)
    for problem in PROBLEMS:
        name, question = problem["prompt_id"], problem["question"]
        tests = cases_of(problem)
        assert problem["verify_type"] == "CODE"
        assert 3 <= len(tests) <= 6, name
        assert len({str(test) for test in tests}) == len(tests), f"{name}: a test stands twice"
        asks_for_function = f"Write a Python function `{name}(" in question
        assert asks_for_function or ("reads" in question and "prints" in question), name
        for test in tests:
            if isinstance(test, str):
                assert test.startswith(f"assert {name}(")
            elif test["kind"] == "call":
                assert test["function"] == name
            assert asks_for_function == (isinstance(test, str) or test["kind"] == "call"), name


def test_all_forms_of_tests_are_there() -> None:
    forms = [
        "assert" if isinstance(test, str) else test["kind"]
        for problem in PROBLEMS
        for test in cases_of(problem)
    ]
    assert {form: forms.count(form) > 30 for form in ("assert", "call", "stdio")} == {
        "assert": True,
        "call": True,
        "stdio": True,
    }


def test_no_constant_passes() -> None:
    """Else a function that ignores its arguments would."""
    for problem in PROBLEMS:
        values = {json.dumps(expected(test)) for test in cases_of(problem)}
        assert len(values) > 1, problem["prompt_id"]


def test_every_solution_passes_and_every_constant_fails(scorer: Scorer) -> None:
    """The constant gives the first test's value, or prints it: one test at least must refuse it."""
    right = [(fenced(SOLUTIONS[problem["prompt_id"]]), problem) for problem in PROBLEMS]
    for (_, problem), verdict in zip(right, scorer.answers(right), strict=True):
        assert verdict.verdict == "correct", f"{problem['prompt_id']}: {verdict}"
    wrong = []
    for problem in PROBLEMS:
        first = cases_of(problem)[0]
        value = expected(first)
        is_program = not isinstance(first, str) and first["kind"] == "stdio"
        constant = f"def {problem['prompt_id']}(*arguments):\n    return {value!r}\n"
        wrong.append((fenced(f"print({value!r}, end='')\n" if is_program else constant), problem))
    for (_, problem), verdict in zip(wrong, scorer.answers(wrong), strict=True):
        assert verdict.verdict == "wrong", f"{problem['prompt_id']}: {verdict}"


MISTAKES = {
    "is_prime": "def is_prime(n):\n    return all(n % d for d in range(2, n))\n",
    "is_leap_year": "def is_leap_year(year):\n    return year % 4 == 0\n",
    "balanced": "def balanced(text):\n    return text.count('(') == text.count(')')\n",
    "factorial": "def factorial(n):\n    return n * factorial(n - 1) if n > 1 else n\n",
    "unique": "def unique(items):\n    return sorted(set(items))\n",
    "word_count": "def word_count(text):\n    return text.count(' ') + 1\n",
    "longest_word": "def longest_word(words):\n    return sorted(words, key=len)[-1]\n",
    "second_largest": "def second_largest(n):\n    return sorted(n)[-2]\n",
    "capitalize_words": "def capitalize_words(text):\n    return text.title()\n",
    "minimum_coins": "def minimum_coins(a, c):\n    return a // max(c) + a % max(c)\n",
    "print_sum": "print(input() + input())\n",
    "print_average": "print(sum(map(int, input().split())) / 3)\n",
}
"""Faults that the tests of a problem are there for."""


@pytest.mark.parametrize("name", MISTAKES)
def test_usual_mistakes_fail(name: str, scorer: Scorer) -> None:
    problem = next(problem for problem in PROBLEMS if problem["prompt_id"] == name)
    (verdict,) = scorer.answers([(fenced(MISTAKES[name]), problem)])
    assert verdict.verdict == "wrong", verdict


# LaTeX


def test_the_tracked_file_is_what_the_generator_makes() -> None:
    assert questions() == LATEX
    assert len(LATEX) == (len(EASY) + len(HARDER)) * PER_KIND >= 300
    assert len({row["question"] for row in LATEX}) == len(LATEX)


def test_golds_are_readable_and_right_in_a_box_and_wrong_with_one_more(scorer: Scorer) -> None:
    golds = [("MATH", row["answer"]) for row in LATEX]
    assert not any(scorer.unreadable_golds(golds))
    boxed = [(rf"So it is $\boxed{{{row['answer']}}}$.", row) for row in LATEX]
    for (_, row), verdict in zip(boxed, scorer.answers(boxed), strict=True):
        assert verdict.verdict == "correct", f"{row}: {verdict}"
    other = [(rf"\boxed{{{changed(row['answer'])}}}", row) for row in LATEX]
    for (text, row), verdict in zip(other, scorer.answers(other), strict=True):
        assert verdict.verdict == "wrong", f"{text} {row}: {verdict}"


def changed(answer: str) -> str:
    """`answer` with its last number one greater."""
    last = list(re.finditer(r"\d+", answer))[-1]
    return f"{answer[: last.start()]}{int(last[0]) + 1}{answer[last.end() :]}"


def test_no_question_shows_its_answer(scorer: Scorer) -> None:
    """Whatever stands between dollars is put into a box: repeating it must not be rewarded."""
    echoes = [
        (rf"\boxed{{{shown}}}", row)
        for row in LATEX
        for shown in re.findall(r"\$([^$]+)\$", row["question"])
    ]
    assert len(echoes) > 100
    for (text, row), verdict in zip(echoes, scorer.answers(echoes), strict=True):
        assert verdict.reward == 0, f"{row['question']} {text}: {verdict}"


BY_HAND = {
    "What is half of 11?": r"\frac{11}{2}",
    "Write one third as a fraction.": r"\frac{1}{3}",
    "What fraction of 11 is 3?": r"\frac{3}{11}",
    "What fraction of an hour is 35 minutes?": r"\frac{7}{12}",
    r"What is the reciprocal of $\frac{1}{8}$?": "8",
    "What is the mean of the numbers 10, 6 and 1?": r"\frac{17}{3}",
    r"What is 35\% of 30?": r"\frac{21}{2}",
    "A square has the area 28. How long is its side?": r"2\sqrt{7}",
    "Solve $6x + 12 = 4$ for $x$.": r"-\frac{4}{3}",
    "Give the set of all solutions of $x^2 - 7x + 12 = 0$.": r"\{3, 4\}",
    "What is the derivative of $6x^2 + 9x + 5$ with respect to $x$?": "12x + 9",
    "What is the midpoint of the points $(-5, -4)$ and $(6, 6)$?": r"(\frac{1}{2}, 1)",
}


def test_answers_are_those_worked_by_hand() -> None:
    answers = {row["question"]: row["answer"] for row in LATEX}
    assert {question: answers.get(question) for question in BY_HAND} == BY_HAND


def test_sources_of_the_recipes_are_these_files() -> None:
    for name, file in (("code", "programming"), ("math", "latex")):
        recipe = (REPOSITORY / "workflows" / "recipes" / f"{name}.toml").read_text()
        assert f'path = "data/questions/{file}.jsonl"' in recipe
    assert Path(QUESTIONS / "programming.jsonl").stat().st_size < 200_000
