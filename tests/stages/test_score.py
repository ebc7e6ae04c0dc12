"""score: rewards and advantages of a rollout, whatever happens on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support import REPOSITORY
from support.scored_runs import RECIPE, ROWS, completion, scores, start_scored_run

from common.config import RewardsConfig
from common.config.recipe_file import parse_recipe
from common.objective.advantages import compute_advantages
from common.rewards.registry import VERIFY
from common.rewards.rule import Row, Verdict, always
from common.rewards.scorer import Scorer, judge_table
from common.runs.layout import Run
from common.runs.manifest import has_manifest, read_manifest
from common.runs.schemas import KEY, score_schema
from common.runs.shards import read_output
from stages import score


@pytest.fixture
def run(runs: Path) -> Run:
    """A run with a rollout of 6 groups of 4 completions in 3 shards."""
    return start_scored_run()


def test_rewards_and_advantages_of_an_iteration(run: Run) -> None:
    score.main("a", 1)
    table = read_output(run.score(1))
    assert table.schema.equals(score_schema(["format"]))
    assert table[KEY].to_pylist() == [row[KEY] for row in ROWS]
    with Scorer(parse_recipe(RECIPE, origin="here").rewards) as scorer:
        judged = scorer.judge([("<think>" + row["completion_text"], row) for row in ROWS])
    assert table["reward"].to_pylist() == [one.reward for one in judged]
    assert {1.25, 0.25, 0.0} == set(table["reward"].to_pylist())
    assert table["reward_format"].to_pylist() == [one.aux_rewards["format"] for one in judged]
    assert table["verdict"].to_pylist() == [one.verdict.verdict for one in judged]
    assert table["extracted_answer"].to_pylist() == [one.verdict.extracted for one in judged]
    groups = [row["group_id"] for row in ROWS]
    expected = compute_advantages(groups, [one.reward for one in judged], "group")
    np.testing.assert_array_equal(table["advantage"].to_numpy(), expected.advantage)
    np.testing.assert_array_equal(table["group_reward_mean"].to_numpy(), expected.group_mean)
    np.testing.assert_array_equal(table["group_reward_std"].to_numpy(), expected.group_std)


def test_what_is_said_about_an_iteration(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    score.main("a", 1)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "iterations/0001/score: 24 completions, mean reward 0.500, accuracy 0.333 "
        "(8 correct, 8 wrong, 8 no_answer); 2 of 6 groups without variance"
    )
    facts = read_manifest(run.score(1)).facts
    assert facts["verdicts"]["infra_error"] == 0
    assert facts["tasks"]["sums"]["completions"] == 12
    assert facts["tasks"]["sums"]["accuracy"] == pytest.approx(6 / 12)
    score.main("a", 1, overwrite=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == facts


@pytest.mark.parametrize("kind", ["batch", "none", "leave_one_out"])
def test_advantages_are_of_the_recipes_kind_over_all_shards(run: Run, kind: Any) -> None:
    score.main("a", 1, overrides=[f'advantages.kind="{kind}"'])
    frame = scores(run)
    groups = [row["group_id"] for row in ROWS]
    expected = compute_advantages(groups, frame["reward"].to_list(), kind)
    np.testing.assert_array_equal(frame["advantage"].to_numpy(), expected.advantage)


def test_another_reward_rewrites_scores_and_nothing_else(run: Run) -> None:
    score.main("a", 1)
    before = scores(run)
    rollout = read_manifest(run.rollout(1))
    score.main("a", 1, overrides=["rewards.format.weight=0"], overwrite=True)
    assert "reward_format" not in scores(run).columns
    assert scores(run)["reward"].to_list() == before["reward_answer"].to_list()
    assert read_manifest(run.rollout(1)) == rollout
    score.main("a", 1, overrides=["rewards.format.weight=0.25"], overwrite=True)
    assert scores(run).equals(before)


def test_fresh_scores_are_left_alone(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    score.main("a", 1)
    manifest = run.score(1).manifest.read_bytes()
    score.main("a", 1)
    assert "nothing to do" in capsys.readouterr().out
    assert run.score(1).manifest.read_bytes() == manifest


# Going on


def judged_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects what is judged from now on."""
    texts: list[str] = []
    rule = VERIFY["ANSWER_TAG"]
    opened = rule.open(RewardsConfig())

    def judge(text: str, row: Row) -> Verdict:
        texts.append(row[KEY])
        return opened(text, row)

    monkeypatch.setitem(VERIFY, "ANSWER_TAG", replace(rule, open=always(judge)))
    return texts


def test_judged_shards_are_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score.main("a", 1)
    whole = read_manifest(run.score(1)).content_hash
    score.main("a", 1, shards="0-1", overwrite=True)
    assert "1 of 3 shards are still missing" in capsys.readouterr().out
    assert read_manifest(run.score(1)).content_hash == whole
    judged = judged_texts(monkeypatch)
    score.main("a", 1, overwrite=True)
    assert "2 of 3 shards were judged already" in capsys.readouterr().out
    assert judged == [row[KEY] for row in ROWS[16:]]
    assert read_manifest(run.score(1)).content_hash == whole


KILLED = """
import os, signal, sys
from common.runs import manifest, shards
writes, write = 0, manifest.write_atomically
def counted(path, data):
    global writes
    writes += 1
    if writes == int(sys.argv[1]):
        path.with_name(".tmp-half").write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)
manifest.write_atomically = shards.write_atomically = counted
from stages import score
score.main("a", 1)
"""


@pytest.mark.parametrize("writes", [1, 3, 6, 9, 14])
def test_kill_9_at_any_write(run: Run, writes: int) -> None:
    """Of the plan, of a judged shard, of a shard's advantages, of the manifest."""
    command = [sys.executable, "-c", KILLED, str(writes)]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == -9
    assert not has_manifest(run.score(1))
    score.main("a", 1)
    resumed = read_manifest(run.score(1))
    assert not list(run.root.rglob(".tmp-*"))
    score.main("a", 1, overwrite=True)
    assert read_manifest(run.score(1)).content_hash == resumed.content_hash


# Light and quick


def test_a_real_run_loads_no_tensor_library_and_begins_at_once(run: Run) -> None:
    """Processor seconds until the first line of work, so that a busy machine does not matter."""
    program = (
        "import json, sys, time; from stages import score; begun = time.process_time(); "
        "score.main('a', 1, quiet=True); print(json.dumps([begun, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    begun, modules = json.loads(done.stdout)
    loaded = {name.partition(".")[0] for name in modules}
    assert not loaded & {"torch", "transformers", "datasets", "math_verify"}
    assert begun < 1
    assert has_manifest(run.score(1))


def test_ten_thousand_completions_take_about_a_second() -> None:
    rows = [completion(group, sample) for group in range(2500) for sample in range(4)]
    table = pa.Table.from_pylist(rows).drop_columns(["prompt_ids", "completion_ids"])
    rewards = parse_recipe(RECIPE, origin="here").rewards
    began = time.thread_time()
    with Scorer(rewards) as scorer:
        judged, reasons = judge_table(table, scorer, rewards.aux_weights())
    assert time.thread_time() - began < 2
    assert judged.num_rows == 10_000
    assert not reasons
