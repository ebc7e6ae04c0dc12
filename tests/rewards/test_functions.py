"""Functions with our signature, with TRL's, and with neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config import FunctionReward, RewardsConfig
from common.errors import UserError
from common.rewards.function import open_function, required_columns
from common.rewards.scorer import Scorer

ROW = {
    "answer": "4",
    "verify_type": "EXACT",
    "question": "2 + 2?",
    "completion_ids": [5, 5, 5, 5, 5],
    "solution": r"$\frac{1}{3}$",
}
CONVERSATION = [{"role": "user", "content": "2 + 2?"}]
MODULE = """
import asyncio, functools
import trl.rewards
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

repetition = get_repetition_penalty_reward(ngram_size=2)
overlong = get_soft_overlong_punishment(max_completion_len=6, soft_punish_cache=2)

# From TRL's documentation of custom reward functions.
def characters(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

def longer(completions, **kwargs):
    return [float(len(completion)) for completion in completions]

def content(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]

def matches(completions, solution, **kwargs):
    return [1.0 if gold in text else 0.0 for text, gold in zip(completions, solution)]

def skips(prompts, completions, task=None, **kwargs):
    return [None for _ in prompts]

async def waits(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(prompt)) for prompt in prompts]

async def waits_as_ours(completion, row):
    return 3

def names(**columns):
    return [float(len(columns["completions"]))]

def one(completion): return 1.0
def three(completion, row, more): return 1.0
def state(completions, trainer_state): return [1.0]
def number(completions, **columns): return 1.0
def two(completions, **columns): return [1.0, 2.0]
def ours_by_other_names(text, /, data=None): return len(text)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


def reward(function: str, text: str, **columns: Any) -> Any:
    """Return what a function gives in its process, or why it failed."""
    own = FunctionReward(function=function, weight=1)
    with Scorer(RewardsConfig(functions={"own": own}, workers=1)) as scorer:
        (judged,) = scorer.judge([(text, ROW | columns)])
    failed = judged.verdict.verdict == "infra_error"
    return judged.verdict.reason if failed else judged.aux_rewards["own"]


@pytest.mark.parametrize(
    ("function", "text", "given"),
    [
        ("trl.rewards:think_format_reward", "<think>\na</think>\nb", 1.0),
        ("trl.rewards:think_format_reward", "<think>\na\nb", 0.0),
        ("trl.rewards:accuracy_reward", r"so \boxed{\frac{1}{3}}", 1.0),
        ("trl.rewards:accuracy_reward", r"so \boxed{\frac{1}{2}}", 0.0),
        ("trl.rewards:reasoning_accuracy_reward", r"<think> a </think> \boxed{\frac{1}{3}}", 1.0),
        ("trl.rewards:reasoning_accuracy_reward", r"<think> a </think> \boxed{\frac{1}{2}}", 0.0),
        ("trl.rewards:reasoning_accuracy_reward", r"<think> a \boxed{\frac{1}{3}}", 0.0),
        ("own:repetition", "", -0.75),
        ("own:overlong", "", -0.5),
        ("own:characters", "", 5.0),
        ("own:longer", "seven..", 7.0),
        ("own:matches", r"$\frac{1}{3}$", 1.0),
        ("own:skips", "", None),
        ("own:waits", "", 6.0),
        ("own:waits_as_ours", "", 3.0),
        ("own:names", "", 1.0),
        ("own:ours_by_other_names", "abc", 3.0),
    ],
)
def test_trls_own_functions_and_examples(
    function: str, text: str, given: float | None, module: None
) -> None:
    """What TRL's documentation says of each, with the examples of its docstrings."""
    pytest.importorskip("trl.rewards")
    assert reward(function, text) == given


def test_a_completion_is_a_message_where_the_prompt_is_a_conversation(module: None) -> None:
    pytest.importorskip("trl.rewards")
    assert reward("own:content", "seven..", prompt=CONVERSATION) == 7
    assert reward("own:content", "seven..", messages=CONVERSATION) == 7
    assert "string indices must be integers" in reward("own:content", "seven..")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("own:number", "returned 1.0; a function of `completions` returns a list"),
        ("own:two", "returned 2 rewards for 1 completion: [1.0, 2.0]"),
    ],
)
def test_what_is_no_list_of_one_is_told(function: str, said: str, module: None) -> None:
    pytest.importorskip("trl.rewards")
    assert said in reward(function, "")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("one", r"one\(completion\) cannot be called; write it as one\(completion, row\)"),
        ("three", r"three\(completion, row, more\) cannot be called.*three\(completions, \*\*col"),
        ("state", "only TRL's trainer gives 'trainer_state'; give it a default: trainer_state=No"),
        ("missing", "'own' has no function 'missing'"),
    ],
)
def test_a_wrong_signature_is_a_sentence(function: str, said: str, module: None) -> None:
    pytest.importorskip("trl.rewards")
    own = FunctionReward(function=f"own:{function}", weight=1)
    with (
        Scorer(RewardsConfig(functions={"own": own})) as scorer,
        pytest.raises(
            UserError, match=rf"rewards.functions.own.function = 'own:{function}': .*{said}"
        ),
    ):
        scorer.open({"EXACT"})


def test_required_columns_are_those_without_a_default() -> None:
    pytest.importorskip("trl.rewards")
    accuracy = FunctionReward(function="trl.rewards:accuracy_reward", weight=1)
    assert required_columns("own", accuracy) == ["solution"]
    assert open_function("own", accuracy)
