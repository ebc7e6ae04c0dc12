"""The benchmark at sizes that take seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from workflows.bench.__main__ import prepare
from workflows.bench.measure import Bench, Sizes

TINY = Sizes(
    prompt_tokens=6,
    group_size=2,
    concurrent=(4,),
    sampler_tokens=5,
    default_concurrent=16,
    default_tokens=4,
    completion_tokens=7,
    microbatches=3,
    iteration=(2, 4, 8),
    loss=(300, 64, 16),
    scored_rows=30,
    scale_rows=(2, 4),
    scale_tokens=(3, 6),
    scale_layers=(1, 2),
    machine=64,
)


def tiny_bench(policy: Path, scratch: Path) -> Bench:
    """Prepare a benchmark of a tiny model with one round of everything."""
    made = prepare(scratch, str(policy), "cpu", 0, pairs=1, sizes=TINY)
    return replace(made, default_model=policy)
