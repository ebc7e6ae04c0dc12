"""Rules that hang, raise, lie and die: what becomes of a completion, and of the others."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.config import FunctionReward, RewardsConfig
from common.errors import UserError
from common.rewards import registry
from common.rewards.judging import Judging, combine
from common.rewards.registry import VERIFY, open_rule
from common.rewards.rule import Extra, always
from common.rewards.verdict import ABSTAINED, Verdict

REPOSITORY = Path(__file__).resolve().parents[1]

ROW = {"answer": "14", "verify_type": "ANSWER_TAG"}
GOOD = "<think>7 + 7</think><answer>14</answer>"
CORRECT = Verdict(1.0, "correct", "14")

# What each of the functions below makes of a completion depends on what the completion says.
RULES = """
import math, os, sys, time

def told(completion, row):
    print("a rule may print", flush=True)
    sys.stdin.read()
    if "sleep" in completion:
        time.sleep(1e6)
    if "spin" in completion:
        while True:
            pass
    if "raise" in completion:
        raise KeyError("oh")
    if "die" in completion:
        os._exit(7)
    if "stop" in completion:
        os.kill(os.getpid(), 19)
    if "exit" in completion:
        sys.exit()
    return {"nan": math.nan, "inf": math.inf, "none": None, "text": "1", "true": True}.get(
        completion, row["number"] / 2
    )

def once(completion, row):
    if not os.path.exists(row["answer"]):
        open(row["answer"], "w").close()
        os._exit(1)
    return 1.0

def who(completion, row):
    return os.getpid()

def leaves_a_child(completion, row):
    if os.fork() == 0:
        time.sleep(600)
    return os.getpid()

def read_back(completion, row):
    return len(completion)
