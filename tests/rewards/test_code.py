"""CODE: which program is judged, and with which verdict."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.measured import QUICK, best_seconds
from support.needs_sandbox import needs_sandbox

from common.config import RewardsConfig
from common.errors import MissingToolError
from common.rewards.code import last_program, open_rule, require
from common.rewards.rule import Verdict

BLOCKS = [
    ("```python\nx = 1\n```", "x = 1\n"),
    ("```py\nx = 1\n```", "x = 1\n"),
    ("```Python3\nx = 1\n```", "x = 1\n"),
    ("```\nx = 1\n```", "x = 1\n"),
    ("``` python title='a.py'\nx = 1\n```", "x = 1\n"),
    ("~~~python\nx = 1\n~~~", "x = 1\n"),
    ("````python\n'''\n```\n'''\n````", "'''\n```\n'''\n"),
    ("```python\r\nx = 1\r\n```\r\n", "x = 1\n"),
    ("First:\n```python\nx = 1\n```\nbetter:\n```python\nx = 2\n```\nDone.", "x = 2\n"),
    ("```python\nx = 1\n```\nIt prints:\n```\n1\n```", "x = 1\n"),
    ("```python\nx = 1\n```\nRun it:\n```bash\npython a.py\n```", "x = 1\n"),
    ("```\nx = 1\n```\n```\nx = 2\n```", "x = 2\n"),
    ("```python\nx = 1\n```\n```python\nx = 2", "x = 1\n"),
    ("1. So:\n   ```python\n   if x:\n     y\n   ```", "if x:\n  y\n"),
    ("<answer>```python\nx = 1\n```</answer>", "x = 1\n"),
    ("<answer>\n```python\nx = 1\n```\n</answer>", "x = 1\n"),
    ("```python\ns = '\x0c\u2028'\n```", "s = '\x0c\u2028'\n"),
    ("```python\nx = 1", None),
    ("```python\nx = 1\n``", None),
    ("````python\nx = 1\n```", None),
    ("```python\nx = 1\n~~~", None),
    ("```javascript\nx = 1\n```", None),
    ("```python\n\n  \n```", None),
    ("```x = 1```", None),
    ("x = 1", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "program"), BLOCKS)
def test_last_block_of_python_is_the_program(text: str, program: str | None) -> None:
    assert last_program(text) == program


@given(st.text(alphabet="`~pythn \n<answer>/x", max_size=300))
def test_no_text_breaks_the_search_for_the_program(text: str) -> None:
    program = last_program(text)
    assert program is None or program.strip()


PIECES = ["```", "```python\n", "`", "~", " ", "\n", "~~~ \n", "<answer>", "` ", "~ ", "```x "]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("end", ["", "`", "x", "\n```"])
def test_search_for_the_program_is_linear(piece: str, end: str) -> None:
    text = piece * (100_000 // len(piece)) + end
    assert best_seconds(lambda: last_program(text)) < QUICK


DOUBLE = json.dumps([f"assert f({n}) == {2 * n}" for n in range(4)])
ECHO = json.dumps([{"kind": "stdio", "stdin": f"{n}\n", "stdout": f"{n}"} for n in range(3)])
BOTH = json.dumps([*json.loads(ECHO), *json.loads(DOUBLE)])

JUDGED = [
    ("def f(n): return n + n", DOUBLE, False, 1.0, "correct"),
    ("def f(n): return n + n", DOUBLE, True, 1.0, "correct"),
    ("def f(n): return n * n", DOUBLE, False, 0.0, "wrong"),
    ("def f(n): return n * n", DOUBLE, True, 0.5, "wrong"),
    ("def g(n): return n + n", DOUBLE, True, 0.0, "wrong"),
    ("def f(n): return 6 / (3 - n)", DOUBLE, True, 0.0, "wrong"),
    ("def f(n): return 2 * n if n < 3 else 1 / 0", DOUBLE, True, 0.75, "wrong"),
    ("def f(n):\n  while n == 2: pass\n  return 2 * n", DOUBLE, True, 0.5, "timeout"),
    ("def f(n):\n  while n == 2: pass\n  return 2 * n", DOUBLE, False, 0.0, "timeout"),
    ("def f(n):\n  while n == 2: pass\n  return 3", DOUBLE, False, 0.0, "wrong"),
    ("import os\ndef f(n): return 2 * n if n < 3 else os._exit(0)", DOUBLE, True, 0.75, "wrong"),
    ("def f(n) return", DOUBLE, True, 0.0, "wrong"),
    ("print(input())", ECHO, False, 1.0, "correct"),
    ("print(input()); raise ValueError", ECHO, True, 0.0, "wrong"),
    ("print(1)", ECHO, True, 1 / 3, "wrong"),
    ("n = input(); print(n)\nwhile n == '1': pass", ECHO, True, 2 / 3, "timeout"),
    ("n = input(); print(7)\nwhile n == '1': pass", ECHO, False, 0.0, "wrong"),
    (
        "def f(n): return 2 * n\nif __name__ == '__main__': print(input())",
        BOTH,
        False,
        1.0,
        "correct",
    ),
    ("def f(n): return 2 * n", BOTH, True, 4 / 7, "wrong"),
]


def judge(completion: str, answer: str, **limits: Any) -> Verdict:
    rewards = RewardsConfig.model_validate({"code": {"cpu_seconds": 1} | limits})
    row = {"answer": answer, "verify_type": "CODE"}
    return open_rule(rewards)(completion, row)


@needs_sandbox
@pytest.mark.parametrize(("program", "answer", "partial", "reward", "outcome"), JUDGED)
def test_verdict(program: str, answer: str, partial: bool, reward: float, outcome: str) -> None:
    verdict = judge(f"So:\n```python\n{program}\n```", answer, partial=partial)
    assert (verdict.reward, verdict.verdict) == (reward, outcome)
    assert verdict.extracted == program + "\n"
    assert verdict.reason == ("CODE: CPU time beyond 1 s" if outcome == "timeout" else "")


@needs_sandbox
def test_wall_time_is_for_all_tests_together() -> None:
    program = "```python\nimport time\ntime.sleep(1.2)\nprint(input())\n```"
    started = time.monotonic()
    verdict = judge(program, ECHO, seconds=2.0, partial=True)
    assert (verdict.reward, verdict.verdict) == (1 / 3, "timeout")
    assert verdict.reason == "CODE: wall time beyond 2 s"
    assert time.monotonic() - started < 10


ANSWER_PARTS = [
    ("<think>```python\ndef f(n): return 2 * n\n```</think>I do not know.", "no_answer"),
    ("<think>```python\ndef f(n): return 2 * n\n```", "no_answer"),
    ("<think>hm</think>```python\ndef f(n): return 2 * n\n```", "correct"),
    ("def f(n): return 2 * n", "no_answer"),
]


@needs_sandbox
@pytest.mark.parametrize(("completion", "outcome"), ANSWER_PARTS)
def test_only_the_answer_part_counts(completion: str, outcome: str) -> None:
    assert judge(completion, DOUBLE).verdict == outcome


def test_missing_bubblewrap_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingToolError("install bubblewrap")

    monkeypatch.setattr("common.rewards.sandbox.bubblewrap.find_bwrap", missing)
    with pytest.raises(MissingToolError):
        require(RewardsConfig())
