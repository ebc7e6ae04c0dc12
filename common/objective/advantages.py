"""Group-relative advantages: how much better a completion is than others of its prompt.

Everything is computed with numpy in float64, in one pass over the iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.config import AdvantageKind
from common.errors import UserError

Floats = NDArray[np.float64]
Groups = NDArray[np.intp]
Flags = NDArray[np.bool_]

STD_FLOOR = 1e-4
"""Added to the standard deviation, as in TRL, so that a nearly constant group stays finite."""

SAME_REWARD = 1e-9
"""A group's rewards count as equal if they differ by at most this times max(1, largest |reward|).

The computed standard deviation cannot decide this: for [0.1] * 3 it may be 1e-17, and dividing the
rounding error of the mean by it would make a gradient of noise.
"""


@dataclass(frozen=True)
class Advantages:
    """Advantages of an iteration; arrays have one entry per completion, in the order given."""

    advantage: Floats
    """Exactly 0 where the reward is null or the group has no variance."""
    group_mean: Floats
    """Mean of the group's non-null rewards; NaN if there are none."""
    group_std: Floats
    """Standard deviation of the same rewards: 0 without variance, NaN with fewer than two."""
    groups: int
    """Groups in the batch, that is, the kept ones."""
    zero_variance_groups: int
    """Groups in the batch that have no variance."""
    rejected_groups: int
    """Groups that dynamic sampling left out of the batch."""
    rejected_zero_variance_groups: int


@dataclass(frozen=True)
class Deviations:
    """Deviations of rewards from the mean of their group, for groups with variance.

    Arrays have one entry per completion with a reward in such a group.
    """

    deviation: Floats
    """R - mean."""
    std: Floats
    """Standard deviation of the completion's group."""
    count: Floats
    """Number of rewards in the completion's group."""
    batch_std: float
    """Standard deviation of all rewards of the batch; infinite if there are fewer than two."""


def over_group_std(found: Deviations) -> Floats:
    """Return (R - mean) / (std + 1e-4), the advantage of GRPO (arXiv 2402.03300)."""
    return found.deviation / (found.std + STD_FLOOR)


def over_batch_std(found: Deviations) -> Floats:
    """Return (R - mean) / (std of all rewards of the batch + 1e-4)."""
    return found.deviation / (found.batch_std + STD_FLOOR)


def as_it_is(found: Deviations) -> Floats:
    """Return R - mean, the advantage of Dr. GRPO (arXiv 2503.20783)."""
    return found.deviation


def over_the_others(found: Deviations) -> Floats:
    """Return R minus the mean of the n - 1 others, the advantage of RLOO (arXiv 2402.14740).

    It equals (R - mean) * n / (n - 1).
    """
    return found.deviation * (found.count / (found.count - 1))


KINDS: dict[AdvantageKind, Callable[[Deviations], Floats]] = {
    "group": over_group_std,
    "batch": over_batch_std,
    "none": as_it_is,
    "leave_one_out": over_the_others,
}


