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
    auxiliary,
    code,
    ifeval,
    json_schema,
    llm_judge,
    math_answer,
    multiple_choice,
    numeric,
    reasoning_gym,
    regex,
    short_answers,
    similarity,
    sql,
)
from common.rewards.function import open_function, required_columns, source_hash
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
from common.tasks.golds import split_golds

GIB = 2**30


VERIFY: dict[str, Verifier] = {
    "LAST_NUMBER": Verifier(
        always(short_answers.judge_last_number), short_answers.read_last_number_gold, "a number"
    ),
    "BOXED_NUMERICAL": Verifier(
        always(short_answers.judge_boxed),
        short_answers.read_boxed_gold,
        r"a number in \boxed{…}",
    ),
    "ANSWER_TAG": Verifier(
        always(short_answers.judge_tag), short_answers.read_tag_gold, "<answer>…</answer>"
    ),
    "EXACT": Verifier(always(short_answers.judge_exact), short_answers.read_exact_gold, "any text"),
    "MULTIPLE_CHOICE": Verifier(
        always(multiple_choice.judge), multiple_choice.read_gold, "one letter, as Answer: B"
    ),
    "MATH": Verifier(
        math_answer.open_rule,
        math_answer.read_gold,
        r"a number or formula, as \boxed{…}",
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
        "a block ```python … ```",
        place="worker",
        seconds=code.seconds,
        require=code.require,
    ),
    "SIMILARITY": Verifier(
        similarity.open_rule,
        similarity.read_gold,
        "any text",
        place="worker",
        seconds=lambda rewards: rewards.similarity.seconds,
        require=similarity.require,
        packages=("sentence-transformers", "torch", "transformers"),
    ),
    "REASONING_GYM": Verifier(
        reasoning_gym.open_rule,
        reasoning_gym.read_gold,
        r"<answer>…</answer>, \boxed{…} or any text",
        place="sandbox",
        gold_place="sandbox",
        seconds=lambda rewards: rewards.reasoning_gym.seconds,
        require=reasoning_gym.require,
        packages=("reasoning-gym", "sympy"),
    ),
    "NUMERIC": Verifier(numeric.open_rule, numeric.read_gold, "a number"),
    "REGEX": Verifier(
        always(regex.judge),
        regex.read_gold,
        "any text",
        require=regex.require,
        packages=("google-re2",),
    ),
    "JSON_SCHEMA": Verifier(
        always(json_schema.judge),
        json_schema.read_gold,
        "a JSON value, best in a block ```json … ```",
        place="worker",
        gold_place="worker",
        seconds=lambda rewards: rewards.json_schema.seconds,
        require=json_schema.require,
        packages=("jsonschema",),
        max_memory=2 * GIB,
    ),
    "SQL": Verifier(
        sql.open_rule,
        sql.read_gold,
        "a query in a block ```sql … ```",
        place="worker",
        gold_place="worker",
        seconds=sql.seconds,
        require=sql.require,
    ),
    "JUDGE": Verifier(
        llm_judge.open_rule,
        llm_judge.read_gold,
        "any text",
        place="service",
        threads=lambda rewards: rewards.judge.max_concurrent,
        require=llm_judge.require,
    ),
    "IFEVAL": Verifier(
        ifeval.open_rule,
        ifeval.read_gold,
        "any text",
        require=ifeval.require,
        packages=("py3langid",),
    ),
}

AUX_REWARDS: dict[str, AuxReward] = {
    "format": AuxReward(lambda rewards: auxiliary.format_reward),
    "length": AuxReward(auxiliary.open_length, needs=("completion_tokens",)),
    "repetition": AuxReward(auxiliary.open_repetition),
}


def aux_rewards_of(rewards: RewardsConfig) -> dict[str, AuxReward]:
    """Return the built-in auxiliary rewards and the recipe's own functions, by name."""
    return AUX_REWARDS | {name: _own(name, reward) for name, reward in rewards.functions.items()}


def _own(name: str, reward: FunctionReward) -> AuxReward:
    def open_own(rewards: RewardsConfig) -> Reward:
        return open_function(name, reward)

    return AuxReward(open_own, place="worker", seconds=lambda rewards: reward.seconds)


def columns_of(name: str, rewards: RewardsConfig) -> list[str]:
    """Return the columns that rule `name` must be given, if it is one of the recipe's functions."""
    own = rewards.functions.get(name)
    return required_columns(name, own) if own else []


