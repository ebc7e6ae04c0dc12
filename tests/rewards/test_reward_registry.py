"""The reward rules by name: what golds they refuse, and that recipe and registries agree."""

from typing import get_args

import pytest

from common.config import RewardsConfig, VerifyType
from common.errors import UserError
from common.rewards.registry import AUX_REWARDS, VERIFY, check_gold, judge
from common.rewards.rule import VERDICTS


@pytest.mark.parametrize(
    ("verify_type", "gold"),
    [
        ("LAST_NUMBER", "nan"),
        ("LAST_NUMBER", "inf"),
        ("LAST_NUMBER", ""),
        ("LAST_NUMBER", "14 days"),
        ("LAST_NUMBER", "1,23"),
        ("LAST_NUMBER", "1/0"),
        ("LAST_NUMBER", "1e10001"),
        ("LAST_NUMBER", "9" * 4097),
        ("BOXED_NUMERICAL", "x"),
        ("BOXED_NUMERICAL", r"\sqrt{2}"),
        ("BOXED_NUMERICAL", "5 or 6"),
        ("ANSWER_TAG", " "),
        ("ANSWER_TAG", "<answer>14</answer>"),
        ("EXACT", "\n"),
        ("LAST_NUMBERS", "14"),
        ("last_number", "14"),
    ],
)
def test_unreadable_gold_is_an_error_and_no_reward(verify_type: str, gold: str) -> None:
    with pytest.raises(UserError, match=verify_type):
        check_gold(verify_type, gold)
    with pytest.raises(UserError, match=verify_type):
        judge("14", {"answer": gold, "verify_type": verify_type})


def test_recipe_and_registries_name_the_same_rules() -> None:
    assert list(get_args(VerifyType)) == list(VERIFY)
    weights = {name: {"weight": 1.0} for name in AUX_REWARDS}
    assert list(RewardsConfig.model_validate(weights).aux_weights()) == list(AUX_REWARDS)


def test_outcomes_are_named_as_documented() -> None:
    assert VERDICTS == ("correct", "wrong", "no_answer", "timeout", "infra_error")
