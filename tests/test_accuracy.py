"""pass@k against brute force, maj@k by hand, intervals against repeated experiments."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from math import comb

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.accuracy import (
    bootstrap_interval,
    figures_by_task,
    greedy_mean_over_tasks,
    maj_at_k,
    mean_over_tasks,
    paired_difference,
    pass_at_k,
    powers_up_to,
)


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(
    samples: int, data: st.DataObject
) -> None:
    correct = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    subsets = list(combinations([True] * correct + [False] * (samples - correct), k))
    share = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(correct, samples, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_does_not_overflow() -> None:
    exact = 1 - comb(9_990, 100) / comb(10_000, 100)
    assert pass_at_k(10, 10_000, 100) == pytest.approx(exact, rel=1e-9)
    assert pass_at_k(0, 10_000, 10_000) == 0
    assert pass_at_k(1, 10_000, 10_000) == 1


def test_powers() -> None:
    assert [powers_up_to(n) for n in (0, 1, 2, 6, 8)] == [
        [],
        [1],
        [1, 2],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
    ]


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["7", "7", "8"], [1, 1, 0], 1),
        (["8", "7", "8"], [0, 1, 0], 0),
        (["7", "8"], [1, 0], 0.5),
        (["7", "8", "9"], [1, 0, 0], 1 / 3),
        ([None, None, "7"], [0, 0, 1], 1),
        ([None, None], [0, 0], 0),
    ],
)
def test_the_majority_decides(
    answers: list[str | None], correct: list[int], expected: float
) -> None:
    assert maj_at_k(answers, correct) == pytest.approx(expected)


def test_a_task_with_more_questions_weighs_no_more() -> None:
    assert mean_over_tasks({"many": [0] * 90, "few": [1] * 10}) == 0.5


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """400 experiments of two tasks with known accuracy. Intervals that ignored one task, or were a
    percentile off, would cover clearly less or more than 95 %."""
    rng = np.random.default_rng(1)
    truth = (0.3 + 0.6) / 2
    covered = 0
    for experiment in range(400):
        values = {"a": rng.random(200) < 0.3, "b": rng.random(80) < 0.6}
        low, high = bootstrap_interval(values, resamples=1000, seed=experiment)
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.975


def test_resampling_equal_values_together_is_the_plain_bootstrap() -> None:
    values = np.random.default_rng(0).choice([0.0, 0.25, 1.0], 60)
    rng = np.random.default_rng(5)
    plain = rng.choice(values, (20_000, 60)).mean(axis=1)
    expected = np.quantile(plain, [0.025, 0.975])
    assert bootstrap_interval({"a": values}) == pytest.approx(expected, abs=0.006)


def test_pairing_sees_what_separate_intervals_do_not() -> None:
    """Questions are hard or easy; after is better on a tenth of them and never worse."""
    before = np.tile([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0], 20)
    after = before.copy()
    after[::10] = 1
    found = paired_difference({"task": (before, after)})
    assert found["questions"] == 200
    assert found["difference"] == pytest.approx(0.1)
    assert found["after"] - found["before"] == pytest.approx(0.1)
    assert 0.05 < found["low"] < 0.1 < found["high"] < 0.15
    separate = bootstrap_interval({"t": after})[0] - bootstrap_interval({"t": before})[1]
    assert separate < 0


def evaluation(rows: list[tuple[str, str, int, str | None, str]]) -> pl.DataFrame:
    names = ["task", "prompt_id", "sample_index", "extracted_answer", "verdict"]
    frame = pl.DataFrame(rows, schema=names, orient="row")
    return frame.with_columns(completion_ids=pl.lit([1, 2, 3]), finish_reason=pl.lit("stop"))


def test_figures_of_an_evaluation() -> None:
    judged = evaluation(
        [
            ("sums", "p", -1, "4", "correct"),
            ("sums", "p", 0, "4", "correct"),
            ("sums", "p", 1, "5", "wrong"),
            ("sums", "q", -1, "9", "wrong"),
            ("sums", "q", 0, None, "no_answer"),
            ("sums", "q", 1, "8", "wrong"),
            ("words", "r", -1, "x", "correct"),
            ("words", "r", 0, "x", "correct"),
            ("words", "r", 1, "x", "correct"),
            ("words", "s", -1, None, "infra_error"),
        ]
    )
    figures = figures_by_task(judged)
    assert list(figures) == ["sums", "words"]
    assert figures["sums"]["questions"] == 2
    assert figures["sums"]["greedy"] == 0.5
    assert figures["sums"]["pass@1"] == 0.25
    assert figures["sums"]["pass@2"] == 0.5
    assert figures["sums"]["maj@2"] == 0.25
    assert figures["sums"]["tokens"] == 3
    assert figures["sums"]["truncated"] == 0
    assert figures["words"]["questions"] == 1, "a failed rule says nothing about the policy"
    assert figures["words"]["greedy"] == 1
    assert greedy_mean_over_tasks(judged)["greedy"] == 0.75
    without_samples = figures_by_task(judged.filter(pl.col("sample_index") == -1))
    assert "pass@1" not in without_samples["sums"]


def test_it_needs_no_torch() -> None:
    code = "import sys, common.accuracy; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
