"""Functions of the user's, which see the columns of their data in a run and in a file alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.scored_runs import completion, scores, write_rollout

from common.errors import UserError
from common.runs.layout import Run
from stages import prepare, score

RECIPE = """\
[model]
path = "{policy}"
[data.mine]
kind = "dataset"
path = "{data}"
eval = 0
verify_type = "LAST_NUMBER"
columns = {{ answer = "solution", question = "problem" }}
answer_pattern = '####\\s*(.+)'
[evaluate]
every = 0
[rewards.functions.own]
function = "{function}"
weight = 1
"""
ROWS: list[dict[str, Any]] = [
    {
        "problem": f"What is {i} + 7?",
        "solution": f"so\n#### {i + 7}",
        "level": i,
        "tests": ["a", "b"][: i % 3],
        "meta": {"source": {"page": i}} | ({"hint": "x"} if i == 2 else {}),
        "price": i / 2 if i % 2 else i,
        "sparse": "here",
    }
    for i in range(6)
]
del ROWS[0]["sparse"], ROWS[1]["tests"]
MODULE = '''
import json, zlib

NAMES = ("problem", "solution", "level", "tests", "meta", "price", "sparse", "answer", "question")

def number(row):
    """A number that differs if any value or type does."""
    return float(zlib.crc32(json.dumps([row[n] for n in NAMES], sort_keys=True).encode()))

def ours(completion, row):
    return number(row) + len(completion) / 1000 + row["completion_tokens"]

def trls(completions, level, tests, completion_ids, **columns):
    row = {name: values[0] for name, values in columns.items()}
    row |= {"level": level[0], "tests": tests[0]}
    return [number(row) + len(completions[0]) / 1000 + len(completion_ids[0])]

def misnamed(completions, lvel):
    return [0.0]

def typo(completion, row):
    return row["lvel"]
'''


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODULE)
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def prepared(data: Path, policy: Path, function: str) -> Run:
    recipe = data.with_name("recipe.toml")
    recipe.write_text(RECIPE.format(policy=policy, data=data, function=function))
    prepare.main("a", recipe=recipe, quiet=True)
    return Run.named("a")


def with_rollout(run: Run) -> list[dict[str, Any]]:
    """Write a rollout of two completions for each prompt, and return its rows."""
    prompts = pl.read_parquet(run.prompts.path / "train-*.parquet").to_dicts()
    given = ("prompt_id", "task", "question", "answer", "verify_type")
    rows = [
        completion(group, sample, **{name: prompt[name] for name in given})
        for group, prompt in enumerate(prompts)
        for sample in range(2)
    ]
    write_rollout(run, rows)
    return rows


@pytest.mark.parametrize("function", ["ours", "trls"])
def test_a_run_and_files_give_the_same_numbers(
    function: str, runs: Path, data: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    """All columns by name: mapped ones, lists, objects, and those that some rows lack."""
    run = prepared(data, tiny_policy, f"mine:{function}")
    rollout = with_rollout(run)
    score.main("a", 1, quiet=True)
    rewards = scores(run)["reward_own"].to_list()
    assert len(set(rewards)) >= len(ROWS)

    score.main(input_path=run.rollout(1).path, output_path=tmp_path / "copy.parquet", quiet=True)
    copy = pl.read_parquet(tmp_path / "copy.parquet")
    assert copy["reward_own"].to_list() == rewards
    assert "metadata" not in copy.columns

    by_question = {row["problem"]: row for row in ROWS}
    lines = [
        by_question[row["question"]]
        | {
            name: row[name]
            for name in (
                *("question", "answer", "verify_type", "assistant_prefix"),
                *("completion_text", "completion_ids", "task"),
            )
        }
        for row in rollout
    ]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = tmp_path / "recipe.toml"
    score.main(input_path=own, output_path=tmp_path / "own.parquet", recipe=recipe, quiet=True)
    assert pl.read_parquet(tmp_path / "own.parquet")["reward_own"].to_list() == rewards


def test_a_column_that_no_row_has_is_refused_before_anything_is_made(
    runs: Path, data: Path, tiny_policy: Path
) -> None:
    with pytest.raises(UserError) as raised:
        prepared(data, tiny_policy, "mine:misnamed")
    assert "rewards.functions.own: the function needs a column 'lvel'" in str(raised.value)
    assert "did you mean 'level'?" in str(raised.value)
    assert not (runs / "a" / "prompts").exists()


def test_a_row_without_a_column_says_which_it_has(
    runs: Path, data: Path, tiny_policy: Path
) -> None:
    run = prepared(data, tiny_policy, "mine:typo")
    with_rollout(run)
    with pytest.raises(UserError, match=r"no column 'lvel'; it has answer, .*level, meta"):
        score.main("a", 1, quiet=True)


def test_prompts_from_before_lack_columns_in_words(
    runs: Path, data: Path, tiny_policy: Path
) -> None:
    """A run that was prepared before goes on by what its prompts hold."""
    run = prepared(data, tiny_policy, "mine:ours")
    with_rollout(run)
    module = data.with_name("mine.py")
    module.write_text("def ours(completions, absent, **columns): return [1.0]\n")
    with pytest.raises(UserError, match=r"needs a column 'absent', which no row of .* has"):
        score.main("a", 1, quiet=True)
