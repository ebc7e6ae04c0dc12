"""Your own rewards: what a function sees, how it may be called, and what is said of a wrong one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.config import FunctionReward, RewardsConfig
from common.errors import UserError
from common.rewards.function import find_function
from common.rewards.scorer import Scorer
from common.runs.layout import Run
from common.runs.shards import read_output
from stages import rollout, score

CODE = """\
import json

def level(completion, row):
    return row["level"] + len(row["tags"]) / 10 + row["about"]["year"] / 10000

def level_as_trl(completions, level, tags, **columns):
    assert columns["about"][0]["year"] == 1999
    return [a + len(b) / 10 + columns["about"][0]["year"] / 10000 for a, b in zip(level, tags)]

def lengths(prompts, completions):
    return [len(prompt) + len(text) for prompt, text in zip(prompts, completions)]

def wants_a_solution(completions, solution):
    return [1.0]

def no_list(completions, **columns):
    return 1.0

def of_one(completion):
    return 1.0
"""
ROW = {"answer": "1", "verify_type": "EXACT", "question": "What?"}


@pytest.fixture
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FunctionReward]:
    """`reward("level")` names a function of `CODE`."""
    (tmp_path / "ours.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def named(function: str, **keys: Any) -> FunctionReward:
        name = function if ":" in function else f"ours:{function}"
        return FunctionReward(function=name, weight=1, **keys)

    return named


def judged(reward: FunctionReward, completion: str, **columns: Any) -> float | None:
    with Scorer(RewardsConfig(functions={"own": reward})) as scorer:
        (one,) = scorer.judge([(completion, ROW | columns)])
    assert one.verdict.verdict != "infra_error", one.verdict.reason
    return one.aux_rewards["own"]


def test_a_function_of_trl_gets_lists_of_one(reward: Callable[..., FunctionReward]) -> None:
    assert judged(reward("lengths"), "four") == len("What?") + 4
    columns = {"level": 3, "tags": ["a", "b"], "about": {"year": 1999}}
    assert judged(reward("level_as_trl"), "x", **columns) == pytest.approx(3.3999)


@pytest.mark.parametrize(
    ("function", "completion", "expected"),
    [
        ("think_format_reward", "<think>\n1 + 1\n</think>\n2", 1),
        ("think_format_reward", "2", 0),
        ("accuracy_reward", r"It is \boxed{\frac{1}{3}}", 1),
        ("accuracy_reward", r"It is \boxed{\frac{1}{4}}", 0),
    ],
)
def test_trl_s_own_functions(
    reward: Callable[..., FunctionReward], function: str, completion: str, expected: float
) -> None:
    pytest.importorskip("trl")
    own = reward(f"trl.rewards:{function}", completions="messages", seconds=60)
    assert judged(own, completion, solution=r"$\frac{1}{3}$") == expected


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("wants_a_solution", "needs a column 'solution'; the row has 'answer', 'verify_type'"),
        ("no_list", "returned 1.0, not a list with a reward for each completion"),
    ],
)
def test_what_is_wrong_with_a_call_is_said(
    reward: Callable[..., FunctionReward], function: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        find_function("own", reward(function))("x", ROW)


def test_a_signature_that_cannot_be_called_is_refused_at_once(
    reward: Callable[..., FunctionReward],
) -> None:
    with pytest.raises(UserError) as refused:
        find_function("own", reward("of_one"))
    assert "rewards.functions.own.function = 'ours:of_one': it is called as (completion)" in str(
        refused.value
    )
    assert "function(completion, row), or with TRL's signature" in str(refused.value)


RECIPE = """\
[model]
path = "{policy}"

[data.mine]
kind = "dataset"
path = "{data}"
eval = 2
verify_type = "EXACT"

[rollout]
prompts_per_iteration = 3
group_size = 2
max_completion_tokens = 8

[evaluate]
every = 0

[rewards]
answer.weight = 0

[rewards.functions.own]
function = "ours:level"
weight = 1
"""


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_run_and_a_file_give_the_same_numbers_for_all_columns(
    reward: Callable[..., FunctionReward],
    prepared: Callable[..., Path],
    at: Callable[[Path], Run],
    tmp_path: Path,
    dynamic: bool,
) -> None:
    """With numbers, lists and nested values, in either signature; dynamic sampling judges too."""
    rows = [
        {"question": f"What is {n}?", "answer": str(n), "level": n}
        | {"tags": ["x"] * n, "about": {"year": 1999}}
        for n in range(1, 7)
    ]
    run = at(prepared(RECIPE, f"rollout.dynamic_sampling={str(dynamic).lower()}", rows=rows))
    rollout.main("a", 1, quiet=True)
    score.main("a", 1, quiet=True)
    sampled = pl.from_arrow(read_output(run.rollout(1)))
    scored = pl.from_arrow(read_output(run.score(1)))
    assert isinstance(sampled, pl.DataFrame) and isinstance(scored, pl.DataFrame)
    numbers = [row["answer"] for row in sampled.to_dicts()]
    expected = [int(n) + int(n) / 10 + 0.1999 for n in numbers]
    assert scored["reward_own"].to_list() == pytest.approx(expected)
    by_answer = {row["answer"]: row for row in rows}
    source = tmp_path / "completions.jsonl"
    source.write_text(
        "".join(
            json.dumps({**by_answer[row["answer"]], **row}) + "\n"
            for row in sampled.select("completion_text", "answer", "verify_type").to_dicts()
        )
    )
    for function in ("level", "level_as_trl"):
        target = tmp_path / f"{function}.parquet"
        score.main(
            input_path=source,
            output_path=target,
            recipe=run.recipe,
            overrides=[f"rewards.functions.own.function=ours:{function}"],
            quiet=True,
        )
        assert pl.read_parquet(target)["reward_own"].to_list() == scored["reward_own"].to_list()


def test_a_function_beside_the_recipe_is_found_by_every_stage(
    runs: Path, tmp_path: Path, tiny_policy: Path, stage: Callable[..., Any]
) -> None:
    """Also by later stages, which are not given the recipe, and by the processes that judge."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "beside.py").write_text("def ours(completion, row):\n    return 2.0\n")
    rows = [{"question": f"What is {n}?", "answer": str(n)} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = RECIPE.format(policy=tiny_policy, data=folder / "rows.jsonl")
    (folder / "recipe.toml").write_text(recipe.replace("ours:level", "beside:ours"))
    stage("prepare", "--run", "a", "--recipe", str(folder / "recipe.toml"))
    stage("rollout", "--run", "a", "--iteration", "1")
    stage("score", "--run", "a", "--iteration", "1")
    (runs / "a" / "recipe_origin.txt").unlink()
    (folder / "beside.py").unlink()
    lost = stage("score", "--run", "a", "--iteration", "1", "--overwrite", expect=2)
    assert "'beside' cannot be imported" in lost.stderr
    assert "the environment and beside the recipe file" in lost.stderr
