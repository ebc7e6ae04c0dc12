"""A process for a rule that must not judge in ours: `python -m common.rewards.worker`.

It speaks JSON lines. The first line that it reads names the rule; it answers when the rule is open.
Then it judges one request after the other, on its main thread, until it is closed or killed:

    {"rule": "MATH", "rewards": {…}, "beside": [folders]}  →  {"needs": [columns]} or {"error": …}
    {"text": …, "row": {…}}             →  [reward, verdict, extracted, reason] or {"error": …}
    {"gold": …}                         →  {} or {"error": …}
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any, TextIO

from common import functions
from common.config import RewardsConfig
from common.errors import UserError
from common.rewards.registry import columns_of, get_rule, open_rule, read_golds
from common.rewards.rule import GoldError, Judge, Verifier

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve requests until the other side closes."""
    _die_with_parent()
    # Ctrl-C reaches the whole group of processes; whoever asked us ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = _take_standard_streams()
    opening = json.loads(requests.readline() or "null")
    if opening is None:
        return
    name, rewards = opening["rule"], RewardsConfig.model_validate(opening["rewards"])
    for folder in opening["beside"]:
        functions.look_beside(Path(folder))
    try:
        _limit_memory(name, rewards)
        judge = open_rule(name, rewards)
        needs = columns_of(name, rewards)
    except UserError as error:
        _send(answers, {"error": str(error)})
        return
    _send(answers, {"needs": needs})
    for line in requests:
        _send(answers, _answer(json.loads(line), name, rewards, judge))


def _answer(request: dict[str, Any], name: str, rewards: RewardsConfig, judge: Judge) -> Any:
    if "gold" in request:
        try:
            read_golds(name, request["gold"])
        except GoldError as error:
            return {"error": str(error)}
        return {}
    try:
        return astuple(judge(request["text"], request["row"]))
    except UserError as error:
        return {"error": str(error)}


def _send(answers: TextIO, answer: Any) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _take_standard_streams() -> tuple[TextIO, TextIO]:
    """Return our pipes under other numbers, out of reach of a rule that prints or reads."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8", newline="\n")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, answers


def _limit_memory(name: str, rewards: RewardsConfig) -> None:
    rule = get_rule(name, rewards)
    if isinstance(rule, Verifier) and rule.max_memory:
        resource.setrlimit(resource.RLIMIT_AS, (rule.max_memory, rule.max_memory))


def _die_with_parent() -> None:
    """Ask Linux to kill us when our parent dies, even while a rule never returns."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
