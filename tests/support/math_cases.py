"""The pairs of math_cases.txt, and how one is judged."""

from __future__ import annotations

from pathlib import Path

from common.rewards.math_answer import judge
from common.rewards.rule import Verdict

CASES = [
    (*line[2:].split(" ‖ "), line[0] == "=")
    for line in Path(__file__).with_name("math_cases.txt").read_text("utf-8").splitlines()
    if line[:2] in ("= ", "≠ ")
]


def verdict_on(text: str, gold: str) -> Verdict:
    return judge(text, {"answer": gold, "verify_type": "MATH"})
