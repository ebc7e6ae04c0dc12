r"""REASONING_GYM: the row's reasoning-gym data set scores its own answer.

The gold is an entry of the data set, as `common/tasks/reasoning_gym.py` writes it. The text that is
scored is the content of the single `<answer>…</answer>`; without such tags, that of the last
`\boxed{…}`; without either, the whole answer part. Several answers are wrong, and a tag that is not
closed holds none.

The reward is the data set's own score, and many data sets give a fraction of 1 for a partly right
answer; the verdict is `correct` at 1 alone. reasoning-gym evaluates some answers (`eval`, sympy's
`parse_expr`). Such answers are refused unless they are formulas, and all of this runs in the
sandbox: if that check missed one, an answer could earn an undeserved reward, but not reach the
machine.
"""

from __future__ import annotations

from common.config import RewardsConfig
from common.errors import UserError
from common.rewards.answer_part import (
    ANSWER_OPEN,
    answer_part,
    last_box,
    several_answers,
    tagged_answer,
)
from common.rewards.rule import NO_ANSWER, GoldError, Judge, Row, Verdict, graded
from common.rewards.sandbox.check import self_test
from common.tasks.reasoning_gym import Entry, fault_of, read_entry, require_package, score


def require(rewards: RewardsConfig) -> None:
    """Check that reasoning-gym is installed and the sandbox holds.

    Raises:
        MissingToolError: it is not, or it does not.
    """
    require_package("REASONING_GYM")
    self_test()


def open_rule(rewards: RewardsConfig) -> Judge:
    """Import reasoning-gym, which takes a second or two, before any completion is judged."""
    require_package("REASONING_GYM")
    import reasoning_gym  # noqa: F401

    return judge


def read_structure(answer: str) -> Entry:
    """Return the entry that a gold holds. It imports nothing, so it may run anywhere.

    Raises:
        GoldError: the gold holds none.
    """
    try:
        return read_entry(answer)
    except UserError as error:
        raise GoldError(str(error)) from None


def read_gold(answer: str) -> Entry:
    """Return the entry, after its data set has scored its own answer 1 and nonsense less.

    Raises:
        GoldError: the gold holds no entry, the data set is unknown, or it does not score so.
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
    """Let the data set score the answer, from 0 to 1; the verdict is `correct` at 1 alone."""
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
    """Return the answer in an answer part with at most one tag of each kind; empty without one."""
    if ANSWER_OPEN in part:
        return (tagged_answer(part) or "").strip()
    boxed = last_box(part)
    return (part if boxed is None else boxed).strip()
