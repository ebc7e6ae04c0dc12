"""Weights for a sampler that disagrees with the trainer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import ObjectiveConfig
from common.objective.weights import sampler_weights

LOW, HIGH = 0.5, 2.0
# Two completions: log weights 0.9 and −0.6, then −1, 0.2, 0.2.
LENGTHS = [2, 3]
D = np.array([0.9, -0.6, -1.0, 0.2, 0.2])


def weights(correction: str, level: str, d=D, lengths=LENGTHS) -> np.ndarray:
    config = ObjectiveConfig(
        sampler_correction=correction, sampler_level=level, sampler_low=LOW, sampler_high=HIGH
    )
    old = np.full(len(d), -3.0)
    return sampler_weights(config, old, old - d, lengths)


@pytest.mark.parametrize(
    ("correction", "level", "expected"),
    [
        ("none", "token", [1, 1, 1, 1, 1]),
        ("truncate", "token", [2, math.exp(-0.6), math.exp(-1), math.exp(0.2), math.exp(0.2)]),
        ("mask", "token", [0, math.exp(-0.6), 0, math.exp(0.2), math.exp(0.2)]),
        ("truncate", "sequence", [math.exp(0.3)] * 2 + [math.exp(-0.6)] * 3),
        ("mask", "sequence", [math.exp(0.3)] * 2 + [math.exp(-0.6)] * 3),
        ("truncate", "geometric", [math.exp(0.15)] * 2 + [math.exp(-0.2)] * 3),
    ],
)
def test_weights_by_hand(correction, level, expected):
    assert weights(correction, level).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("level", ["sequence", "geometric"])
def test_a_completion_is_masked_as_a_whole(level):
    d = np.array([1.5, 1.5, -0.1, 0.1])
    assert weights("mask", level, d, [2, 2]).tolist() == pytest.approx([0, 0, 1, 1])
    assert weights("truncate", level, d, [2, 2]).tolist() == pytest.approx([2, 2, 1, 1])


def test_the_bounds_are_inside():
    """Tried with exp(0), which is exactly 1; exp(log 2) need not be 2."""
    config = ObjectiveConfig(sampler_correction="mask", sampler_low=1.0, sampler_high=1.0)
    same = np.array([-1.25, -0.5])
    assert sampler_weights(config, same, same, [2]).tolist() == [1.0, 1.0]
    above = np.array([-1.25, np.nextafter(-0.5, 0) + 1e-12])
    assert sampler_weights(config, above, same, [2]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_differences_beyond_any_exp_are_finite(level):
    d = np.array([1e5, 1e5, -1e5, -1e5])
    with np.errstate(all="raise", under="ignore"):
        assert weights("truncate", level, d, [2, 2]).tolist() == [HIGH, HIGH, 0.0, 0.0]
        assert weights("mask", level, d, [2, 2]).tolist() == [0.0] * 4


def test_what_is_no_number_stays_none():
    """So that the step is left out and named, instead of a token passing as masked."""
    d = np.array([np.nan, 0.0, 0.0])
    for correction in ("truncate", "mask"):
        assert np.isnan(weights(correction, "token", d, [2, 1])).tolist() == [True, False, False]
        assert np.isnan(weights(correction, "sequence", d, [2, 1])).tolist() == [True, True, False]
    assert weights("none", "token", d, [2, 1]).tolist() == [1.0] * 3


def test_float32_is_summed_in_float64():
    """A million tokens of 1e-3 each in float32 would lose digits; the mean weight is e^0.001."""
    old, sampler = np.zeros(10**6, np.float32), np.full(10**6, -1e-3, np.float32)
    config = ObjectiveConfig(sampler_correction="truncate", sampler_level="geometric")
    found = sampler_weights(config, old, sampler, [10**6])
    assert found.dtype == np.float64
    assert found[0] == pytest.approx(math.exp(float(np.float32(1e-3))), rel=1e-12)


@given(
    st.lists(st.lists(st.floats(-3, 3), max_size=6), min_size=1, max_size=6),
    st.sampled_from(["token", "sequence", "geometric"]),
    st.sampled_from(["truncate", "mask"]),
)
@settings(max_examples=100)
def test_completions_do_not_know_of_each_other(rows, level, correction):
    """Weights of a batch are those of its completions alone, empty ones included."""
    flat = np.array([d for row in rows for d in row])
    found = weights(correction, level, flat, [len(row) for row in rows])
    alone = [weights(correction, level, np.array(row), [len(row)]) for row in rows]
    np.testing.assert_allclose(found, np.concatenate(alone), rtol=1e-12)
    assert ((found <= HIGH) & (found >= 0)).all()
    if correction == "mask":
        assert ((found == 0) | (found >= LOW)).all()
