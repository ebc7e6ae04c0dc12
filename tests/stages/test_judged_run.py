"""A run whose answers a language model judges: every stage that judges shares what it was told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import Answer, chat_server

from common.errors import UserError
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.shards import read_output
from stages import evaluate, rollout, score

RECIPE = """\
[model]
path = "{policy}"

[prompt]
assistant_prefix = ""

[data.sayings]
kind = "dataset"
path = "{data}"
eval = 2
verify_type = "JUDGE"

[rewards.judge]
url = "http://127.0.0.1:9/v1"
model = "m"

[rollout]
prompts_per_iteration = 2
group_size = 4
groups_per_shard = 2
max_completion_tokens = 5
max_concurrent = 8
dynamic_sampling = true

[evaluate]
samples = 0
"""
QUESTIONS = [{"question": f"Say {n}", "answer": f"says {n}"} for n in range(8)]


def by_length(asked: dict[str, Any]) -> Answer:
    assert asked["question"].startswith("Say ")
    return Answer(f'{{"score": {len(asked["completion"]) % 3 / 2}}}')


@pytest.fixture
def run(prepared: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    shutil.copytree(prepared(RECIPE, rows=QUESTIONS), tmp_path / "runs")
    monkeypatch.setenv("STAGED_GRPO_RUNS", str(tmp_path / "runs"))
    return Run.named("a")


def test_what_the_rollout_asked_score_does_not_ask_again(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with chat_server(by_length) as server:
        options = [f"rewards.judge.url={server.url}"]
        rollout.main("a", 1, overrides=options)
        asked = len(server.requests)
        assert asked > 1
        assert f"JUDGE: {asked} requests" in capsys.readouterr().out
        score.main("a", 1, overrides=options)
        assert len(server.requests) == asked
        assert "JUDGE: 0 requests" in capsys.readouterr().out
        evaluate.main("a", 0, overrides=options)
        assert f"JUDGE: {len(server.requests) - asked} requests" in capsys.readouterr().out
    scored = read_output(run.score(1))
    assert set(scored["reward_answer"].to_pylist()) <= {0, 0.5, 1}
    assert len(set(scored["reward_answer"].to_pylist())) > 1
    assert "usage" in read_manifest(run.score(1)).recorded


def test_a_judge_that_is_gone_stops_the_stage_and_nothing_is_scored(run: Run) -> None:
    options = ["rollout.dynamic_sampling=false", "rewards.judge.retries=0"]
    rollout.main("a", 1, overrides=options, quiet=True)
    with pytest.raises(UserError, match=r"(?s)the reward rules failed on 8 of 8 .*refused"):
        score.main("a", 1, overrides=options, quiet=True)
    assert not run.score(1).path.exists()
    with chat_server(by_length) as server:
        score.main("a", 1, overrides=[*options, f"rewards.judge.url={server.url}"], quiet=True)
    assert read_output(run.score(1))["reward"].null_count == 0
