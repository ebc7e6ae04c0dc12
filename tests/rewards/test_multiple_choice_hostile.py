"""MULTIPLE_CHOICE on any text: of two letters none decides, nothing breaks it or is slow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.measured import QUICK, best_seconds

from common.rewards.multiple_choice import judge

LETTERS = st.sampled_from("ABCDE")


@given(LETTERS, LETTERS, LETTERS)
def test_one_marked_letter_decides_and_two_never_do(one: str, other: str, gold: str) -> None:
    for marked in (rf"\boxed{{{one}}}", f"({one})", f"The answer is {one}.", f"**{one}**"):
        assert judge(f"{other} was near. {marked}", {"answer": gold}).reward == (one == gold)
        both = judge(f"({other}) {marked}", {"answer": gold})
        assert both.reward == (one == other == gold)


MARKS = ["**", r"\boxed{", "}", "<answer>", "</answer>", "answer is", "Answer:", "not ", "option "]
PIECES = st.sampled_from([*"AABbI()$ \n.'é是\ud800\x00", *MARKS, " or ", ", ", " and ", "</think>"])
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join))


@given(TEXTS)
def test_no_text_breaks_the_rule(text: str) -> None:
    verdict = judge(text, {"answer": "B"})
    assert verdict.verdict in ("correct", "wrong", "no_answer")
    assert verdict.reward == (verdict.verdict == "correct")


LONG = ["(A", "(A)", "A ", "A) ", "**B", "**", "answer is ", "answer: ((", "answer is A or "]
LONG += ["not (B) ", "A and ", r"\boxed{", r"\boxed{A and ", r"\boxed{A}", r"\boxed{{}", "{}"]
LONG += [
    "answer is A. Wait, ",
    "answer: A B ",
    "answer: A\n",
    "not A or ",
    "not the ",
    "answer is A, ",
]
LONG += [
    "A is wrong ",
    "A is ",
    "A nor B, nor ",
    "except for ",
    "wait, it is ",
    r"\boxed{A'",
    "'",
    "rather than ",
    "A + ",
]
LONG += ["<answer>", "<answer>A</answer>", "<answer>A ", " ", "\n", "'A", "answer", "a.", "not "]


@pytest.mark.parametrize("piece", LONG)
def test_100_kb_take_a_fraction_of_a_second(piece: str) -> None:
    text = piece * (100_000 // len(piece.encode()))
    assert best_seconds(lambda: judge(text, {"answer": "B"})) < QUICK
