"""Rules that hang, raise, lie and die: what becomes of a completion, and of the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from support import REPOSITORY
from support.faulty_rules import ROW, RULES, using
from support.processes import group_is_gone, is_gone, wait_until

from common.config import FunctionReward, RewardsConfig
from common.errors import UserError
from common.rewards.scorer import Scorer


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the user's module `rules`."""
    (tmp_path / "rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("completion", "reward", "mine", "verdict", "reason"),
    [
        ("14", 2.5, 3.0, "correct", ""),
        ("13", 1.5, 3.0, "wrong", ""),
        ("true", 0.5, 1.0, "no_answer", ""),
        ("none", 0.0, None, "no_answer", ""),
        ("sleep 14", 1.0, 0.0, "timeout", "mine: no answer within 2 s"),
        ("spin 14", 1.0, 0.0, "timeout", "mine: no answer within 2 s"),
        ("stop 14", 1.0, 0.0, "timeout", "mine: no answer within 2 s"),
        ("raise 14", None, None, "infra_error", "mine: KeyError: 'oh'"),
        ("die 14", None, None, "infra_error", "mine: its process ended with 7"),
        ("exit 14", None, None, "infra_error", "mine: SystemExit: "),
        ("nan", None, None, "infra_error", "mine: gave nan"),
        ("inf", None, None, "infra_error", "mine: gave inf"),
        ("text", None, None, "infra_error", "mine: gave '1', no number"),
    ],
)
def test_what_a_function_may_do(
    completion: str, reward: float, mine: float, verdict: str, reason: str, rules: Path
) -> None:
    """A completion before and one after are judged as if nothing had happened between."""
    row = {"answer": "14", "verify_type": "LAST_NUMBER", "number": 6}
    with Scorer(using("told", seconds=2, workers=1)) as scorer:
        before, judged, after = scorer.judge([("14", row), (completion, row), ("14", row)])
    assert before == after
    assert (before.reward, before.verdict.verdict) == (2.5, "correct")
    assert (judged.reward, judged.aux_rewards["mine"]) == (reward, mine)
    assert (judged.verdict.verdict, judged.verdict.reason) == (verdict, reason)


def test_a_worker_that_dies_is_replaced_and_asked_again(rules: Path) -> None:
    rows = [{"answer": str(rules / f"{i}"), "verify_type": "EXACT"} for i in range(6)]
    with Scorer(using("once", workers=2)) as scorer:
        judged = scorer.judge([("x", row) for row in rows])
    assert [one.aux_rewards["mine"] for one in judged] == [1.0] * 6


def test_workers_killed_from_outside_are_replaced(rules: Path) -> None:
    jobs = [("x", ROW)] * 4
    with Scorer(using("who", workers=1)) as scorer:
        (first,) = {one.aux_rewards["mine"] for one in scorer.judge(jobs)}
        assert first
        os.kill(int(first), signal.SIGKILL)
        (second,) = {one.aux_rewards["mine"] for one in scorer.judge(jobs)}
    assert first != second
    assert second, "asked again"
    wait_until(lambda: is_gone(int(second)))


def test_what_a_function_leaves_behind_ends_with_it(rules: Path) -> None:
    began = time.monotonic()
    with Scorer(using("leaves_a_child", workers=1)) as scorer:
        judged = scorer.judge([("x", ROW)])
    assert time.monotonic() - began < 60
    group = judged[0].aux_rewards["mine"]
    assert group
    wait_until(lambda: group_is_gone(int(group)))


def test_workers_end_with_a_judge_that_is_killed(rules: Path) -> None:
    """The worker is busy for ever, so that it notices nothing by itself."""
    program = (
        "from common.rewards.scorer import Scorer; from common.config import RewardsConfig;"
        "rewards = RewardsConfig.model_validate({'functions': {'mine': {'function':"
        "'rules:told', 'weight': 1, 'seconds': 600}}});"
        "scorer = Scorer(rewards).__enter__();"
        "scorer.open(['EXACT']);"
        "print(scorer._pools['mine']._idle[0].pid, flush=True);"
        "scorer.judge([('spin', {'answer': '1', 'verify_type': 'EXACT'})])"
    )
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{rules}"}
    judge = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert judge.stdout
    worker = int(judge.stdout.readline())
    time.sleep(0.5)
    judge.kill()
    judge.wait()
    wait_until(lambda: is_gone(worker))


def test_long_texts_of_any_characters_reach_a_worker_whole(rules: Path) -> None:
    texts = ["", "\n", "é\u2028\x00\x1b[31m" * 5, "x" * 3_000_000]
    with Scorer(using("read_back", workers=2)) as scorer:
        judged = scorer.judge([(text, ROW) for text in texts])
    assert [one.aux_rewards["mine"] for one in judged] == [len(text) for text in texts]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("rules:nothing", "'rules' has no function 'nothing'"),
        ("nowhere:told", "No module named 'nowhere'"),
        ("rules", "write it as module:function"),
        ("rules:RULES", "has no function"),
    ],
)
def test_functions_that_are_not_there_are_refused_at_once(
    function: str, said: str, rules: Path
) -> None:
    mine = FunctionReward(function=function, weight=1)
    with Scorer(RewardsConfig(functions={"mine": mine})) as scorer:  # noqa: SIM117
        with pytest.raises(UserError) as raised:
            scorer.open(["EXACT"])
    assert "rewards.functions.mine.function = " in str(raised.value)
    assert said in str(raised.value)


def test_names_of_functions_cannot_hide_a_column() -> None:
    for name in ("format", "answer", "Mine", "a b", "x" * 41):
        with pytest.raises(ValueError, match=r"functions\."):
            RewardsConfig(functions={name: FunctionReward(function="a:b")})


@pytest.fixture
def many(rules: Path) -> Iterator[Path]:
    """Completions in groups of 10: one of each of four groups meets a fault of the rule."""
    faults = {7: "sleep", 42: "raise", 111: "nan", 250: "die"}
    frame = pl.DataFrame(
        {
            "completion_text": [faults.get(i, f"{i % 3}") for i in range(500)],
            "answer": ["1"] * 500,
            "verify_type": ["LAST_NUMBER"] * 500,
            "group_id": [i // 10 for i in range(500)],
            "number": [i % 2 for i in range(500)],
        }
    )
    frame.write_parquet(rules / "in.parquet")
    yield rules


def test_a_stage_with_faulty_rules_completes(many: Path) -> None:
    settings = {"function": "rules:told", "weight": 0.5, "seconds": 2}
    done = subprocess.run(
        [sys.executable, "-m", "stages.score", "--input", "in.parquet", "--output", "out.parquet"]
        + [f"--set=rewards.functions.mine.{key}={value}" for key, value in settings.items()],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 completions took a rule longer than it may" in done.stderr
    assert "failed on 3 completions" in done.stderr
    frame = pl.read_parquet(many / "out.parquet")
    assert frame["verdict"][[7, 42, 111, 250]].to_list() == [
        "timeout",
        *["infra_error"] * 3,
    ]
    assert frame["reward"].null_count() == 3
    assert frame["reward"][7] == 0
    for group in (0, 4, 11, 25):
        rows = frame.filter(pl.col("group_id") == group)
        assert rows["group_reward_mean"][0] == pytest.approx(rows["reward"].mean())
        assert rows["group_reward_std"][0] == pytest.approx(rows["reward"].std())
        assert (rows.filter(pl.col("reward").is_null())["advantage"] == 0).all()
