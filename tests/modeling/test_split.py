"""The layer split: every layer once, none empty, the slowest stage as fast as can be."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.modeling.split import split_layers


@pytest.mark.parametrize(
    ("layers", "stages", "embed", "head", "counts"),
    [
        (4, 1, 0.0, 0.0, [4]),
        (5, 2, 0.0, 0.0, [3, 2]),
        (5, 4, 0.0, 0.0, [2, 1, 1, 1]),
        (30, 4, 0.0, 0.0, [8, 8, 7, 7]),
        (12, 2, 0.0, 2.0, [7, 5]),
        (12, 4, 0.0, 2.0, [4, 4, 3, 1]),
        (12, 4, 1.0, 3.0, [3, 4, 4, 1]),
        (4, 4, 0.0, 9.0, [1, 1, 1, 1]),
        (24, 2, 0.0, 30.0, [23, 1]),
    ],
)
def test_table(layers: int, stages: int, embed: float, head: float, counts: list[int]) -> None:
    split = split_layers(layers, stages, embed_cost=embed, head_cost=head)
    assert [len(part) for part in split] == counts


@given(
    layers=st.integers(1, 9),
    stages=st.integers(1, 5),
    embed=st.floats(0, 4),
    head=st.floats(0, 8),
)
def test_covers_every_layer_and_no_split_is_faster(
    layers: int, stages: int, embed: float, head: float
) -> None:
    """Compared with every possible split, so a heuristic that is merely good would fail."""
    if stages > layers:
        with pytest.raises(UserError, match=f"pp_degree = {stages}.*{layers} layers"):
            split_layers(layers, stages, embed_cost=embed, head_cost=head)
        return
    split = split_layers(layers, stages, embed_cost=embed, head_cost=head)
    assert [layer for part in split for layer in part] == list(range(layers))
    assert all(len(part) >= 1 for part in split)

    def slowest(counts: list[int]) -> float:
        last = len(counts) - 1
        return max(n + (i == 0) * embed + (i == last) * head for i, n in enumerate(counts))

    every = (
        [b - a for a, b in pairwise((0, *cuts, layers))]
        for cuts in combinations(range(1, layers), stages - 1)
    )
    assert slowest([len(part) for part in split]) <= min(map(slowest, every)) * (1 + 1e-9)