def get_rule(name: str, rewards: RewardsConfig) -> Verifier | AuxReward:
    """Return the verify type or auxiliary reward of that name; only verify types have capitals.

    Raises:
        UserError: there is none; the message lists the verify types.
    """
    if name in VERIFY:
        return VERIFY[name]
    return aux_rewards_of(rewards).get(name) or get_verifier(name)


def get_verifier(verify_type: str) -> Verifier:
    """Return the verify type of that name.

    Raises:
        UserError: there is none; the message lists those that exist.
    """
    if verify_type not in VERIFY:
        near = difflib.get_close_matches(verify_type.upper(), VERIFY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(VERIFY)
        raise UserError(f"unknown verify_type {verify_type!r}; there are {known}{hint}")
    return VERIFY[verify_type]


def package_versions(verify_types: Iterable[str]) -> dict[str, str]:
    """Return the versions of the packages that may change the verdicts of these verify types."""
    packages = {package for name in verify_types for package in get_verifier(name).packages}
    return {package: version(package) for package in sorted(packages)}


def function_versions(rewards: RewardsConfig) -> dict[str, str]:
    """Return a hash of each file that holds one of the recipe's own functions."""
    used = {
        name: rewards.functions[name] for name in rewards.aux_weights() if name in rewards.functions
    }
    return {f"{name}: {reward.function}": source_hash(reward) for name, reward in used.items()}


def check_gold(verify_type: str, answer: str) -> None:
    """Check that a verify type can read `answer` as a gold answer, or as several.

    It reads the answer in this process, wherever the type's golds are to be read.

    Raises:
        GoldError: the type cannot read it.
        UserError: there is no such type.
    """
    try:
        read_golds(verify_type, answer)
    except GoldError as error:
        raise GoldError(unreadable(verify_type, answer, str(error))) from None


def read_golds(verify_type: str, answer: str) -> None:
    """Read each gold of an answer in this process.

    Raises:
        GoldError: the type cannot read one; the message says why, and which one if there are
            several.
        UserError: there is no such type.
    """
    verifier = get_verifier(verify_type)
    golds = split_golds(answer, verify_type)
    for gold in golds:
        try:
            verifier.read_gold(gold)
        except GoldError as error:
            if len(golds) == 1:
                raise
            raise GoldError(f"has the gold {gold!r:.80}, which {error}") from None


def unreadable(verify_type: str, answer: str, why: str) -> str:
    """Return what an error says about a gold answer that its type cannot read."""
    shown = answer if len(answer) <= 80 else answer[:77] + "..."
    return f"answer {shown!r} cannot be read as {verify_type}: it {why}"


def open_rule(name: str, rewards: RewardsConfig) -> Judge:
    """Return the rule of that name, ready to judge in this process.

    The rule always gives a verdict: a fault of the rule itself is an `infra_error` with its reason,
    never a reward of 0. The number that an auxiliary reward gives becomes a verdict `correct`, its
    None becomes `ABSTAINED`.

    Raises:
        UserError: there is no such rule, or it cannot be opened. The rule itself raises it when the
            gold cannot be read under the verify type.
    """
    rule = get_rule(name, rewards)
    if isinstance(rule, AuxReward):
        return guard(name, _as_judge(name, rule.open(rewards)))
    return guard(name, _by_any_gold(name, rule.open(rewards)))


def _by_any_gold(verify_type: str, judge: Judge) -> Judge:
    """Return the rule for rows with several golds: the best of its verdicts on each counts."""

    def judge_any(text: str, row: Row) -> Verdict:
        golds = split_golds(row["answer"], verify_type)
        if len(golds) == 1:
            return judge(text, {**row, "answer": golds[0]})
        best: Verdict | None = None
        for gold in golds:
            verdict = judge(text, {**row, "answer": gold})
            if verdict.reward is None or verdict.reward == 1:
                return verdict
            if best is None or verdict.reward > (best.reward or 0.0):
                best = verdict
        assert best is not None
        return best

    return judge_any


def guard(name: str, judge: Judge) -> Judge:
    """Return the rule as one that always gives a verdict: see `open_rule`."""

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
    """Return the verdict on a completion that rule `name` failed to judge."""
    return Verdict(None, "infra_error", None, f"{name}: {reason}")
    return Verdict(None, "infra_error", None, f"{name}: {reason}")


def judge(text: str, row: Row) -> Verdict:
    """Judge one completion in this process by its row's verify type, with default settings.

    Raises:
        UserError: the verify type is unknown, or the gold cannot be read under it.
    """
    return open_rule(row["verify_type"], RewardsConfig())(text, row)
