"""Prompts in the uniform order: whole shuffles, one after another."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.rollout.prompt_order import select_prompts


@given(
    total=st.integers(1, 12),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    unfit=st.sets(st.integers(0, 11)),
    seed=st.integers(0, 50),
)
def test_iterations_pass_through_epochs_without_repetition(
    total: int, counts: list[int], unfit: set[int], seed: int
) -> None:
    """Whatever the iterations' sizes, their prompts in a row are whole shuffles of those that fit,
    one after another: none is left out, none comes twice before all have come once."""
    fitting = [index for index in range(total) if index not in unfit]

    def draw(cursor: int, count: int) -> Any:
        return select_prompts(
            cursor, count, total, seed=seed, fits=lambda index: index not in unfit
        )

    if not fitting:
        with pytest.raises(UserError, match="none of the"):
            draw(0, 1)
        return
    cursor, prompts, dropped = 0, [], 0
    for count in counts:
        selected = draw(cursor, count)
        assert len(selected.prompts) == count
        assert selected.repeats == [
            selected.prompts[:i].count(p) for i, p in enumerate(selected.prompts)
        ]
        dropped += len(selected.dropped)
        cursor, prompts = selected.cursor_end, prompts + selected.prompts
    assert cursor == len(prompts) + dropped
    epochs = math.ceil(len(prompts) / len(fitting))
    for epoch in range(epochs):
        part = prompts[epoch * len(fitting) : (epoch + 1) * len(fitting)]
        assert len(set(part)) == len(part) and set(part) <= set(fitting)
    assert draw(0, sum(counts)).prompts == prompts