def compute_advantages(
    group_ids: Sequence[int] | NDArray[np.int64],
    rewards: Sequence[float | None] | Floats,
    kind: AdvantageKind,
    kept: Sequence[bool] | Flags | None = None,
    *,
    ddof: int = 1,
    shuffle_seed: int | None = None,
) -> Advantages:
    """Compute the advantages of all completions of an iteration by one of `KINDS`.

    Mean and std are taken over the group's non-null rewards. Null rewards (None or NaN) enter no
    statistic and get advantage 0. Completions that dynamic sampling rejected are compared within
    their own group and enter no statistic of the batch.

    Args:
        group_ids: one per completion; the members of a group need not be adjacent.
        rewards: one per completion.
        kept: whether a completion is in the batch, the same for all of a group; None keeps all.
        ddof: 1 or 0; the variance divides by n - ddof.
        shuffle_seed: if given, each group's advantages are dealt to its completions at random.

    Raises:
        UserError: a group has only one completion, or a reward is infinite.
    """
    reward = np.asarray(rewards, dtype=np.float64)  # None becomes NaN
    _, first, group, sizes = np.unique(
        np.asarray(group_ids, dtype=np.int64),
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    _check(reward, group, sizes)
    in_batch = np.ones(len(reward), bool) if kept is None else np.asarray(kept, dtype=bool)
    counted = ~np.isnan(reward)
    count, mean, deviation, std = _statistics(reward, counted, group, len(sizes), ddof)
    varied = groups_with_variance(group, reward, len(sizes))
    std[~varied & (count > 1)] = 0.0
    moving = counted & varied[group]
    found = Deviations(
        deviation[moving],
        std[group[moving]],
        count[group[moving]],
        _std(reward[counted & in_batch], ddof),
    )
    advantage = np.zeros(len(reward))
    advantage[moving] = KINDS[kind](found)
    if shuffle_seed is not None:
        advantage[moving] = _shuffled(advantage[moving], group[moving], shuffle_seed)
    batch = in_batch[first]
    return Advantages(
        advantage,
        mean[group],
        std[group],
        groups=int(batch.sum()),
        zero_variance_groups=int((batch & ~varied).sum()),
        rejected_groups=int((~batch).sum()),
        rejected_zero_variance_groups=int((~batch & ~varied).sum()),
    )


def groups_with_variance(
    group: Sequence[int] | Groups, rewards: Sequence[float | None] | Floats, groups: int
) -> Flags:
    """Return which groups have different rewards: max - min > 1e-9 * max(1, |max|, |min|).

    Null rewards (None or NaN) are ignored.

    Args:
        group: number of each completion's group, from 0.
        rewards: one per completion, finite or null.
        groups: how many groups there are.

    Returns:
        bool [groups]
    """
    reward, where = np.asarray(rewards, dtype=np.float64), np.asarray(group, dtype=np.intp)
    counted = ~np.isnan(reward)
    high, low = np.full(groups, -np.inf), np.full(groups, np.inf)
    np.maximum.at(high, where[counted], reward[counted])
    np.minimum.at(low, where[counted], reward[counted])
    largest = np.maximum(np.abs(high), np.abs(low))
    return (high - low) > SAME_REWARD * np.maximum(1.0, largest)


def _statistics(
    reward: Floats, counted: Flags, group: Groups, groups: int, ddof: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return each group's count and mean, each reward's deviation and each group's std."""
    count = np.bincount(group, counted, groups).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # groups without rewards: 0 / 0
        mean = np.bincount(group, np.where(counted, reward, 0.0), groups) / count
        deviation = np.where(counted, reward - mean[group], 0.0)
        squares = np.bincount(group, deviation**2, groups)
        std = np.where(count > 1, np.sqrt(squares / (count - ddof)), np.nan)
    return count, mean, deviation, std


def _std(rewards: Floats, ddof: int) -> float:
    return float(np.std(rewards, ddof=ddof)) if len(rewards) > 1 else np.inf


def _shuffled(values: Floats, group: Groups, seed: int) -> Floats:
    """Return `values` in a random order within each group."""
    numbers = np.random.default_rng(seed).random(len(values))
    dealt = np.empty_like(values)
    dealt[np.argsort(group, kind="stable")] = values[np.lexsort((numbers, group))]
    return dealt


def _check(reward: Floats, group: Groups, sizes: NDArray[np.intp]) -> None:
    if np.isinf(reward).any():
        raise UserError(f"reward of row {int(np.argmax(np.isinf(reward)))} is infinite")
    single = int((sizes == 1).sum())
    if single:
        row = int(np.argmax(sizes[group] == 1))
        raise UserError(
            f"{single} group(s) have a single completion (first: row {row}); an advantage compares "
            "completions of one prompt, so a group needs 2 or more"
        )
