"""The pairs of data/suites/math_cases.txt, and how one is judged."""

from __future__ import annotations

from common.rewards.math_answer import judge
from common.rewards.rule import Verdict
from workflows.suite_files import OWN_PAIRS, read_pairs

CASES = read_pairs(OWN_PAIRS)


def verdict_on(text: str, gold: str) -> Verdict:
    return judge(text, {"answer": gold, "verify_type": "MATH"})
