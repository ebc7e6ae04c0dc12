"""`rewards.math.judge = "math-verify"`: MATH as math-verify judges it, within the rule's limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.math_cases import verdict_on

from common.config import RewardsConfig
from common.config.recipe_file import parse_recipe
from common.errors import UserError
from common.rewards import math_verify_judge
from common.rewards.math_answer import open_rule
from common.rewards.rule import Verdict
from common.runs.stages import STAGES

BY_MATH_VERIFY = RewardsConfig.model_validate({"math": {"judge": "math-verify"}})


def verdict(text: str, gold: str) -> Verdict:
    return open_rule(BY_MATH_VERIFY)(text, {"answer": gold, "verify_type": "MATH"})


@pytest.mark.parametrize(
    ("text", "gold", "strict"),
    [
        (r"\boxed{0.333333}", "1/3", 0),
        ("The answer is $5$ million", "5", 0),
        ("It is 5 or 6", "6", 0),
        (r"\boxed{x=6=5}", "5", 0),
        (r"\boxed{\frac12}", "0.5", 1),
        ("<think>6</think> 5", "5", 1),
    ],
)
def test_it_passes_what_math_verify_passes(text: str, gold: str, strict: int) -> None:
    assert verdict(text, gold).verdict == "correct"
    assert verdict_on(text, gold).reward == strict


def test_wrong_and_missing_answers_are_told_apart() -> None:
    assert verdict(r"\boxed{6}", "5").verdict == "wrong"
    assert verdict("I don't know", "5").verdict == "no_answer"
    assert verdict("<think>5", "5").verdict == "no_answer"


def test_a_gold_that_it_cannot_read_is_no_fault_of_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """math-verify falls back on the text itself, so that this is made to happen."""
    judge = open_rule(BY_MATH_VERIFY)
    monkeypatch.setattr(math_verify_judge, "_parse", lambda text: [])
    found = judge("5", {"answer": "an unread gold", "verify_type": "MATH"})
    assert (found.reward, found.verdict) == (None, "infra_error")
    assert "math-verify reads nothing" in found.reason


def test_no_code_of_a_model_runs(tmp_path: Path) -> None:
    for text in ("__import__('os').system('touch {}')", "open('{}','w')", "2 + open('{}','w')"):
        marker = tmp_path / "m"
        for shown in (text, rf"\boxed{{{text}}}", f"${text}$", f"The answer is {text}"):
            assert verdict(shown.replace("{}", str(marker)), "5").reward in (0, 1)
        assert not marker.exists()


def test_it_is_a_key_of_the_recipe_that_decides_scores() -> None:
    base = '[model]\npath = "x"\n[data.a]\nkind = "generator"\ngenerator = "counting"\n'
    recipe = parse_recipe(base + '[rewards.math]\njudge = "math-verify"\n', origin="test")
    assert recipe.rewards.math.judge == "math-verify"
    with pytest.raises(UserError, match="judge"):
        parse_recipe(base + '[rewards.math]\njudge = "lenient"\n', origin="test")
    deciding = {
        stage.name for stage in STAGES for keys in stage.decides if "rewards.math" in keys.names
    }
    assert {"score", "evaluate"} <= deciding
