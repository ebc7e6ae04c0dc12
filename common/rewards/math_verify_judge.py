"""MATH as math-verify (Hugging Face) judges it by itself, with its defaults.

`rewards.math.judge = "math-verify"` chooses it, so that numbers can be compared with those of
papers and other trainers. It passes what this project's own judge does not: rounded decimals, the
last of several answers, `5 million` for 5; `python -m workflows.suites` prints where the two
differ.

math-verify's parser of plain expressions has Python evaluate them, but only what consists of digits
and operators. It runs in the rule's process, which is killed when it takes too long.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from common.rewards.answer_part import answer_part
from common.rewards.rule import NO_ANSWER, Row, Verdict, graded


def judge(text: str, row: Row) -> Verdict:
    """Compare what math-verify finds in the answer part with the gold.

    If it finds nothing in the gold, which `math_answer.read_gold` has read before, that is no fault
    of the answer: an `infra_error`.
    """
    from math_verify import verify

    gold = _read_gold(row["answer"])
    if not gold:
        return Verdict(None, "infra_error", None, "MATH: math-verify reads nothing in the gold")
    part = answer_part(text) or ""
    try:
        found = _parse(part)
        if not found:
            return NO_ANSWER
        is_gold = verify(list(gold), found, timeout_seconds=None)
    except (RecursionError, MemoryError) as error:
        return Verdict(0.0, "timeout", None, f"MATH: {type(error).__name__}")
    return graded(is_gold, str(found[-1]))


@lru_cache(maxsize=4096)
def _read_gold(gold: str) -> tuple[Any, ...]:
    marked = gold if "$" in gold or r"\boxed" in gold else f"${gold}$"
    return tuple(_parse(marked) or _parse(gold))


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    # It logs what it cannot read, which is text of a model.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return list(parse(text, parsing_timeout=None))
