"""Every reward rule by name, and the one place that turns a rule's fault into a null reward."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

from common.config import FunctionReward, RewardsConfig
from common.errors import UserError
from common.rewards import (
    answer_tag,
    boxed_numerical,
    code,
    exact,
    format,
    gym_answer,
    last_number,
    length,
    math_answer,
    multiple_choice,
    repetition,
    similarity,
)
from common.rewards.function import find_function, source_hash
from common.rewards.rule import (
    ABSTAINED,
    AuxReward,
    GoldError,
    Judge,
    Reward,
    Row,
    Verdict,
    Verifier,
    always,
)

GIB = 2**30


VERIFY: dict[str, Verifier] = {
    "LAST_NUMBER": Verifier(always(last_number.judge), last_number.read_gold),
    "BOXED_NUMERICAL": Verifier(always(boxed_numerical.judge), boxed_numerical.read_gold),
    "ANSWER_TAG": Verifier(always(answer_tag.judge), answer_tag.read_gold),
    "EXACT": Verifier(always(exact.judge), exact.read_gold),
    "MULTIPLE_CHOICE": Verifier(always(multiple_choice.judge), multiple_choice.read_gold),
    "MATH": Verifier(
        math_answer.open_rule,
        math_answer.read_gold,
        place="worker",
        gold_place="worker",
        seconds=lambda rewards: rewards.math.seconds,
        require=math_answer.require,
        packages=("math-verify", "latex2sympy2_extended", "sympy"),
        max_memory=2 * GIB,
    ),
    "CODE": Verifier(
        code.open_rule,
        code.read_gold,
        place="worker",
        seconds=code.seconds,
        require=code.require,
    ),
    "SIMILARITY": Verifier(
        similarity.open_rule,
        similarity.read_gold,
        place="worker",
        seconds=lambda rewards: rewards.similarity.seconds,
        require=similarity.require,
        packages=("sentence-transformers", "torch", "transformers"),
    ),
    "REASONING_GYM": Verifier(
        gym_answer.open_rule,
        gym_answer.read_gold,
        place="jail",
        gold_place="jail",
        seconds=lambda rewards: rewards.reasoning_gym.seconds,
        require=gym_answer.require,
        packages=("reasoning-gym", "sympy"),
    ),
}

EXTRAS: dict[str, AuxReward] = {
    "format": AuxReward(lambda rewards: format.reward),
    "length": AuxReward(length.open_rule, needs=("completion_tokens",)),
    "repetition": AuxReward(repetition.open_rule),
}


def extras_of(rewards: RewardsConfig) -> dict[str, AuxReward]:
    """The built-in extras and the recipe's own functions, by name."""
    return EXTRAS | {name: _own(name, reward) for name, reward in rewards.functions.items()}


def _own(name: str, reward: FunctionReward) -> AuxReward:
    def open_function(rewards: RewardsConfig) -> Reward:
        return find_function(name, reward)

    return AuxReward(open_function, place="worker", seconds=lambda rewards: reward.seconds)


def get_rule(name: str, rewards: RewardsConfig) -> Verifier | AuxReward:
    """A verify type or an extra by name; the former have capitals, the latter none.

    Raises:
        UserError: there is none; lists the known ones.
    """
    if name in VERIFY:
        return VERIFY[name]
    return extras_of(rewards).get(name) or get_verifier(name)


def get_verifier(verify_type: str) -> Verifier:
    """The verify type of that name; raises `UserError` that lists the known ones."""
    if verify_type not in VERIFY:
        near = difflib.get_close_matches(verify_type.upper(), VERIFY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(VERIFY)
        raise UserError(f"unknown verify_type {verify_type!r}; there are {known}{hint}")
    return VERIFY[verify_type]


def package_versions(verify_types: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that may change what these types say."""
    packages = {package for name in verify_types for package in get_verifier(name).packages}
    return {package: version(package) for package in sorted(packages)}


def function_versions(rewards: RewardsConfig) -> dict[str, str]:
    """Hashes of the files that hold the recipe's own functions."""
    used = {name: rewards.functions[name] for name in rewards.extras() if name in rewards.functions}
    return {f"{name}: {reward.function}": source_hash(reward) for name, reward in used.items()}


def check_gold(verify_type: str, answer: str) -> None:
    """Raise `UserError` if the type is unknown or cannot read `answer` as a gold answer.

    Reads it in this process, wherever the type's golds are to be read.
    """
    verifier = get_verifier(verify_type)
    try:
        verifier.read_gold(answer)
    except GoldError as error:
        raise GoldError(unreadable(verify_type, answer, str(error))) from None


def unreadable(verify_type: str, answer: str, why: str) -> str:
    """What is said about a gold answer that its type cannot read."""
    shown = answer if len(answer) <= 80 else answer[:77] + "..."
    return f"answer {shown!r} cannot be read as {verify_type}: it {why}"


def open_rule(name: str, rewards: RewardsConfig) -> Judge:
    """The rule of that name, ready to judge in this process.

    What it gives is a verdict always: a fault of the rule itself is an `infra_error` with its
    reason, never a reward of 0. An extra's number comes as `correct`, its None as `ABSTAINED`.

    Raises:
        UserError: there is no such rule, or it cannot be opened. Of what it gives: the gold cannot
            be read under the verify type.
    """
    rule = get_rule(name, rewards)
    if isinstance(rule, AuxReward):
        return _guarded(name, _as_judge(name, rule.open(rewards)))
    return _guarded(name, rule.open(rewards))


def _guarded(name: str, judge: Judge) -> Judge:
    def guarded(text: str, row: Row) -> Verdict:
        try:
            verdict = judge(text, row)
        except GoldError:
            check_gold(row["verify_type"], row["answer"])
            raise
        except (Exception, SystemExit) as error:
            return fault(name, f"{type(error).__name__}: {error}")
        if verdict.reward is not None and not math.isfinite(verdict.reward):
            return fault(name, f"gave {verdict.reward}")
        return verdict

    return guarded


def _as_judge(name: str, reward: Callable[[str, Row], Any]) -> Judge:
    def judge(text: str, row: Row) -> Verdict:
        value = reward(text, row)
        if value is None:
            return ABSTAINED
        # bool is an int; numpy's scalars are neither and have __float__.
        if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
            return fault(name, f"gave {value!r:.80}, no number")
        return Verdict(float(value), "correct", None)

    return judge


def fault(name: str, reason: str) -> Verdict:
    """The verdict on a completion that rule `name` failed to judge."""
    return Verdict(None, "infra_error", None, f"{name}: {reason}")
    return Verdict(None, "infra_error", None, f"{name}: {reason}")


def judge(text: str, row: Row) -> Verdict:
    """Judge one completion in this process by its row's verify type, with default settings.

    Raises:
        UserError: the verify type is unknown, or the gold cannot be read under it.
    """
    return open_rule(row["verify_type"], RewardsConfig())(text, row)
