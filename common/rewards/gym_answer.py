r"""REASONING_GYM: the row's reasoning-gym data set scores its own answer.

The gold is an entry of the data set (`common/tasks/gym_entry.py`), as a source of the kind
`reasoning_gym` writes it. What is scored is the content of the single `<answer>…</answer>`; without
such tags that of the last `\boxed{…}`; without either the whole answer part. Several answers are
wrong, and an answer tag that is not closed holds none.

The reward is the data set's own score, which for many of them gives part of 1 for part of an
answer; the verdict is `correct` at 1 alone. reasoning-gym evaluates some answers (`eval`, sympy's
`parse_expr`). Such answers are refused unless they are formulas, and all of this runs in the
sandbox: were the refusal incomplete, an answer could earn what it does not deserve, but not reach
the machine.
"""

from __future__ import annotations

from importlib.util import find_spec

from common.config import RewardsConfig
from common.errors import MissingToolError, UserError
from common.rewards.answer_part import (
    ANSWER_OPEN,
    answer_part,
    last_box,
    several_answers,
    tagged_answer,
)
from common.rewards.rule import NO_ANSWER, GoldError, Judge, Row, Verdict, graded
from common.rewards.sandbox.check import self_test
from common.tasks.gym_entry import Entry, fault_of, read_entry, score

INSTALL = "`make extras`"


def require(rewards: RewardsConfig) -> None:
    """Raise `MissingToolError` without reasoning-gym, or without a sandbox that holds."""
    require_package()
    self_test()


def require_package() -> None:
    """Raise `MissingToolError` if reasoning-gym is not installed."""
    if find_spec("reasoning_gym") is None:
        raise MissingToolError(f"REASONING_GYM needs the package reasoning-gym: {INSTALL}")


def open_rule(rewards: RewardsConfig) -> Judge:
    """Import reasoning-gym, which takes a second or two and is no completion's time."""
    require_package()
    import reasoning_gym  # noqa: F401

    return judge


def read_structure(answer: str) -> Entry:
    """The entry that a gold holds; imports nothing, so it may run anywhere.

    Raises:
        GoldError: it holds none.
    """
    try:
        return read_entry(answer)
    except UserError as error:
        raise GoldError(str(error)) from None


def read_gold(answer: str) -> Entry:
    """The entry, after its data set has scored its own answer 1 and nonsense less.

    Raises:
        GoldError: it holds none, the data set is unknown, or it does not score so.
    """
    entry = read_structure(answer)
    try:
        fault = fault_of(entry)
    except UserError as error:
        raise GoldError(str(error)) from None
    if fault:
        raise GoldError(fault)
    return entry


def judge(text: str, row: Row) -> Verdict:
    """The data set's score from 0 to 1; `correct` when it is 1."""
    entry = read_structure(row["answer"])
    part = answer_part(text) or ""
    if (several := several_answers(part)) is not None:
        return graded(False, several)
    answer = find_answer(part)
    if not answer:
        return NO_ANSWER
    try:
        reward = score(entry, answer)
    except UserError as error:
        raise GoldError(str(error)) from None
    return Verdict(reward, "correct" if reward == 1 else "wrong", answer)


def find_answer(part: str) -> str:
    """The answer in an answer part that has at most one tag of each kind; empty if it has none."""
    if ANSWER_OPEN in part:
        return (tagged_answer(part) or "").strip()
    boxed = last_box(part)
    return (part if boxed is None else boxed).strip()
