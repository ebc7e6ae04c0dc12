"""What comes of several rules: the sum, the verdict, faults of one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from support.faulty_rules import CORRECT, GOOD, ROW

from common.config import RewardsConfig
from common.rewards import registry
from common.rewards.registry import VERIFY, open_rule
from common.rewards.rule import ABSTAINED, AuxReward, Verdict, always
from common.rewards.scorer import Scorer, combine


def test_parts_are_weighted_and_added() -> None:
    with Scorer(RewardsConfig.model_validate({"format": {"weight": 0.2}})) as scorer:
        whole, bare = scorer.judge([(GOOD, ROW), ("<answer>14</answer>", ROW)])
    assert (whole.reward, whole.answer, whole.aux_rewards) == (1.2, 1.0, {"format": 1.0})
    assert (bare.reward, bare.answer, bare.aux_rewards) == (1.0, 1.0, {"format": 0.0})


def test_sum_does_not_depend_on_the_order_of_the_parts() -> None:
    """Added one after the other, 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in the last bit."""
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    one = Verdict(1.0, "correct", None)
    forward = combine(CORRECT, {"a": one, "b": one}, {"answer": 0.1, "a": 0.2, "b": 0.3})
    backward = combine(CORRECT, {"b": one, "a": one}, {"answer": 0.3, "b": 0.2, "a": 0.1})
    assert forward.reward == backward.reward == math.fsum([0.1, 0.2, 0.3])


@pytest.mark.parametrize("parts", [(1e308, 1e308), (1e308, -1e308)])
def test_a_sum_beyond_all_numbers_is_no_reward(parts: tuple[float, float]) -> None:
    one, other = (Verdict(part, "correct", None) for part in parts)
    of = combine(CORRECT, {"a": one, "b": other}, {"answer": 1.0, "a": 10.0, "b": 10.0})
    assert of.reward is None
    assert of.verdict.verdict == "infra_error"
    assert of.verdict.reason.startswith("the weighted sum of")


def test_what_befell_an_extra_shows_in_the_verdict() -> None:
    weights = {"answer": 1.0, "mine": 0.5}
    failed = Verdict(None, "infra_error", None, "mine: oh")
    late = Verdict(0.0, "timeout", None, "mine: late")
    of = combine(CORRECT, {"mine": failed}, weights)
    assert (of.reward, of.answer, of.aux_rewards) == (None, 1.0, {"mine": None})
    assert of.verdict == Verdict(None, "infra_error", "14", "mine: oh")
    of = combine(CORRECT, {"mine": late}, weights)
    assert (of.reward, of.answer, of.aux_rewards) == (1.0, 1.0, {"mine": 0.0})
    assert of.verdict == Verdict(1.0, "timeout", "14", "mine: late")
    of = combine(CORRECT, {"mine": ABSTAINED}, weights)
    assert (of.reward, of.verdict, of.aux_rewards) == (1.0, CORRECT, {"mine": None})


def test_fault_of_a_rule_is_null_and_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare `except` made every fault of a rule a reward of 0."""

    def faulty(text: str, row: Mapping[str, Any]) -> Verdict:
        raise ZeroDivisionError("a bug of ours")

    rule = VERIFY["ANSWER_TAG"]
    monkeypatch.setitem(VERIFY, "ANSWER_TAG", replace(rule, open=always(faulty)))
    with Scorer(RewardsConfig()) as scorer:
        (judged,) = scorer.judge([(GOOD, ROW)])
    assert judged.reward is judged.answer is None
    assert judged.verdict.verdict == "infra_error"
    assert judged.verdict.reason == "ANSWER_TAG: ZeroDivisionError: a bug of ours"


@pytest.mark.parametrize("value", [math.nan, -math.inf, "1", b"1", [1.0]])
def test_an_extra_that_gives_no_number_failed(
    value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = AuxReward(lambda rewards: lambda text, row: value)  # type: ignore[return-value]
    monkeypatch.setitem(registry.AUX_REWARDS, "format", faulty)
    verdict = open_rule("format", RewardsConfig())(GOOD, ROW)
    assert (verdict.reward, verdict.verdict) == (None, "infra_error")
    assert verdict.reason.startswith("format: gave ")
