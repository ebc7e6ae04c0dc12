"""Rules that hang, raise, lie and die, as a user's module would have them."""

from __future__ import annotations

from typing import Any

from common.config import FunctionReward, RewardsConfig
from common.rewards.rule import Verdict

ROW = {"answer": "14", "verify_type": "ANSWER_TAG"}


GOOD = "<think>7 + 7</think><answer>14</answer>"


CORRECT = Verdict(1.0, "correct", "14")


# What `told` does, the completion says: it sleeps, dies, or returns something odd.
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


def using(function: str, seconds: float = 5, **settings: Any) -> RewardsConfig:
    mine = FunctionReward(function=f"rules:{function}", weight=0.5, seconds=seconds)
    return RewardsConfig(functions={"mine": mine}, **settings)
