"""format: 1 for `<think>…</think><answer>…</answer>`, whole and once; else 0."""

from __future__ import annotations

from common.rewards.answer_part import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from common.rewards.rule import Row


def reward(text: str, row: Row) -> float:
    """Space is free around the two parts; any other text there, or a tag repeated, gives 0.

    `text` includes the assistant prefix, so a template that opens `<think>` itself counts. The
    contents may be empty: what stands in them is for the row's verify type to judge.
    """
    text = text.strip()
    if any(text.count(tag) != 1 for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)):
        return 0.0
    thinking, _, answering = text.partition(THINK_CLOSE)
    answering = answering.lstrip()
    whole = (
        thinking.startswith(THINK_OPEN)
        and answering.startswith(ANSWER_OPEN)
        and answering.endswith(ANSWER_CLOSE)
    )
    return 1.0 if whole else 0.0
