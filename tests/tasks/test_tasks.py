"""The generators: right answers, no duplicates, splits that no seed or wording can cross."""

import hashlib
import itertools
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.rewards.registry import judge
from common.tasks.question import Question, Space, draw, split_of, unravel
from common.tasks.registry import TASKS, get_task

HARDER: dict[str, dict[str, Any]] = {
    "multiplication": {"first_digits": 3, "second_digits": 2},
    "counting": {"min_length": 12, "max_length": 30},
    "scheduling": {"min_tasks": 5, "max_tasks": 7},
}
NUMBER = re.compile(r"\d+")


def content(question: Question) -> tuple[object, ...]:
    """What is asked, read from the text alone, with order and names taken out."""
    if question.task == "multiplication":
        return tuple(sorted(map(int, NUMBER.findall(question.question))))
    if question.task == "counting":
        return tuple(re.findall(r'"(\w+)"', question.question))
    durations, needs = read_schedule(question.question)
    orders = itertools.permutations(durations)
    return min(
        tuple((durations[n], *sorted(order.index(m) for m in needs[n])) for n in order)
        for order in orders
    )


def read_schedule(text: str) -> tuple[dict[str, int], dict[str, list[str]]]:
    durations, needs = {}, {}
    for name, days, needed in re.findall(
        r"Task (\w) takes (\d+) days?(?: and needs ([^.]+))?", text
    ):
        durations[name] = int(days)
        needs[name] = needed.split(" and ") if needed else []
    return durations, needs


def solve(question: Question) -> int:
    """The answer from the question's text, by another method than the generator's."""
    numbers = [int(n) for n in NUMBER.findall(question.question)]
    if question.task == "multiplication":
        return sum(numbers[0] for _ in range(numbers[1]))
    if question.task == "counting":
        letter, word = re.findall(r'"(\w+)"', question.question)
        return len(word.split(letter)) - 1
    durations, needs = read_schedule(question.question)
    days, done, left = 0, set[str](), dict(durations)
    while left:  # one day at a time: everything whose prerequisites were complete this morning
        running = [name for name in left if done.issuperset(needs[name])]
        for name in running:
            left[name] -= 1
        finished = {name for name in running if left[name] == 0}
        done |= finished
        left = {name: rest for name, rest in left.items() if name not in finished}
        days += 1
    return days


@pytest.mark.parametrize("harder", [False, True], ids=["default", "harder"])
@pytest.mark.parametrize("task", TASKS)
def test_answers_are_right_and_questions_distinct(task: str, harder: bool) -> None:
    questions = TASKS[task].generate(600, split="eval", seed=1, **(HARDER[task] if harder else {}))
    assert len({question.question for question in questions}) == 600
    for question in questions:
        assert question.task == task
        assert question.answer == str(solve(question)), question
        text = f"<think></think><answer>{question.answer}</answer>"
        row = {"answer": question.answer, "verify_type": question.verify_type}
        assert judge(text, row).reward == 1


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_content(task: str) -> None:
    """Different seeds on purpose: the side of a question must not depend on them."""
    train = TASKS[task].generate(2000, split="train", seed=3)
    held_out = TASKS[task].generate(600, split="eval", seed=4)
    assert {content(q) for q in train}.isdisjoint({content(q) for q in held_out})


def test_swapped_factors_and_wordings_stay_on_one_side() -> None:
    """All 4,320 questions: each product has both orders and three wordings, on one side only."""
    sides: dict[tuple[object, ...], set[str]] = {}
    texts: dict[tuple[object, ...], int] = {}
    for split, count in (("train", 2772), ("eval", 1548)):
        for question in TASKS["multiplication"].generate(count, split=split, seed=0):
            sides.setdefault(content(question), set()).add(split)
            texts[content(question)] = texts.get(content(question), 0) + 1
    assert len(sides) == 90 * 8
    assert all(len(side) == 1 for side in sides.values())
    assert set(texts.values()) == {6}


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_questions(task: str) -> None:
    generate = TASKS[task].generate
    first = generate(50, split="train", seed=7)
    assert first == generate(50, split="train", seed=7)
    assert first == generate(80, split="train", seed=7)[:50]
    assert first != generate(50, split="train", seed=8)


def test_questions_do_not_depend_on_the_process() -> None:
    """Python's own string hash differs per process; a split or seed made of it would show."""
    code = (
        "from common.tasks.registry import TASKS; import hashlib;"
        "text = repr([t.generate(40, split='eval', seed=2) for t in TASKS.values()]);"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    here = repr([t.generate(40, split="eval", seed=2) for t in TASKS.values()])
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def test_too_many_questions_says_how_many_exist() -> None:
    few = {"first_digits": 1}
    with pytest.raises(UserError, match=r"100 distinct .* only (\d+) exist") as error:
        TASKS["multiplication"].generate(100, split="eval", seed=0, **few)
    found = re.search(r"only (\d+) exist", str(error.value))
    assert found
    exist = int(found.group(1))
    assert len(TASKS["multiplication"].generate(exist, split="eval", seed=5, **few)) == exist


@pytest.mark.parametrize(
    ("task", "difficulty", "named"),
    [
        ("multiplication", {"first_digit": 3}, "first_digit"),
        ("multiplication", {"first_digits": 0}, "first_digits = 0"),
        ("counting", {"min_length": 9, "max_length": 4}, "min_length 9 exceeds max_length 4"),
        ("scheduling", {"min_tasks": 5}, "min_tasks 5 exceeds max_tasks 4"),
        ("scheduling", {"max_duration": "long"}, "max_duration = 'long'"),
    ],
)
def test_bad_difficulty_is_named(task: str, difficulty: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        TASKS[task].generate(1, split="train", seed=0, **difficulty)


def test_unknown_task_lists_the_known() -> None:
    with pytest.raises(UserError, match="multiplication, counting, scheduling"):
        get_task("division")


def test_counts_are_spread() -> None:
    """No single answer is right for half of the counting questions."""
    answers = [q.answer for q in TASKS["counting"].generate(600, split="eval", seed=0)]
    assert max(answers.count(answer) for answer in set(answers)) < 300


@settings(max_examples=60)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 999))
def test_draw_exhausts_a_space_without_repetition(radices: list[int], seed: int) -> None:
    """Every index of the split exactly once, whatever the order of drawing."""
    size = 1
    for radix in radices:
        size *= radix

    def decode(index: int) -> tuple[str, Question]:
        text = str(unravel(index, radices))
        return text, Question("t", text, "1", "EXACT", {})

    expected = {text for text, _ in map(decode, range(size)) if split_of(text) == "train"}
    drawn = draw([Space(size, decode)], len(expected), "train", seed, "t")
    assert len(drawn) == len(expected)
    assert {question.question for question in drawn} == expected
    with pytest.raises(UserError, match=f"only {len(expected)} exist"):
        draw([Space(size, decode)], len(expected) + 1, "train", seed, "t")
