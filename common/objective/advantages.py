"""Group-relative advantages: how much better a completion is than others of its prompt.

Plain numpy in float64, one pass over the iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from common.config import AdvantageKind
from common.errors import UserError

Floats = NDArray[np.float64]

STD_FLOOR = 1e-4
"""Added to the standard deviation, as in TRL; keeps a nearly constant group finite."""

SAME_REWARD = 1e-9
"""Rewards of a group that differ by no more, relative to the largest above 1, are the same.

A computed standard deviation cannot decide this: of [0.1] * 3 it may be 1e-17, and dividing the
rounding error of the mean by it would make a gradient of noise.
"""


@dataclass(frozen=True)
class Advantages:
    """One entry a completion, in the order given."""

    advantage: Floats
    """Exactly 0 where the reward is null or the group has no variance."""
    group_mean: Floats
    """Of the group's non-null rewards; NaN if there are none."""
    group_std: Floats
    """Its standard deviation (ddof 1), 0 without variance; NaN with fewer than two rewards."""
    groups: int
    zero_variance_groups: int


def compute_advantages(
    group_ids: Sequence[int] | NDArray[np.int64],
    rewards: Sequence[float | None] | Floats,
    kind: AdvantageKind,
) -> Advantages:
    """Advantages of all completions of an iteration.

    With R a reward, mean and std of the group's non-null rewards (ddof 1):

    - `group`: (R - mean) / (std + 1e-4), GRPO (arXiv 2402.03300)
    - `batch`: (R - mean) / (std of all rewards of the iteration + 1e-4)
    - `none`: R - mean, Dr. GRPO (arXiv 2503.20783)
    - `leave_one_out`: R - mean of the others, RLOO (arXiv 2402.14740)

    Null rewards (None or NaN) are in no statistic and get 0.

    Args:
        group_ids: one a completion; a group's need not be adjacent.
        rewards: one a completion.
        kind: one of the above.

    Raises:
        UserError: a group has one completion only, or a reward is infinite.
    """
    reward = np.asarray(rewards, dtype=np.float64)  # None becomes NaN
    _, group, sizes = np.unique(
        np.asarray(group_ids, dtype=np.int64), return_inverse=True, return_counts=True
    )
    _check(reward, group, sizes)
    counted = ~np.isnan(reward)
    count = np.bincount(group, counted, len(sizes))
    with np.errstate(invalid="ignore", divide="ignore"):  # groups without rewards: 0 / 0
        mean = np.bincount(group, np.where(counted, reward, 0.0), len(sizes)) / count
        deviation = np.where(counted, reward - mean[group], 0.0)
        squares = np.bincount(group, deviation**2, len(sizes))
        std = np.where(count > 1, np.sqrt(squares / (count - 1)), np.nan)
    constant = _constant(reward[counted], group[counted], len(sizes))
    std[constant & (count > 1)] = 0.0
    moving = counted & ~constant[group]
    advantage = np.where(moving, deviation, 0.0)
    if kind == "group":
        advantage[moving] /= std[group[moving]] + STD_FLOOR
    elif kind == "batch":
        if moving.any():
            advantage[moving] /= np.std(reward[counted], ddof=1) + STD_FLOOR
    elif kind == "leave_one_out":
        others = count[group[moving]] - 1
        advantage[moving] *= (others + 1) / others
    elif kind != "none":
        assert_never(kind)
    return Advantages(advantage, mean[group], std[group], len(sizes), int(constant.sum()))


def _constant(reward: Floats, group: NDArray[np.int64], groups: int) -> NDArray[np.bool_]:
    """Which groups have no two different rewards."""
    high, low = np.full(groups, -np.inf), np.full(groups, np.inf)
    np.maximum.at(high, group, reward)
    np.minimum.at(low, group, reward)
    largest = np.maximum(np.abs(high), np.abs(low))
    return (high - low) <= SAME_REWARD * np.maximum(1.0, largest)


def _check(reward: Floats, group: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    if np.isinf(reward).any():
        raise UserError(f"reward of row {int(np.argmax(np.isinf(reward)))} is infinite")
    single = int((sizes == 1).sum())
    if single:
        row = int(np.argmax(sizes[group] == 1))
        raise UserError(
            f"{single} group(s) have a single completion (first: row {row}); an advantage compares "
            "completions of one prompt, so a group needs 2 or more"
        )