"""


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the user's module `rules`."""
    (tmp_path / "rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def using(function: str, seconds: float = 5, **settings: Any) -> RewardsConfig:
    mine = FunctionReward(function=f"rules:{function}", weight=0.5, seconds=seconds)
    return RewardsConfig(functions={"mine": mine}, **settings)


@pytest.mark.parametrize(
    ("completion", "reward", "mine", "verdict", "reason"),
    [
        ("14", 2.5, 3.0, "correct", ""),
        ("13", 1.5, 3.0, "wrong", ""),
        ("true", 0.5, 1.0, "no_answer", ""),
        ("none", 0.0, None, "no_answer", ""),
        ("sleep 14", 1.0, 0.0, "timeout", "mine: no answer within 1 s"),
        ("spin 14", 1.0, 0.0, "timeout", "mine: no answer within 1 s"),
        ("stop 14", 1.0, 0.0, "timeout", "mine: no answer within 1 s"),
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
    with Judging(using("told", seconds=1, workers=1)) as judging:
        before, judged, after = judging.judge([("14", row), (completion, row), ("14", row)])
    assert before == after
    assert (before.reward, before.verdict.verdict) == (2.5, "correct")
    assert (judged.reward, judged.extras["mine"]) == (reward, mine)
    assert (judged.verdict.verdict, judged.verdict.reason) == (verdict, reason)


def test_a_worker_that_dies_is_replaced_and_asked_again(rules: Path) -> None:
    rows = [{"answer": str(rules / f"{i}"), "verify_type": "EXACT"} for i in range(6)]
    with Judging(using("once", workers=2)) as judging:
        judged = judging.judge([("x", row) for row in rows])
    assert [one.extras["mine"] for one in judged] == [1.0] * 6


def test_workers_killed_from_outside_are_replaced(rules: Path) -> None:
    jobs = [("x", ROW)] * 4
    with Judging(using("who", workers=1)) as judging:
        (first,) = {one.extras["mine"] for one in judging.judge(jobs)}
        assert first
        os.kill(int(first), signal.SIGKILL)
        (second,) = {one.extras["mine"] for one in judging.judge(jobs)}
    assert first != second
    assert not alive(int(second or 0)), "workers end with the judging"


def alive(process: int) -> bool:
    """Whether it still runs after a while; one that nobody has waited for has ended too."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        time.sleep(0.05)
    return True


def test_what_a_function_leaves_behind_ends_with_it(rules: Path) -> None:
    began = time.monotonic()
    with Judging(using("leaves_a_child", workers=1)) as judging:
        judged = judging.judge([("x", ROW)])
    assert time.monotonic() - began < 60
    group = int(judged[0].extras["mine"] or 0)
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(group, 0)
            time.sleep(0.05)


def test_workers_end_with_a_judge_that_is_killed(rules: Path) -> None:
    """The worker is busy for ever, so that it notices nothing by itself."""
    program = (
        "from common.rewards.judging import Judging; from common.config import RewardsConfig;"
        "rewards = RewardsConfig.model_validate({'functions': {'mine': {'function':"
        "'rules:told', 'weight': 1, 'seconds': 600}}});"
        "judging = Judging(rewards).__enter__();"
        "judging.open(['EXACT']);"
        "print(judging._pools['mine']._idle[0].pid, flush=True);"
        "judging.judge([('spin', {'answer': '1', 'verify_type': 'EXACT'})])"
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
    assert not alive(worker)


def test_long_texts_of_any_characters_reach_a_worker_whole(rules: Path) -> None:
    texts = ["", "\n", "é\u2028\x00\x1b[31m" * 5, "x" * 3_000_000]
    with Judging(using("read_back", workers=2)) as judging:
        judged = judging.judge([(text, ROW) for text in texts])
    assert [one.extras["mine"] for one in judged] == [len(text) for text in texts]


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
    with Judging(RewardsConfig(functions={"mine": mine})) as judging:  # noqa: SIM117
        with pytest.raises(UserError) as raised:
            judging.open(["EXACT"])
    assert "rewards.functions.mine.function = " in str(raised.value)
    assert said in str(raised.value)


def test_names_of_functions_cannot_hide_a_column() -> None:
    for name in ("format", "answer", "Mine", "a b", "x" * 41):
        with pytest.raises(ValueError, match=r"functions\."):
            RewardsConfig(functions={name: FunctionReward(function="a:b")})


# What comes of several rules


def test_parts_are_weighted_and_added() -> None:
    with Judging(RewardsConfig.model_validate({"format": {"weight": 0.2}})) as judging:
        whole, bare = judging.judge([(GOOD, ROW), ("<answer>14</answer>", ROW)])
    assert (whole.reward, whole.answer, whole.extras) == (1.2, 1.0, {"format": 1.0})
    assert (bare.reward, bare.answer, bare.extras) == (1.0, 1.0, {"format": 0.0})


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
    assert (of.reward, of.answer, of.extras) == (None, 1.0, {"mine": None})
    assert of.verdict == Verdict(None, "infra_error", "14", "mine: oh")
    of = combine(CORRECT, {"mine": late}, weights)
    assert (of.reward, of.answer, of.extras) == (1.0, 1.0, {"mine": 0.0})
    assert of.verdict == Verdict(1.0, "timeout", "14", "mine: late")
    of = combine(CORRECT, {"mine": ABSTAINED}, weights)
    assert (of.reward, of.verdict, of.extras) == (1.0, CORRECT, {"mine": None})


def test_fault_of_a_rule_is_null_and_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed's bare `except` made every fault of a rule a reward of 0."""

    def faulty(text: str, row: Mapping[str, Any]) -> Verdict:
        raise ZeroDivisionError("a bug of ours")

    rule = VERIFY["ANSWER_TAG"]
    monkeypatch.setitem(VERIFY, "ANSWER_TAG", replace(rule, open=always(faulty)))
    with Judging(RewardsConfig()) as judging:
        (judged,) = judging.judge([(GOOD, ROW)])
    assert judged.reward is judged.answer is None
    assert judged.verdict.verdict == "infra_error"
    assert judged.verdict.reason == "ANSWER_TAG: ZeroDivisionError: a bug of ours"


@pytest.mark.parametrize("value", [math.nan, -math.inf, "1", b"1", [1.0]])
def test_an_extra_that_gives_no_number_failed(
    value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = Extra(lambda rewards: lambda text, row: value)  # type: ignore[return-value]
    monkeypatch.setitem(registry.EXTRAS, "format", faulty)
    verdict = open_rule("format", RewardsConfig())(GOOD, ROW)
    assert (verdict.reward, verdict.verdict) == (None, "infra_error")
    assert verdict.reason.startswith("format: gave ")


# The stage


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
    settings = {"function": "rules:told", "weight": 0.5, "seconds": 1}
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
