"""An ablation's table from its raw figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from workflows.ablation import tables


def figures(variant: str, seed: int, greedy: float, drawn: float) -> tuple[Any, Any]:
    common = {"variant": variant, "seed": seed}
    step = {"iteration": 1, "drawn_accuracy": drawn, "entropy": 0.5, "skipped": False}
    # Two steps of one iteration: its completions were drawn once.
    steps = [common | step, common | step | {"skipped": True, "entropy": 9.0}]
    accuracy = [
        common | {"policy": policy, "task": task, "greedy": right, "pass@1": right / 2}
        for policy, right in enumerate((0.2, greedy))
        for task in "ab"
    ]
    return steps, accuracy


def test_variants_are_compared_seed_by_seed() -> None:
    found = [
        figures("default", 0, 0.5, 0.2),
        figures("default", 1, 0.7, 0.4),
        figures("other", 0, 0.6, 0.1),
        figures("other", 1, 0.9, 0.2),
        figures("other", 2, 0.0, 0.0),  # the first variant has no such seed
    ]
    steps, accuracy = (
        pl.DataFrame([row for part in parts for row in part]) for parts in zip(*found, strict=True)
    )
    default, other = tables.comparison(steps, accuracy).to_dicts()
    assert default["greedy"] == pytest.approx(0.6) and default["greedy diff"] is None
    assert (other["seeds"], other["entropy"]) == (2, 0.5)
    assert other["greedy diff"] == pytest.approx(0.15)
    assert other["drawn diff"] == pytest.approx(-0.15)
    half = tables.T_975[0] * 0.05  # of 0.1 and 0.2, with one degree of freedom
    assert other["greedy low"] == pytest.approx(0.15 - half)
    assert other["greedy high"] == pytest.approx(0.15 + half)


def test_gains_are_of_each_variant_by_itself() -> None:
    found = [figures("default", seed, greedy, 0.5) for seed, greedy in enumerate((0.5, 0.7))]
    accuracy = pl.DataFrame([row for _, rows in found for row in rows])
    (gain,) = tables.gains(accuracy).to_dicts()
    assert (gain["greedy before"], gain["greedy"]) == pytest.approx((0.2, 0.6))
    half = tables.T_975[0] * 0.1
    bounds = (gain["greedy low"], gain["greedy gain"], gain["greedy high"])
    assert bounds == pytest.approx((0.4 - half, 0.4, 0.4 + half))
    assert (gain["sampled before"], gain["sampled gain"]) == pytest.approx((0.1, 0.2))


def test_without_samples_only_greedy_accuracy_is_compared() -> None:
    _, accuracy = zip(*[figures("default", seed, 0.5, 0.5) for seed in (0, 1)], strict=True)
    table = pl.DataFrame([row for rows in accuracy for row in rows])
    nulls = table.with_columns(pl.lit(None, pl.Float64).alias("pass@1"))
    for without in (table.drop("pass@1"), nulls):
        (gain,) = tables.gains(without).to_dicts()
        assert gain["greedy gain"] == pytest.approx(0.3)
        assert gain["sampled"] is None and gain["sampled low"] is None


def test_interval_is_students() -> None:
    middle, low, high = tables.interval([1.0, 2.0, 3.0])
    assert middle == 2
    assert high - middle == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert middle - low == pytest.approx(high - middle)
    many = np.linspace(0, 1, 40).tolist()  # t of 39 degrees is 2.02; that of 10 is not too narrow
    assert tables.interval(many)[2] == pytest.approx(
        0.5 + 2.228 * np.std(many, ddof=1) / math.sqrt(40)
    )
